"""Dual encoders from the Hub or the disk: targets, and proxies, frozen ones of another architecture.

What is incomplete or doesn't fit is refused: transformers would fill the gaps with random numbers.
"""

import re
import warnings
from contextlib import nullcontext
from os.path import expanduser
from pathlib import Path

import torch

from hpt.errors import InputError, TrainingStopped
from hpt.files import filled_at_once, named_if_it_fails
from hpt.models.classifier import ZeroShotClassifier
from hpt.models.conversion.options import ConversionOptions
from hpt.models.converted import cached_conversion, check_options
from hpt.models.failures import failures_explained, without_report
from hpt.models.families import check_dual_encoder, family_of
from hpt.models.files import (
    CONFIG,
    check_model_type,
    drop_own_code,
    find_file,
    read_json,
    read_settings,
    read_weight_headers,
)
from hpt.models.positions import with_image_size
from hpt.models.processors import check_processor, input_size
from hpt.models.proxies import ORIGINAL
from hpt.models.sources import check_source, is_checkpoint
from hpt.models.tokens import check_tokenizer
from hpt.models.weights import check_complete, check_finite, find_non_finite
from hpt.references import IMAGE_SIZE, Reference


# What DataParallel and torch.compile put before the names of a model's weights
WRAPPERS = r"^(?:module\.|_orig_mod\.)+"
TOKENIZER = "tokenizer.json"
OF_PROCESSOR = {"processor_config.json", "preprocessor_config.json"}  # an adapter without has its base's processor


def load_proxy(
    name: str,
    revision: str | None = None,
    dtype: torch.dtype = torch.float32,
    image_size: int | None = None,
    conversion: ConversionOptions | None = None,
) -> ZeroShotClassifier:
    """Load a proxy `P` as a frozen classifier in eval mode; whoever uses it gives it classes with `with_classes`.

    Args:
        name (`str`): Hub id or local path of any dual encoder of transformers, or of an adapter on one; or of a
            checkpoint that is converted, as of [`load_dual_encoder`].
        revision (`str`, *optional*): Branch, tag or commit on the Hub.
        dtype (`torch.dtype`, *optional*, defaults to `torch.float32`): dtype of its weights.
        image_size (`int`, *optional*): Side of the images that it takes in pixels, instead of its own, as of
            [`~hpt.models.positions.with_image_size`].
        conversion ([`ConversionOptions`], *optional*): Of a checkpoint that is converted, what it doesn't say itself.

    Raises:
        InputError: when it can't be loaded whole or isn't a dual encoder.
    """
    return _freeze(*load_dual_encoder(name, revision, dtype, image_size, conversion))


def _freeze(model, processor) -> ZeroShotClassifier:
    return ZeroShotClassifier(model.requires_grad_(False).eval(), processor)


def load_named(reference: Reference, device: torch.device) -> tuple[str, ZeroShotClassifier]:
    """A model as recipes name it, from [`~hpt.references.parse_model`]: its name, and it frozen on its device."""
    return reference.name, _freeze(*load_reference(reference)).to(device)


def load_reference(reference: Reference, dtype: torch.dtype = torch.float32):
    """A model as recipes name it, with its settings, and its processor; see [`load_dual_encoder`]."""
    image_size = reference.settings.get(IMAGE_SIZE)
    options = ConversionOptions.parse(reference.settings)
    return load_dual_encoder(reference.source, reference.revision, dtype, image_size and int(image_size), options)


def load_teacher(reference: Reference, dtype: torch.dtype) -> ZeroShotClassifier | str:
    """A proxy as recipes name it, from [`parse_proxies`], in the form that `HPTTrainer` takes it."""
    if reference.place == ORIGINAL:
        return ORIGINAL
    proxy = _freeze(*load_reference(reference, dtype))
    return proxy.with_template(template) if (template := reference.settings.get("template")) else proxy


@torch.inference_mode(False)  # attacks follow gradients through what is loaded
def load_dual_encoder(
    name: str,
    revision: str | None = None,
    dtype: torch.dtype = torch.float32,
    image_size: int | None = None,
    conversion: ConversionOptions | None = None,
):
    """Load a dual encoder and its processor from the Hub or a local folder, safetensors only.

    An adapter of PEFT is merged into its base, which its `adapter_config.json` names. A CLIP of open_clip
    (`hf-hub:OWNER/NAME`, or its folder) and a file with a state dict are converted first, into a cache, as of
    [`~hpt.models.converted.cached_conversion`].

    Args:
        name (`str`): Hub id or local path.
        revision (`str`, *optional*): Branch, tag or commit on the Hub.
        dtype (`torch.dtype`, *optional*, defaults to `torch.float32`): dtype of the weights, whatever was saved.
        image_size, conversion (*optional*): As of [`load_proxy`].

    Returns:
        `tuple`: the model, in eval mode, and its processor; `model.config._commit_hash` tells the commit on the Hub.

    Raises:
        InputError: when it can't be found or reached, is gated, isn't a dual encoder, or lacks weights.
    """
    name = expanduser(name)
    conversion = conversion or ConversionOptions()
    check_options(name, conversion)
    return _load(name, revision, dtype, (), image_size, conversion)


def _load(
    name: str,
    revision: str | None,
    dtype: torch.dtype,
    above: tuple[str, ...],
    image_size: int | None = None,
    conversion: ConversionOptions | None = None,
):
    """As [`load_dual_encoder`]; the base of adapters `above`, of which each is the base of the one before."""
    from transformers.utils import cached_file, find_adapter_config_file

    check_source(name)
    if is_checkpoint(name):
        folder = cached_conversion(name, revision, conversion or ConversionOptions(), load_dual_encoder)
        name, revision = str(folder), None
    if name in above:
        raise InputError(f"Its base is {name}, an adapter whose base it is in turn.")
    with failures_explained("model", name):
        adapter = find_adapter_config_file(name, revision=revision)
        if adapter is None:  # without a Hub, the first file that a model must have says so, after half a minute
            cached_file(name, CONFIG, revision=revision)
        settings = read_settings(name, revision)
    if adapter is None:
        model, processor, config = _load_model(name, revision, dtype, settings)
    else:
        model, processor, config = *_load_adapter(name, revision, dtype, settings, above), Path(adapter)
    if image_size is not None:
        model, processor = with_image_size(model, processor, image_size)
    _check_use(name, model, processor)
    model.config._commit_hash = None if Path(name).is_dir() else config.parent.name
    return model, processor


def _load_model(name: str, revision: str | None, dtype: torch.dtype, settings: dict[str, dict]):
    """Model, processor, and the file of its configuration."""
    from transformers import AutoModel
    from transformers.utils import cached_file

    if CONFIG in settings:
        check_model_type(name, settings)
    # Not by commit: of a repository without safetensors, the Hub's conversion is taken for a branch only
    options = {"revision": revision, "dtype": dtype, "use_safetensors": True}
    options |= {"output_loading_info": True, "ignore_mismatched_sizes": True}  # what doesn't fit is refused below
    with failures_explained("model", name, settings), without_report():
        headers = read_weight_headers(name, revision)
        with headers.bounding(name) if headers else nullcontext():
            model, report = AutoModel.from_pretrained(name, trust_remote_code=False, **options)
            if any(re.match(WRAPPERS, key) for key in report["unexpected_keys"]):
                prefixed = f"The names of weights in {name} begin with module. or _orig_mod., which is left out."
                warnings.warn(prefixed, stacklevel=4)
                options["key_mapping"] = {WRAPPERS: ""}
                model, report = AutoModel.from_pretrained(name, trust_remote_code=False, **options)
        config = Path(cached_file(name, CONFIG, revision=revision))
    check_dual_encoder(model)
    weights, shapes = model.state_dict(), {key: shape for key, shape, _ in report["mismatched_keys"]}
    check_complete(name, weights, report["missing_keys"], report["unexpected_keys"], shapes)
    if headers:
        headers.check_types(name, weights)
    check_finite(name, weights)
    return model, _load_processor(name, revision, settings), config


def _load_adapter(name: str, revision: str | None, dtype: torch.dtype, settings: dict[str, dict], above: tuple):
    """The base with an adapter merged into it, and the adapter's own processor, or else the base's."""
    from hpt.models.lora import merge_saved, read_adapter

    with failures_explained("adapter", name):
        config, weights = read_adapter(name, revision)
    try:
        model, processor = _load(config.base_model_name_or_path, config.revision, dtype, (*above, name))
    except InputError as error:
        raise InputError(
            f"{name} is an adapter, and its base can't be had. {error} Write the base's path or Hub id into its "
            "adapter_config.json, as base_model_name_or_path."
        ) from error
    with failures_explained("adapter", name):
        model = merge_saved(name, model, config, weights)
    check_finite(name, model.state_dict())
    model.name_or_path = name
    return model, _load_processor(name, revision, settings) if OF_PROCESSOR & settings.keys() else processor


def _load_processor(name: str, revision: str | None, settings: dict[str, dict]):
    from transformers import AutoProcessor

    if not OF_PROCESSOR & settings.keys():
        raise InputError(
            f"Can't load the processor {name!r}: it has neither {' nor '.join(sorted(OF_PROCESSOR))}. Take a complete "
            "copy."
        )
    with failures_explained("processor", name, settings):
        try:
            return AutoProcessor.from_pretrained(name, revision=revision, trust_remote_code=False)
        except Exception:
            if tokenizer := find_file(name, TOKENIZER, revision):
                read_json(tokenizer)  # the error doesn't name the file
            raise


@torch.no_grad()
def _check_use(name: str, model, processor) -> None:
    """Try a model on a grey image and a short text: some damage only shows there."""
    with failures_explained("model", name):
        check_processor(model, processor)
        check_tokenizer(name, model, processor.tokenizer)
        side = input_size(processor.image_processor)
        image = torch.zeros(1, 3, side, side, dtype=model.dtype)
        tokens = processor.tokenizer("0", return_tensors="pt")
        family = family_of(model)
        outputs = family.image_features(model, image), model.get_text_features(**tokens)
        image_features, text_features = (output.pooler_output for output in outputs)
        scale = family.logit_scale(model)
    if image_features.shape != text_features.shape:
        raise InputError(
            f"Can't load the model {name!r}: its embeddings of images have {image_features.shape[-1]} dimensions, but "
            f"those of texts {text_features.shape[-1]}. Take a complete copy."
        )
    if not all(values.isfinite().all() for values in (image_features, text_features, scale)):
        raise InputError(
            f"Can't load the model {name!r}: it gives NaN or infinity for any image or text. Take a sound copy."
        )


def load_saved_weights(model, folder: str | Path) -> None:
    """Give a plain model the weights that were saved of it in a folder, whatever their names are in the file.

    `save_pretrained` renames some, such as those of a DINOv2's attention, which `load_state_dict` wouldn't find.

    Raises:
        InputError: if not all of its weights are there.
    """
    options = {"dtype": model.dtype, "use_safetensors": True, "output_loading_info": True}
    with without_report():
        saved, report = type(model).from_pretrained(folder, **options)
    weights = saved.state_dict()
    check_complete(str(folder), weights, report["missing_keys"], report["unexpected_keys"], {})
    model.load_state_dict(weights)


def save_finished(model, processor, folder: str | Path) -> None:
    """Save model and processor so that a folder holds the model's configuration only once everything else is in it.

    Raises:
        TrainingStopped: if weights aren't finite, as those of adapters that were merged may not be.
        WriteFailed: if the folder can't be written, of which nothing but the configuration is changed then.
    """
    if broken := find_non_finite(model.state_dict()):
        raise TrainingStopped(f"{folder} isn't written: weights of the model are NaN or infinite, {broken}.")
    folder, marker = Path(folder), "adapter_config.json" if hasattr(model, "peft_config") else CONFIG
    with named_if_it_fails(folder):
        (folder / marker).unlink(missing_ok=True)
    # For a full disk, safetensors and tokenizers raise errors of their own
    with filled_at_once(folder, last=marker) as incomplete, named_if_it_fails(folder, Exception):
        model.save_pretrained(incomplete)
        processor.save_pretrained(incomplete)
        drop_own_code(incomplete)
        (incomplete / "README.md").unlink(missing_ok=True)  # PEFT's, which would replace the card that is there
