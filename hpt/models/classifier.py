"""Zero-shot classification by any dual encoder of transformers, as a function of images in [0, 1].

    classifier = ZeroShotClassifier(model, processor, ["cat", "dog"])
    logits = classifier(images)  # (batch, 3, height, width) in [0, 1] -> (batch, 2)

Resizing and normalising happen inside, differentiably, so that an attack's eps means the same for every model.
"""

import copy
import warnings
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from hpt.errors import InputError
from hpt.prompts import DEFAULT_TEMPLATE, check_class_names


# These models were trained on prompts padded to the full length and pool the last position, padding included.
PADDED_TO_FULL_LENGTH = {"siglip", "siglip2"}


def check_dual_encoder(model: nn.Module) -> None:
    """Raise [`InputError`] unless `model` embeds images and texts and has a logit scale or a temperature."""
    embeds_both = hasattr(model, "get_image_features") and hasattr(model, "get_text_features")
    if not embeds_both or not (hasattr(model, "logit_scale") or hasattr(model, "temperature")):
        raise InputError(
            f"{type(model).__name__} isn't a dual encoder: it needs get_image_features, get_text_features and a "
            "logit_scale or temperature, as CLIPModel, SiglipModel or AlignModel have."
        )
    if model.config.model_type == "siglip2":
        raise InputError(
            "Siglip2Model takes images cut into patches of varying number (NaFlex): use a SigLIP 2 of fixed size, "
            "such as google/siglip2-base-patch16-224."
        )


def input_size(image_processor) -> int:
    """Side length in pixels of the square images that a processor hands to its model."""
    size = image_processor.crop_size if getattr(image_processor, "do_center_crop", False) else image_processor.size
    size = dict(size)
    return size.get("height") or size["shortest_edge"]


def pixel_statistics(image_processor) -> tuple[list[float], list[float]]:
    """Mean and standard deviation per channel with which [0, 1] pixels become what a processor hands to its model.

    For 8-bit values `v = 255 x`, rescale factor `f`, offset `o` (1 in ALIGN's, 0 in the others), mean `m` and
    deviation `s`, processors give `((f v - o) - m) / s`, which is `(x - (o + m) / 255 f) / (s / 255 f)`.
    """
    mean, std, again = [0.0] * 3, [1.0] * 3, [1.0] * 3
    if image_processor.do_normalize:
        mean, std = image_processor.image_mean, image_processor.image_std
    # Only EfficientNet's processors, ALIGN's among them, have an offset and may divide once more
    if getattr(image_processor, "include_top", False):
        again = image_processor.image_std
    offset = 1.0 if getattr(image_processor, "rescale_offset", False) else 0.0
    scale = 255 * image_processor.rescale_factor if image_processor.do_rescale else 255.0
    return [(offset + one) / scale for one in mean], [s * a / scale for s, a in zip(std, again, strict=True)]


class Outputs(NamedTuple):
    """What a dual encoder makes of a batch of images over its class prompts.

    Args:
        logits (`torch.Tensor` of shape `(batch, classes)`): `scale * cos(image, text) + bias`, at least float32.
        image_embeds (`torch.Tensor` of shape `(batch, dim)`): Embeddings of unit length.
        image_features (`torch.Tensor` of shape `(batch, dim)`): Embeddings before they are normalised.
    """

    logits: torch.Tensor
    image_embeds: torch.Tensor
    image_features: torch.Tensor


class ZeroShotClassifier(nn.Module):
    """A dual encoder seen as a classifier over class prompts; a view: it shares the model's weights.

    For image `x` and class prompts `t`: `T(x, t) = scale * cos(image_embed(x), text_embed(t)) + bias`, where `scale`
    is `exp(logit_scale)` or `1 / temperature` and `bias` is zero for models without one.

    Args:
        model (`PreTrainedModel`):
            Any dual encoder of transformers (CLIP, SigLIP, MetaCLIP 2, ALIGN, AltCLIP, BLIP, ...).
        processor (`ProcessorMixin`):
            Its processor: tokenizer, input size and normalisation.
        class_names (`list[str]`, *optional*):
            Names put into the template. Without them only [`with_classes`] can be used.
        template (`str` or `list[str]`, *optional*, defaults to `"This is a photo of a {}"`):
            One or several prompt templates; the embeddings of several are averaged on the unit sphere.
        image_mean, image_std (`list[float]`, *optional*):
            Normalisation per channel, instead of the processor's.

    Raises:
        InputError: if the model isn't a dual encoder, there are no class names, or a template has no `{}`.
    """

    def __init__(self, model, processor, class_names=None, template=DEFAULT_TEMPLATE, image_mean=None, image_std=None):
        super().__init__()
        check_dual_encoder(model)
        self.model = model
        self.processor = processor
        self.class_names = None if class_names is None else check_class_names(class_names)
        self.templates = [template] if isinstance(template, str) else list(template)
        for one in self.templates:
            if "{}" not in one:
                raise InputError(f"The prompt template {one!r} has no {{}} where the class name goes.")
        self.image_size = input_size(processor.image_processor)
        mean, std = pixel_statistics(processor.image_processor)
        mean = mean if image_mean is None else image_mean
        std = std if image_std is None else image_std
        self.register_buffer("image_mean", torch.tensor(mean, device=model.device).view(3, 1, 1), persistent=False)
        self.register_buffer("image_std", torch.tensor(std, device=model.device).view(3, 1, 1), persistent=False)
        self._text_parameters = [parameter for name, parameter in model.named_parameters() if "text" in name]
        self._cached_text_embeds, self._cached_for = None, None

    def with_classes(self, class_names: list[str], template: str | list[str] | None = None) -> "ZeroShotClassifier":
        """The same model and normalisation over other classes."""
        mean, std = self.image_mean.flatten().tolist(), self.image_std.flatten().tolist()
        return ZeroShotClassifier(self.model, self.processor, class_names, template or self.templates, mean, std)

    def forward(self, images: torch.Tensor, text_embeds: torch.Tensor | None = None) -> torch.Tensor:
        """Class logits of images.

        Args:
            images (`torch.Tensor` of shape `(batch, 3, height, width)`): pixels in [0, 1], any size.
            text_embeds (`torch.Tensor` of shape `(num_classes, dim)`, *optional*): class embeddings with gradients,
                from [`encode_anew`], to train the text tower. Otherwise [`text_embeds`] gives them, as constants.

        Returns:
            `torch.Tensor` of shape `(batch, num_classes)`: logits, at least float32.
        """
        return self.outputs(images, text_embeds).logits

    def outputs(self, images: torch.Tensor, text_embeds: torch.Tensor | None = None) -> "Outputs":
        """Logits and embeddings of images; arguments as of [`forward`]."""
        features = self.image_features(images)
        image_embeds = F.normalize(features, dim=-1)
        text_embeds = self.text_embeds() if text_embeds is None else text_embeds
        with torch.autocast(images.device.type, enabled=False):  # logits keep float32 whatever the towers run in
            logits = self.logit_scale() * image_embeds @ text_embeds.to(image_embeds.dtype).T + self.logit_bias()
        return Outputs(logits, image_embeds, features)

    def image_embeds(self, images: torch.Tensor) -> torch.Tensor:
        """Unit-length embeddings `(batch, dim)` of images `(batch, 3, height, width)` in [0, 1]."""
        return F.normalize(self.image_features(images), dim=-1)

    def image_features(self, images: torch.Tensor) -> torch.Tensor:
        """Embeddings `(batch, dim)` before they are normalised, in float32 or wider, of images in [0, 1]."""
        if images.shape[-2:] != (self.image_size, self.image_size):
            images = F.interpolate(images, (self.image_size, self.image_size), mode="bicubic", antialias=True)
        pixel_values = (images - self.image_mean) / self.image_std
        return _pooled(self.model.get_image_features(pixel_values=pixel_values.to(self.model.dtype)))

    def text_embeds(self) -> torch.Tensor:
        """Unit-length class embeddings `(num_classes, dim)` without gradients, cached while no text weight changes.

        They are computed outside autocast, so that they don't depend on what asked for them first.
        """
        state = self._text_state()
        if state != self._cached_for:
            with torch.no_grad(), torch.autocast(self.model.device.type, enabled=False):
                self._cached_text_embeds, self._cached_for = self.encode_prompts(), state
        return self._cached_text_embeds

    def encode_anew(self) -> torch.Tensor:
        """Class embeddings with gradients; until a text weight changes, [`text_embeds`] are these without.

        While the text tower trains, this belongs into every step: a fused optimizer changes weights unseen.
        """
        embeds = self.encode_prompts()
        self._cached_text_embeds, self._cached_for = embeds.detach(), self._text_state()
        return embeds

    def _text_state(self) -> tuple:
        parameters = self._text_parameters
        return parameters[0].device, parameters[0].dtype, *(parameter._version for parameter in parameters)

    def encode_prompts(self, chunk_size: int = 256) -> torch.Tensor:
        """Class embeddings `(num_classes, dim)`: per class the mean over the templates, back on the unit sphere."""
        if self.class_names is None:
            raise InputError("This classifier has no classes yet: use with_classes([...]).")
        tokens = self.tokenize([template.format(name) for template in self.templates for name in self.class_names])
        chunks = zip(*(values.to(self.model.device).split(chunk_size) for values in tokens.values()), strict=True)
        embeds = [
            F.normalize(_pooled(self.model.get_text_features(**dict(zip(tokens, chunk, strict=True)))), dim=-1)
            for chunk in chunks
        ]
        return F.normalize(torch.cat(embeds).unflatten(0, (len(self.templates), -1)).mean(0), dim=-1)

    def tokenize(self, prompts: list[str]) -> dict[str, torch.Tensor]:
        """Token ids of prompts, padded as the model needs it, on the CPU; a warning names one that is cut."""
        tokenizer = self.processor.tokenizer
        longest = min(tokenizer.model_max_length, self.model.config.text_config.max_position_embeddings)
        lengths = [len(ids) for ids in tokenizer(prompts)["input_ids"]]
        if max(lengths) > longest:
            warnings.warn(
                f"{sum(length > longest for length in lengths)} of {len(prompts)} class prompts are longer than the "
                f"text tower's {longest} tokens and are cut, such as {prompts[lengths.index(max(lengths))]!r}.",
                stacklevel=2,
            )
        padding = "max_length" if self.model.config.model_type in PADDED_TO_FULL_LENGTH else "longest"
        return dict(tokenizer(prompts, padding=padding, truncation=True, max_length=longest, return_tensors="pt"))

    def logit_scale(self) -> torch.Tensor:
        """What the cosine is multiplied by: `exp(logit_scale)`, or `1 / temperature`; a scalar."""
        if hasattr(self.model, "temperature"):  # ALIGN
            return 1 / self.model.temperature
        return self.model.logit_scale.exp()

    def logit_bias(self) -> torch.Tensor | float:
        """What is added to every logit: SigLIP's bias, 0 for the others."""
        return self.model.logit_bias if hasattr(self.model, "logit_bias") else 0.0


def _pooled(features) -> torch.Tensor:
    """The embeddings in `get_*_features`' output, which aren't normalised, in float32 or wider."""
    embeds = features.pooler_output
    return embeds.to(torch.promote_types(embeds.dtype, torch.float32))


def frozen_copy(classifier: ZeroShotClassifier) -> ZeroShotClassifier:
    """The classifier over a frozen copy of its weights as they are now; of a PEFT model, without its adapters."""
    model = copy.deepcopy(classifier.model)
    model = model.unload() if hasattr(model, "peft_config") else model
    mean, std = classifier.image_mean.flatten().tolist(), classifier.image_std.flatten().tolist()
    model.requires_grad_(False).eval()
    return ZeroShotClassifier(model, classifier.processor, classifier.class_names, classifier.templates, mean, std)
