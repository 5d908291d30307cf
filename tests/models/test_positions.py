"""Models at another input size: positions are what transformers would interpolate, and what is saved is ordinary."""

import pytest
import torch
import transformers
from helpers import CLASSES, FAMILIES, TOWERS, class_of, make_clip, make_dataset, make_family
from transformers import BitImageProcessorPil, EfficientNetImageProcessorPil, ViTImageProcessorPil

from hpt import InputError, ZeroShotClassifier, load_proxy
from hpt.evaluation.subject import Subject
from hpt.models.families import family_of, has_positions
from hpt.models.loading import load_dual_encoder, load_named, save_finished
from hpt.models.lora import add_lora
from hpt.models.positions import resize_positions, with_image_size
from hpt.references import parse_model


# Those whose forward can't interpolate: GroupViT's refuses to, AIMv2's has no way to
CANNOT = ("Aimv2", "GroupViT")
SIZES = (32, 8)  # of models of 16 pixels with patches of 8


def with_positions(name):
    """A tiny model of a family in float64 with position embeddings that count, and its processor."""
    model, processor = make_family(name)
    for key, weight in model.named_parameters():
        if "position_embedding" in key:
            torch.nn.init.normal_(weight)
    return model.double(), processor


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", [name for name in (*FAMILIES, "DINOv2") if name not in (*CANNOT, "Align")])
def test_positions_are_what_transformers_interpolates_in_each_forward(name, size):
    model, processor = with_positions(name)
    resized, _ = with_image_size(model, processor, size)
    pixels = torch.rand(2, 3, size, size, dtype=torch.float64)
    expected = model.get_image_features(pixel_values=pixels, interpolate_pos_encoding=True).pooler_output
    features = resized.get_image_features(pixel_values=pixels).pooler_output
    torch.testing.assert_close(features, expected, rtol=1e-6, atol=1e-6)  # DINOv2 interpolates in float32


def test_each_position_of_a_larger_square_comes_from_its_place():
    """A table that says where its patches are says so at the new places, away from the edge."""
    places = torch.stack(torch.meshgrid(*[torch.arange(8, dtype=torch.float64)] * 2, indexing="ij"), -1).flatten(0, 1)
    table = torch.cat([torch.full((2, 2), -7.0, dtype=torch.float64), places])
    resized = resize_positions(table, grid=16, special=2)
    assert torch.equal(resized[:2], table[:2]) and resized.shape == (2 + 16**2, 2)
    inner = resized[2:].unflatten(0, (16, 16))[4:-4, 4:-4]
    rows = (torch.arange(16, dtype=torch.float64)[4:-4] + 0.5) / 2 - 0.5
    bicubic = {"rtol": 0, "atol": 0.05}  # which isn't exact even for what grows evenly
    torch.testing.assert_close(inner[..., 0], rows[:, None].expand(-1, 8), **bicubic)
    torch.testing.assert_close(inner[..., 1], rows.expand(8, -1), **bicubic)


@pytest.mark.parametrize("name", [*FAMILIES, *TOWERS])
def test_what_is_saved_is_an_ordinary_model_of_that_size(tmp_path, name):
    model, processor = make_family(name)
    before = {key: weight.clone() for key, weight in model.state_dict().items()}
    size = 2 * processor.image_processor.crop_size["height"]
    resized, processor = with_image_size(model, processor, size)
    assert all(torch.equal(before[key], weight) for key, weight in model.state_dict().items())
    save_finished(resized, processor, tmp_path)
    plain = getattr(transformers, class_of(name)).from_pretrained(tmp_path)
    assert plain.config.vision_config.image_size == size
    images = torch.rand(2, 3, size, size)
    loaded, processor = load_dual_encoder(str(tmp_path))
    expected = ZeroShotClassifier(resized, processor, CLASSES)
    for other in (plain.eval(), loaded):
        classifier = ZeroShotClassifier(other, processor, CLASSES)
        assert classifier.image_size == size
        torch.testing.assert_close(classifier(images), expected(images))


@pytest.mark.parametrize("name", ["CLIP", "ResNet"])
def test_a_model_at_another_size_is_told_apart(tmp_path, name):
    save_finished(*make_family(name), tmp_path)
    own, same, larger = (load_proxy(str(tmp_path), image_size=size) for size in (None, 16, 32))
    assert Subject(own).configuration == Subject(same).configuration != Subject(larger).configuration
    assert (Subject(own).weights == Subject(larger).weights) == (not has_positions(own.model))
    _, named = load_named(parse_model(f"mine={tmp_path}:image_size=32", loaded=True), torch.device("cpu"))
    assert named.image_size == 32 and Subject(named).weights == Subject(larger).weights


def test_the_seed_and_the_dtype_stay(tmp_path):
    save_finished(*make_clip(0), tmp_path)
    before = torch.get_rng_state()
    proxy = load_proxy(str(tmp_path), dtype=torch.bfloat16, image_size=24)
    assert torch.equal(torch.get_rng_state(), before)
    assert {weight.dtype for weight in proxy.model.parameters()} == {torch.bfloat16} and not proxy.model.training
    assert proxy.model.name_or_path == str(tmp_path)


SQUARE = {"height": 224, "width": 224}


@pytest.mark.parametrize(
    ("image_processor", "sizes"),
    [
        (ViTImageProcessorPil(size=SQUARE), {"size": {"height": 336, "width": 336}}),
        (
            BitImageProcessorPil(size={"shortest_edge": 256}, crop_size=SQUARE),
            {"size": {"shortest_edge": 384}, "crop_size": {"height": 336, "width": 336}},
        ),
        (
            EfficientNetImageProcessorPil(size={"height": 256, "width": 256}, do_center_crop=True, crop_size=SQUARE),
            {"size": {"height": 384, "width": 384}, "crop_size": {"height": 336, "width": 336}},
        ),
    ],
    ids=["squashed", "centre", "squashed and centre"],
)
def test_what_a_processor_resizes_to_before_it_crops_grows_in_proportion(image_processor, sizes):
    model, processor = make_family("ResNet")
    processor.image_processor = image_processor
    _, resized = with_image_size(model, processor, 336)
    for name, sides in sizes.items():
        found = {key: side for key, side in dict(getattr(resized.image_processor, name)).items() if side is not None}
        assert found == sides
    assert dict(image_processor.size) != dict(resized.image_processor.size)  # that of the processor given stays
    image = make_dataset(1, 300)[0]["image"]
    assert resized.image_processor(images=image, return_tensors="pt")["pixel_values"].shape[-2:] == (336, 336)


@pytest.mark.parametrize(
    ("size", "line"),
    [
        (30, "image_size is 30, but patches have 8 pixels: give 24 or 32"),
        (7, "image_size is 7, but patches have 8 pixels: give 8"),
        (0, "image_size is 0, but must be 1 to 4096 pixels"),
        (-8, "image_size is -8, but must be 1 to 4096 pixels"),
        (8192, "image_size is 8192, but must be 1 to 4096 pixels"),
    ],
)
def test_sizes_that_cannot_be(tmp_path, size, line):
    save_finished(*make_clip(0), tmp_path)
    with pytest.raises(InputError, match=line):
        load_dual_encoder(str(tmp_path), image_size=size)


def test_models_that_cannot_be_resized():
    model, processor = make_clip(0)
    with pytest.raises(InputError, match="has adapters: set its image_size before they are added"):
        with_image_size(add_lora(model), processor, 32)
    config = make_family("VisionTextDualEncoder")[0].config.to_dict()
    config["vision_config"] |= {"model_type": "beit", "use_relative_position_bias": True}
    config["vision_config"]["use_absolute_position_embeddings"] = True
    model = transformers.VisionTextDualEncoderModel(transformers.VisionTextDualEncoderConfig(**config))
    with pytest.raises(InputError, match="relative_position_bias_table depends on that, and isn't a table with a row"):
        with_image_size(model, processor, 32)


def test_a_processor_of_another_size_is_refused_unless_a_size_is_given(tmp_path):
    model, _ = make_clip(0)
    save_finished(model, make_clip(0, image_size=24)[1], tmp_path)
    with pytest.raises(
        InputError, match="images of 24 x 24 pixels, but CLIPModel takes 16 x 16: .* by image_size which"
    ):
        load_proxy(str(tmp_path))
    for size in (16, 24):
        assert load_proxy(str(tmp_path), image_size=size).image_size == size


def test_towers_that_interpolate_by_themselves_keep_their_table(tmp_path):
    """DINOv2's checkpoints have positions for 518 pixels, and processors of 224."""
    model, processor = make_family("DINOv2")
    _, processor = with_image_size(*make_family("DINOv2"), 24)
    save_finished(model, processor, tmp_path)
    own, resized = (load_proxy(str(tmp_path), image_size=size).model for size in (None, 24))
    assert (own.config.vision_config.image_size, resized.config.vision_config.image_size) == (16, 24)
    images = torch.rand(2, 3, 24, 24)
    features = [family_of(model).image_features(model, images).pooler_output for model in (own, resized)]
    torch.testing.assert_close(*features)
