"""A model is whole, or it is refused in a line: whatever its files hold, no wrong number, no traceback, no hang."""

import json
import resource
import shutil
import struct
import time

import pytest
import torch
from helpers import CLASSES, make_clip
from safetensors.torch import load_file, save_file

from hpt import InputError, ZeroShotClassifier, load_proxy


CONFIG, PROCESSOR, TOKENIZER = "config.json", "processor_config.json", "tokenizer.json"
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"


@pytest.fixture
def folder(sound, tmp_path):
    """A copy of the tiny CLIP."""
    return shutil.copytree(sound / "base", tmp_path / "model")


@pytest.fixture
def adapter(sound, tmp_path):
    """A copy of the adapter, beside its base."""
    shutil.copytree(sound, tmp_path / "models")
    set_values(tmp_path / "models" / "adapter" / "adapter_config.json", "", base_model_name_or_path="base")
    return tmp_path / "models" / "adapter"


def set_values(path, within="", **values):
    """Write values into a file of JSON, or into a part of it."""
    content = json.loads(path.read_text())
    part = content
    for name in filter(None, within.split(".")):
        part = part[name]
    part.update(values)
    path.write_text(json.dumps(content))


def refusal(folder) -> str:
    """The one line with which a model is refused, soon and without much memory."""
    before, peak = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(InputError) as refused:
        load_proxy(str(folder)).with_classes(CLASSES).text_embeds()
    line = str(refused.value)
    assert "\n" not in line and len(line) < 800
    assert time.monotonic() - before < 20  # of a second or less, where nothing else runs
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak < 500_000  # kilobytes
    return line


NOT_JSON = {
    "empty": b"",
    "text": b"{hello",
    "cut": b'{"model_type": "clip", ',
    "not UTF-8": b'{"a": "\xff"}',
    "UTF-16": '{"a": 1}'.encode("utf-16"),
    "zeros": bytes(100),
    "deep": b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "long number": b'{"a": ' + b"9" * 5000 + b"}",
    "NaN": b'{"a": NaN}',
    "list": b"[]",
    "null": b"null",
}


@pytest.mark.parametrize("file", [CONFIG, PROCESSOR, "tokenizer_config.json", INDEX])
@pytest.mark.parametrize("content", NOT_JSON)
def test_settings_that_are_not_json_name_their_file(folder, file, content):
    (folder / WEIGHTS).unlink(missing_ok=file != INDEX)
    (folder / file).write_bytes(NOT_JSON[content])
    assert f"{file} is damaged" in refusal(folder)


@pytest.mark.parametrize("content", NOT_JSON)
def test_an_adapters_settings_that_are_not_json_name_their_file(adapter, content):
    (adapter / "adapter_config.json").write_bytes(NOT_JSON[content])
    assert "adapter_config.json is damaged" in refusal(adapter)


@pytest.mark.parametrize("content", [content for content in NOT_JSON if content != "NaN"])
def test_a_tokenizer_that_is_not_json_names_its_file(folder, content):
    (folder / TOKENIZER).write_bytes(NOT_JSON[content])
    assert "tokenizer.json is damaged" in refusal(folder)


MORE = "describes more weights than its files hold, which is 22817 numbers in 62 weights"
IMPOSSIBLE = [
    # More than the files hold
    ("vision_config", "num_hidden_layers", 10**6, MORE),
    ("text_config", "num_hidden_layers", 2**40, MORE),
    ("vision_config", "hidden_size", 10**6, MORE),
    ("vision_config", "image_size", 10**6, MORE),
    ("vision_config", "num_channels", 10**9, MORE),
    ("text_config", "intermediate_size", 2**31, MORE),
    ("text_config", "vocab_size", 10**10, MORE),
    ("text_config", "max_position_embeddings", 10**10, MORE),
    ("", "projection_dim", 10**9, MORE),
    # Another shape
    ("vision_config", "num_hidden_layers", 1, "16 unexpected"),
    ("vision_config", "num_hidden_layers", 3, "16 missing"),
    ("vision_config", "hidden_size", 32, "of another shape"),
    ("text_config", "vocab_size", 10, "of another shape"),
    ("", "projection_dim", 9, "of another shape"),
    ("vision_config", "patch_size", 32, "of another shape"),
    # No values at all
    ("vision_config", "num_hidden_layers", 0, "unexpected"),
    ("vision_config", "num_hidden_layers", -1, "unexpected"),
    ("vision_config", "hidden_size", 0, "Can't load the model"),
    ("vision_config", "hidden_size", -16, "Can't load the model"),
    ("vision_config", "patch_size", 0, "Can't load the model"),
    ("vision_config", "patch_size", -8, "Can't load the model"),
    ("vision_config", "image_size", 0, "of another shape"),
    ("vision_config", "num_attention_heads", 3, "not a multiple of the number of attention heads"),
    ("vision_config", "num_attention_heads", 0, "Can't load the model"),
    ("vision_config", "hidden_act", "softsign7", "softsign7"),
    ("vision_config", "hidden_act", None, "Can't load the model"),
    ("text_config", "hidden_size", "16", "hidden_size"),
    ("text_config", "hidden_size", None, "hidden_size"),
    ("text_config", "hidden_size", [16], "hidden_size"),
    ("text_config", "layer_norm_eps", "small", "layer_norm_eps"),
    ("text_config", "layer_norm_eps", -1e-5 - 10**3, "NaN or infinity for any image or text"),
    ("", "text_config", [1], "Can't load the model"),
    ("", "vision_config", "vit", "Can't load the model"),
    ("", "dtype", "float33", "float33"),
    (
        "",
        "model_type",
        "clib",
        "the model_type 'clib', which transformers doesn't have in this version: did you mean cl",
    ),
    ("", "model_type", None, "the model_type None, which transformers doesn't have in this version."),
    ("", "model_type", "bert", "."),
    ("", "quantization_config", {"quant_method": "gptq"}, "it is quantised"),
    # The text's end
    ("text_config", "eos_token_id", 0, "but 'This is a photo of a cat' has none"),
    ("text_config", "eos_token_id", 10**6, "but 'This is a photo of a cat' has none"),
]


@pytest.mark.parametrize(
    ("within", "name", "value", "line"), IMPOSSIBLE, ids=[f"{name}={value}" for _, name, value, _ in IMPOSSIBLE]
)
def test_configurations_that_cannot_be_the_models_are_refused(folder, within, name, value, line):
    set_values(folder / CONFIG, within, **{name: value})
    assert line in refusal(folder)


def test_towers_of_two_widths_are_refused(folder):
    weights = load_file(folder / WEIGHTS)
    weights["text_projection.weight"] = torch.zeros(9, 16)
    save_file(weights, folder / WEIGHTS, {"format": "pt"})
    assert "1 of another shape (text_projection.weight (9, 16), not (8, 16))" in refusal(folder)


# What is done to the weights, by name, and the line
BAD_WEIGHTS = {
    "NaN": (
        lambda weight: weight.fill_(float("nan")),
        "weights are NaN or infinite, 1 of 62 (visual_projection.weight)",
    ),
    "infinity": (lambda weight: weight.fill_(float("inf")), "weights are NaN or infinite, 1 of 62"),
    "whole numbers": (lambda weight: weight.int(), "visual_projection.weight is kept as I32, but weights must be of"),
    "truth values": (lambda weight: weight.bool(), "visual_projection.weight is kept as BOOL"),
    "8 bits": (lambda weight: weight.to(torch.float8_e4m3fn), "visual_projection.weight is kept as F8_E4M3"),
    "no numbers": (lambda weight: torch.zeros(0), "1 of another shape"),
    "another dimension": (lambda weight: weight[None].contiguous(), "1 of another shape"),
}


@pytest.mark.parametrize("kind", BAD_WEIGHTS)
def test_weights_that_are_none_are_refused(folder, kind):
    change, line = BAD_WEIGHTS[kind]
    weights = load_file(folder / WEIGHTS)
    weights["visual_projection.weight"] = change(weights["visual_projection.weight"])
    save_file(weights, folder / WEIGHTS, {"format": "pt"})
    assert line in refusal(folder)


def test_an_infinite_scale_is_refused(folder):
    weights = load_file(folder / WEIGHTS)
    save_file(weights | {"logit_scale": torch.tensor(1000.0)}, folder / WEIGHTS, {"format": "pt"})
    assert "NaN or infinity for any image or text" in refusal(folder)


@pytest.mark.parametrize("size", [0, 1, 7, 8, 9, 100, 5000, -1, -4, -1000])
def test_a_file_of_weights_that_is_cut_is_refused(folder, size):
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:size])
    assert "Can't load the model" in refusal(folder)


@pytest.mark.parametrize("length", [0, 1, 2**31, 2**60, 2**63, 2**64 - 1])
def test_a_header_of_another_length_is_refused(folder, length):
    content = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(struct.pack("<Q", length) + content[8:])
    assert "Can't load the model" in refusal(folder)


def flipped_bits(header: bytes, count: int) -> list[int]:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(8 * len(header), (count,), generator=generator).tolist()


def test_flipped_bits_of_a_header_are_refused_or_change_nothing(folder, classifier, images):
    content = bytearray((folder / WEIGHTS).read_bytes())
    for bit in flipped_bits(content[: 8 + struct.unpack("<Q", content[:8])[0]], 40):
        content[bit // 8] ^= 1 << bit % 8
        (folder / WEIGHTS).write_bytes(content)
        content[bit // 8] ^= 1 << bit % 8
        try:
            loaded = load_proxy(str(folder))
        except InputError as error:
            assert "\n" not in str(error)
        else:
            torch.testing.assert_close(loaded.with_classes(CLASSES)(images), classifier(images))


def into_shards(folder):
    """Weights spread over two files, and their index, as a dictionary."""
    weights = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    places = {name: f"model-0000{1 + (number % 2)}-of-00002.safetensors" for number, name in enumerate(weights)}
    for shard in set(places.values()):
        save_file({name: weights[name] for name in weights if places[name] == shard}, folder / shard, {"format": "pt"})
    return {"metadata": {"total_size": 0}, "weight_map": places}


SHARD = "model-00002-of-00002.safetensors"
BAD_SHARDS = {
    "none": (lambda index, folder: index.update(weight_map={}), "weight_map must name the file of each weight"),
    "a list": (lambda index, folder: index.update(weight_map=[SHARD]), "weight_map must name the file of each weight"),
    "no text": (lambda index, folder: index.update(weight_map={"logit_scale": None}), "None is no file of weights"),
    "a pickle": (lambda index, folder: index["weight_map"].update(logit_scale="x.bin"), "'x.bin' is no file of weigh"),
    "elsewhere": (
        lambda index, folder: index["weight_map"].update(logit_scale="../x.safetensors"),
        "'../x.safetensors' is no file of weights beside it",
    ),
    "missing": (lambda index, folder: (folder / SHARD).unlink(), f"its file {SHARD} is missing"),
    "empty": (lambda index, folder: (folder / SHARD).write_bytes(b""), "header too small"),
    "half": (
        lambda index, folder: index.update(
            weight_map={name: file for name, file in index["weight_map"].items() if file != SHARD}
        ),
        "31 missing",
    ),
}


@pytest.mark.parametrize("kind", BAD_SHARDS)
def test_an_index_that_lies_is_refused(folder, kind):
    change, line = BAD_SHARDS[kind]
    index = into_shards(folder)
    change(index, folder)
    (folder / INDEX).write_text(json.dumps(index))
    assert line in refusal(folder)


def test_shards_that_are_whole_are_read(folder, classifier, images):
    (folder / INDEX).write_text(json.dumps(into_shards(folder)))
    torch.testing.assert_close(load_proxy(str(folder)).with_classes(CLASSES)(images), classifier(images))


# Of a tokenizer


def with_merges(folder):
    """Let the tokenizer have merges, of letters into the words of a prompt, and the text tower their tokens."""
    described = json.loads((folder / TOKENIZER).read_text())
    for word in ("photo", "heron", "grey", "this"):
        for end in range(2, len(word) + 1):
            pair = [word[: end - 1], word[end - 1] + "</w>" * (end == len(word))]
            described["model"]["merges"].append(pair)
            described["model"]["vocab"]["".join(pair)] = len(described["model"]["vocab"])
    return described


def save_with_merges(folder):
    described = with_merges(folder)
    (folder / TOKENIZER).write_text(json.dumps(described))
    weights, size = load_file(folder / WEIGHTS), len(described["model"]["vocab"])
    generator = torch.Generator().manual_seed(0)
    weights["text_model.embeddings.token_embedding.weight"] = torch.randn(size, 16, generator=generator)
    save_file(weights, folder / WEIGHTS, {"format": "pt"})
    set_values(folder / CONFIG, "text_config", vocab_size=size)
    return described


def test_a_tokenizer_with_merges_is_taken(folder):
    save_with_merges(folder)
    tokens = load_proxy(str(folder)).processor.tokenizer("heron this")["input_ids"]
    assert len(tokens) == 4


def without_merges(described):
    described["model"]["merges"] = []


def with_half_of_the_vocabulary(described):
    vocabulary = described["model"]["vocab"]
    described["model"]["vocab"] = {token: number for token, number in vocabulary.items() if number < 400}
    described["model"]["merges"] = []


def with_other_ids(described):
    described["model"]["vocab"] = {token: number + 10**6 for token, number in described["model"]["vocab"].items()}


def with_one_id(described):
    """Of tokens with one id, tokenizers keeps any: in rare cases one that a merge should make."""
    described["model"]["vocab"] = dict.fromkeys(described["model"]["vocab"], 5)


def without_letters(described):
    """What is left of the vocabulary has other tokens in their place, as after a flipped bit."""
    vocabulary = described["model"]["vocab"]
    kept = {token: number for token, number in vocabulary.items() if token[0] not in "aot" or token[0] == "<"}
    lost = {f"lost{number}": number for number in set(vocabulary.values()) - set(kept.values())}
    described["model"].update(vocab=kept | lost, merges=[])


BAD_TOKENIZERS = {
    "no merges": (without_merges, "tokens that none of its merges makes, such as 'ph'"),
    "half": (with_half_of_the_vocabulary, "tokenizer.json, or another file of it, is missing or incomplete"),
    "ids of another model": (with_other_ids, "Can't load|gives tokens that CLIPModel doesn't have"),
    "one id": (with_one_id, "none of its merges|doesn't know a part of each class prompt"),
    "no letters": (without_letters, "none of its merges|doesn't know a part of each class prompt"),
    "no vocabulary": (lambda described: described["model"].pop("vocab"), "Can't load the processor"),
    "no model": (lambda described: described.pop("model"), "Can't load the processor"),
    "another kind": (lambda described: described["model"].update(type="Own"), "Can't load the processor"),
}


@pytest.mark.parametrize("kind", BAD_TOKENIZERS)
def test_a_tokenizer_that_is_damaged_is_refused(folder, kind):
    change, lines = BAD_TOKENIZERS[kind]
    described = save_with_merges(folder)
    change(described)
    (folder / TOKENIZER).write_text(json.dumps(described))
    line = refusal(folder)
    assert any(part in line for part in lines.split("|")), line


def test_a_model_without_tokenizer_is_refused(folder):
    """transformers makes one of the special tokens alone, which gives every class the same tokens."""
    (folder / TOKENIZER).unlink()
    assert "has 2 tokens, but the text tower knows 514: tokenizer.json, or another file of it, is miss" in refusal(
        folder
    )


@pytest.mark.parametrize("length", ["77", 0, -1, [77], True, "inf", 1.5])
def test_a_tokenizer_of_no_length_is_refused(folder, length):
    set_values(folder / "tokenizer_config.json", model_max_length=length)
    assert "has the model_max_length" in refusal(folder)


@pytest.mark.parametrize("token", ["eos_token", "bos_token"])
@pytest.mark.parametrize("value", [5, ["x"], {"a": 1}])
def test_special_tokens_that_are_none_are_refused(folder, token, value):
    set_values(folder / "tokenizer_config.json", **{token: value})
    assert "Can't load the processor" in refusal(folder)


@pytest.mark.parametrize("token", ["bos_token", "eos_token", "pad_token", "unk_token"])
@pytest.mark.parametrize("value", ["a", "x</w>", ""])
def test_special_tokens_that_are_letters_are_refused(folder, token, value):
    """They would be cut out of every word that has them."""
    set_values(folder / "tokenizer_config.json", **{token: value})
    assert f"has the special token '{value}', which would be cut out of words" in refusal(folder)


def test_a_tokenizer_that_does_not_pad_is_refused(folder):
    set_values(folder / "tokenizer_config.json", pad_token=None)
    assert "has no pad_token" in refusal(folder)


def test_another_end_of_prompts_is_refused(folder):
    """CLIP pools at its configuration's `eos_token_id`: without it, at the first token, or at the first pad."""
    set_values(folder / "tokenizer_config.json", eos_token="!")
    assert "The text tower pools at token 513, the eos_token_id of its configuration, but" in refusal(folder)


@pytest.mark.parametrize(
    ("token", "line"),
    [("pad_token", "The tokenizer gives tokens that CLIPModel doesn't have"), ("eos_token", "index out of range")],
)
def test_special_tokens_beyond_the_vocabulary_are_refused(folder, token, line):
    set_values(folder / "tokenizer_config.json", **{token: "<new>"})
    assert line in refusal(folder)


class HalfAlphabet:
    """A tokenizer that knows the letters from a to m."""

    model_max_length, unk_token_id, pad_token_id = 77, 1, 0

    def __call__(self, texts, **settings):
        ids = [[2, *(ord(letter) % 32 if letter < "n" else 1 for letter in text), 3] for text in texts]
        width = max(map(len, ids))
        padded = [row + [0] * (width - len(row)) for row in ids]
        return {"input_ids": torch.tensor(padded) if "return_tensors" in settings else ids}


def classify(names, tokenizer=None, template="{}"):
    model, processor = make_clip(0)
    model.text_model.eos_token_id = 3 if tokenizer else model.text_model.eos_token_id
    processor.tokenizer = tokenizer or processor.tokenizer
    return ZeroShotClassifier(model.eval(), processor, names, template).text_embeds()


def test_classes_of_the_same_tokens_are_refused():
    with pytest.raises(InputError, match="gives the prompts of 'bat' and 'bar' the same tokens"):
        classify(["bee", "bat", "bar"], HalfAlphabet())


def test_classes_that_are_cut_to_the_same_tokens_are_refused():
    with pytest.warns(UserWarning, match="are cut"), pytest.raises(InputError, match="or the prompts are cut before"):
        classify(["a" * 100 + "cat", "a" * 100 + "dog"])


class WithoutPunctuation(HalfAlphabet):
    """One that leaves out punctuation and accents, as SigLIP's and BERT's do."""

    def __call__(self, texts, **settings):
        return super().__call__([text.replace("é", "e").rstrip("+-").lower() for text in texts], **settings)


@pytest.mark.parametrize("names", [["c", "c++"], ["bed", "béd"], ["be+", "be-"], ["BE+", "be"]])
def test_classes_that_differ_by_what_tokenizers_leave_out_are_said(names):
    with pytest.warns(UserWarning, match="doesn't tell apart"):
        classify(names, WithoutPunctuation())


def test_classes_that_differ_by_case_alone_are_said():
    """CLIP's tokenizer lowers it."""
    with pytest.warns(UserWarning, match=r"doesn't tell apart: \['Cat', 'cat'\]"):
        embeds = classify(["Cat", "cat", "dog"])
    torch.testing.assert_close(embeds[0], embeds[1])


def test_classes_of_one_name_are_said_as_before(recwarn):
    classify(["crane", "crane", "dog"])
    assert [str(warning.message) for warning in recwarn] == [
        "Class names given more than once, which no prompt can tell apart: ['crane']."
    ]


def test_parts_that_the_tokenizer_does_not_know_are_said():
    with pytest.warns(
        UserWarning, match="1 of 2 class prompts have parts that the tokenizer doesn't know, such as 'cat'"
    ):
        classify(["cat", "bee"], HalfAlphabet())
    with pytest.raises(InputError, match="doesn't know a part of each class prompt, such as 'to bee'"):
        classify(["bee", "eel"], HalfAlphabet(), "to {}")


# Of an image processor

BAD_IMAGES = [
    ("image_mean", [0.5, 0.5], "a number for each of three channels"),
    ("image_mean", [0.5] * 4, "a number for each of three channels"),
    ("image_mean", "0.5", "a number for each of three channels"),
    ("image_mean", 0.5, "a number for each of three channels"),
    ("image_mean", [None] * 3, "must have numbers."),
    ("image_mean", ["a", "b", "c"], "must have numbers."),
    ("image_mean", [True] * 3, "must have numbers."),
    ("image_mean", [[1], [2], [3]], "must have numbers."),
    ("image_std", [0.0, 0.5, 0.5], "must have numbers above 0."),
    ("image_std", [-0.5] * 3, "must have numbers above 0."),
    ("image_std", [], "a number for each of three channels"),
    ("rescale_factor", 0, "must be a number above 0"),
    ("rescale_factor", -0.1, "must be a number above 0"),
    ("rescale_factor", "1/255", "must be a number above 0"),
    ("rescale_factor", [1], "must be a number above 0"),
    ("do_normalize", "yes", "do_normalize"),
    ("do_rescale", 1, "do_rescale"),
    ("crop_size", 10**6, "sides of 1 to 4096 pixels"),
    ("crop_size", {"height": 16, "width": 32}, "but models take square images"),
    ("crop_size", {"height": 0, "width": 0}, "sides of 1 to 4096 pixels"),
    ("crop_size", {"height": 16.5, "width": 16.5}, "sides of 1 to 4096 pixels"),
    ("crop_size", {"height": "16", "width": "16"}, "sides of 1 to 4096 pixels"),
    ("crop_size", {"side": 16}, "Can't load the processor|sides of"),
    ("crop_size", {"height": 8, "width": 8}, "makes images of 8 x 8 pixels, but CLIPModel takes 16 x 16"),
    ("size", {"shortest_edge": 10**9}, "sides of 1 to 4096 pixels"),
    ("size", {"shortest_edge": -1}, "sides of 1 to 4096 pixels"),
    ("image_processor_type", "Own", "Can't load the processor"),
    ("image_processor_type", 5, "Can't load the processor"),
]


@pytest.mark.parametrize(
    ("name", "value", "lines"), BAD_IMAGES, ids=[f"{name}={value}" for name, value, _ in BAD_IMAGES]
)
def test_image_processors_that_cannot_be_are_refused(folder, name, value, lines):
    set_values(folder / PROCESSOR, "image_processor", **{name: value})
    line = refusal(folder)
    assert any(part in line for part in lines.split("|")), line


def test_a_model_without_image_processor_is_refused(folder):
    (folder / PROCESSOR).unlink()
    assert "it has neither preprocessor_config.json nor processor_config.json" in refusal(folder)


# Of an adapter

BAD_ADAPTERS = [
    ("r", 10**9, "adapters of rank 1000000000, but its weights are of another"),
    ("r", 0, "adapters of rank 0"),
    ("r", "2", "adapters of rank '2'"),
    ("r", 3, "of another shape"),
    ("rank_pattern", {"fc1": 10**9}, "adapters of rank 1000000000"),
    ("lora_alpha", 0, "has the lora_alpha 0, but must have a number above 0"),
    ("lora_alpha", -1, "has the lora_alpha -1"),
    ("lora_alpha", "8", "has the lora_alpha '8'"),
    ("lora_alpha", 1e300, "weights are NaN or infinite"),
    ("peft_type", "OWN", "Can't load the adapter"),
    ("peft_type", None, "Can't load the adapter"),
    ("target_modules", "x", "doesn't fit its base"),
    ("target_modules", 5, "Can't load the adapter"),
    ("target_modules", "(", "Can't load the adapter"),
    ("base_model_name_or_path", 5, "doesn't say its base_model_name_or_path"),
    ("base_model_name_or_path", ["base"], "doesn't say its base_model_name_or_path"),
    ("base_model_name_or_path", "adapter", "an adapter whose base it is in turn"),
    ("use_dora", True, "missing"),
]


@pytest.mark.parametrize(
    ("name", "value", "line"), BAD_ADAPTERS, ids=[f"{name}={value}" for name, value, _ in BAD_ADAPTERS]
)
def test_adapters_that_cannot_be_are_refused(adapter, name, value, line):
    set_values(adapter / "adapter_config.json", **{name: value})
    assert line in refusal(adapter)


@pytest.mark.parametrize("number", ["nan", "inf"])
def test_adapters_with_nan_are_refused(adapter, number):
    weights = load_file(adapter / "adapter_model.safetensors")
    next(iter(weights.values()))[0, 0] = float(number)
    save_file(weights, adapter / "adapter_model.safetensors", {"format": "pt"})
    assert "weights are NaN or infinite, 1 of 24" in refusal(adapter)
