"""Zero-shot classification by any dual encoder of transformers, as a function of images in [0, 1].

    classifier = ZeroShotClassifier(model, processor, ["cat", "dog"])
    logits = classifier(images)  # (batch, 3, height, width) in [0, 1] -> (batch, 2)

Resizing and normalising happen inside, differentiably, so that an attack's eps means the same for every model.
"""

import copy
from functools import cached_property
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from hpt.errors import InputError
from hpt.models.families import check_dual_encoder, family_of
from hpt.models.lean import find_changes, view_with
from hpt.models.processors import check_processor, input_size, pixel_statistics, to_pixel_values
from hpt.models.tokens import check_told_apart, tokenize
from hpt.models.weights import in_eval_mode, plain_weights
from hpt.prompts import DEFAULT_TEMPLATE, check_class_names, check_templates, make_prompts


class Outputs(NamedTuple):
    """What a dual encoder makes of a batch of images over its class prompts.

    Args:
        logits (`torch.Tensor` of shape `(batch, classes)`, *optional*): `scale * cos(image, text) + bias`, at least
            float32; `None` of a classifier without classes.
        image_embeds (`torch.Tensor` of shape `(batch, dim)`): Embeddings of unit length.
        image_features (`torch.Tensor` of shape `(batch, dim)`): Embeddings before they are normalised.
        patch_embeds (`torch.Tensor` of shape `(batch, patches, dim)`, *optional*): Where asked for, patch tokens of
            the last layer, row by row, after the final norm and the projection, of unit length.
        patch_features (`torch.Tensor` of shape `(batch, patches, dim)`, *optional*): The same before they are
            normalised.
    """

    logits: torch.Tensor | None
    image_embeds: torch.Tensor
    image_features: torch.Tensor
    patch_embeds: torch.Tensor | None = None
    patch_features: torch.Tensor | None = None


class ZeroShotClassifier(nn.Module):
    """A dual encoder seen as a classifier over class prompts; a view: it shares the model's weights.

    For image `x` and class prompts `t`: `T(x, t) = scale * cos(image_embed(x), text_embed(t)) + bias`, where `scale`
    is `exp(logit_scale)` or `1 / temperature` and `bias` is zero for models without one.

    Args:
        model (`PreTrainedModel`):
            Any dual encoder of transformers (CLIP, SigLIP, MetaCLIP 2, ALIGN, AltCLIP, ...).
        processor (`ProcessorMixin`):
            Its processor: tokenizer, input size and normalisation.
        class_names (`list[str]`, *optional*):
            Names put into the template. Without them only [`with_classes`] can be used.
        template (`str`, `list[str]` or `dict[str, list[str]]`, *optional*, defaults to `"This is a photo of a {}"`):
            One or several prompt templates, or those of each class by its name; the embeddings of several are averaged
            on the unit sphere.
        image_mean, image_std (`list[float]`, *optional*):
            Normalisation per channel, instead of the processor's.

    Raises:
        InputError: if the model isn't a dual encoder, the processor isn't one for it, there are no class names, or a
            template doesn't take one.
    """

    keeps_template = False  # over other classes, whatever template they are given with

    def __init__(self, model, processor, class_names=None, template=DEFAULT_TEMPLATE, image_mean=None, image_std=None):
        super().__init__()
        check_dual_encoder(model)
        if next(model.parameters()).is_inference():
            raise InputError(
                "The model was made under torch.inference_mode, which rules out gradients: load it outside."
            )
        check_processor(model, processor)
        self.family = family_of(model)
        self.model = model
        self.processor = processor
        self.class_names = None if class_names is None else check_class_names(class_names)
        self.templates = check_templates(template)
        self.changes = find_changes(model)
        self.image_size = input_size(processor.image_processor)
        mean, std = pixel_statistics(processor.image_processor)
        mean = mean if image_mean is None else image_mean
        std = std if image_std is None else image_std
        with torch.inference_mode(False):  # or autograd couldn't use them later
            self.register_buffer("image_mean", torch.tensor(mean, device=model.device).view(3, 1, 1), persistent=False)
            self.register_buffer("image_std", torch.tensor(std, device=model.device).view(3, 1, 1), persistent=False)
        # The weights that class embeddings depend on
        self.text_parameters = [weight for part in self.family.text_modules(model) for weight in part.parameters()]
        self._cached_text_embeds, self._cached_for = None, None

    def with_classes(
        self, class_names: list[str], template: str | list[str] | dict[str, list[str]] | None = None
    ) -> "ZeroShotClassifier":
        """The same model and normalisation over other classes; of a subclass, which computes as it does.

        Weights and whatever else it holds are shared. A subclass that holds further classifiers extends this, and
        gives them the classes too.
        """
        keeps_own = template is None or self.keeps_template
        return self._view(check_class_names(class_names), self.templates if keeps_own else check_templates(template))

    def with_template(self, template: str | list[str]) -> "ZeroShotClassifier":
        """The same with prompts of its own, which it keeps over other classes, such as those of a proxy's training."""
        view = self._view(self.class_names, check_templates(template))
        view.keeps_template = True
        return view

    def _view(self, class_names: list[str] | None, templates: list[str]) -> "ZeroShotClassifier":
        view = copy.copy(self)
        view._modules, view._buffers = self._modules.copy(), self._buffers.copy()  # a view moves without the others
        view.class_names, view.templates = class_names, templates
        view._cached_text_embeds, view._cached_for = None, None
        vars(view).pop("prompt_tokens", None)  # those of the classes before
        return view

    def forward(self, images: torch.Tensor, text_embeds: torch.Tensor | None = None) -> torch.Tensor:
        """Class logits of images.

        Args:
            images (`torch.Tensor` of shape `(batch, 3, height, width)`): pixels in [0, 1], any size.
            text_embeds (`torch.Tensor` of shape `(num_classes, dim)`, *optional*): class embeddings with gradients,
                from [`encode_prompts`], to train the text tower. Otherwise [`text_embeds`] gives them, as constants.

        Returns:
            `torch.Tensor` of shape `(batch, num_classes)`: logits, at least float32.
        """
        return self.outputs(images, self.text_embeds() if text_embeds is None else text_embeds).logits

    def outputs(
        self, images: torch.Tensor, text_embeds: torch.Tensor | None = None, patches: bool = False
    ) -> "Outputs":
        """Logits and embeddings of images, and with `patches` of their patches; arguments as of [`forward`]."""
        seen = self._see(images, patches)
        return self.outputs_of(_pooled(seen), text_embeds, *self._patches(seen) if patches else ())

    def outputs_of(self, features: torch.Tensor, text_embeds: torch.Tensor | None = None, *patches) -> "Outputs":
        """Logits and embeddings of images whose features `(batch, dim)`, of [`image_features`], are known."""
        image_embeds = F.normalize(features, dim=-1)
        if text_embeds is None and self.class_names is not None:
            text_embeds = self.text_embeds()
        logits = None if text_embeds is None else self._logits(image_embeds, text_embeds)
        return Outputs(logits, image_embeds, features, *patches)

    def _logits(self, image_embeds: torch.Tensor, text_embeds: torch.Tensor) -> torch.Tensor:
        with torch.autocast(image_embeds.device.type, enabled=False):  # in float32 whatever the towers run in
            return self.logit_scale() * image_embeds @ text_embeds.to(image_embeds.dtype).T + self.logit_bias()

    def image_embeds(self, images: torch.Tensor) -> torch.Tensor:
        """Unit-length embeddings `(batch, dim)` of images `(batch, 3, height, width)` in [0, 1]."""
        return F.normalize(self.image_features(images), dim=-1)

    def image_features(self, images: torch.Tensor) -> torch.Tensor:
        """Embeddings `(batch, dim)` before they are normalised, in float32 or wider, of images in [0, 1]."""
        return _pooled(self._see(images))

    def _see(self, images: torch.Tensor, patches: bool = False):
        """What the model's `get_image_features` gives for images in [0, 1]; of patches, only with `patches`."""
        pixel_values = to_pixel_values(images, self.image_size, self.image_mean, self.image_std)
        lean = view_with(self.model, self.changes.patches if patches else self.changes.pooled)
        return self.family.image_features(lean, pixel_values.to(self.model.dtype))

    def _patches(self, seen) -> tuple[torch.Tensor, torch.Tensor]:
        """Embeddings of patches, of unit length and before, on the way that the class token takes to the image's."""
        norm, projection = self.family.patch_modules(self.model)
        features = _widened(projection(norm(seen.last_hidden_state[:, 1:])))  # without the class token
        return F.normalize(features, dim=-1), features

    def text_embeds(self) -> torch.Tensor:
        """Unit-length class embeddings `(num_classes, dim)` without gradients, cached while no text weight changes.

        They are computed outside autocast and without dropout, so that they don't depend on what asked for them first.
        """
        state = self._text_state()
        if state != self._cached_for:
            in_float32 = torch.autocast(self.model.device.type, enabled=False)
            for_autograd = torch.inference_mode(False)  # whatever asks first, an attack may use what is cached
            with for_autograd, torch.no_grad(), in_float32, in_eval_mode(self.family.text_modules(self.model)):
                self._cached_text_embeds, self._cached_for = self.encode_prompts(), state
        return self._cached_text_embeds

    def forget_text_embeds(self) -> None:
        """Compute [`text_embeds`] anew when they are next asked for: a fused optimizer changes text weights unseen."""
        self._cached_for = None

    def _text_state(self) -> tuple:
        return self.model.device, self.model.dtype, *(weight._version for weight in self.text_parameters)

    def encode_prompts(self, chunk_size: int = 256) -> torch.Tensor:
        """Class embeddings with gradients, `(num_classes, dim)`: the mean over the templates, of unit length again."""
        tokens = self.prompt_tokens
        tokens = {name: values.to(self.model.device, non_blocking=True) for name, values in tokens.items()}
        chunks = zip(*(values.split(chunk_size) for values in tokens.values()), strict=True)
        embeds = [
            F.normalize(_pooled(self.model.get_text_features(**dict(zip(tokens, chunk, strict=True)))), dim=-1)
            for chunk in chunks
        ]
        return F.normalize(torch.cat(embeds).unflatten(0, (-1, len(self.class_names))).mean(0), dim=-1)

    @cached_property
    def prompt_tokens(self) -> dict[str, torch.Tensor]:
        """Token ids of the class prompts, from [`tokenize`], which takes long for many classes and templates."""
        if self.class_names is None:
            raise InputError("This classifier has no classes yet: use with_classes([...]).")
        tokens = self.tokenize(make_prompts(self.templates, self.class_names))
        check_told_apart(self.class_names, tokens["input_ids"])
        return tokens

    def tokenize(self, prompts: list[str]) -> dict[str, torch.Tensor]:
        """Token ids of prompts on the CPU, cased and padded as the model needs it; a warning names one that is cut."""
        return tokenize(self.model, self.processor.tokenizer, prompts)

    @property
    def changes_case(self) -> bool:
        """Whether prompts with capitals give other tokens than the tokenizer by itself would."""
        tokenizer = self.processor.tokenizer
        return self.family.lower_case and tokenizer("A")["input_ids"] != tokenizer("a")["input_ids"]

    def logit_scale(self) -> torch.Tensor:
        """What the cosine is multiplied by: `exp(logit_scale)`, or `1 / temperature`; a scalar."""
        return self.family.logit_scale(self.model)

    def logit_bias(self) -> torch.Tensor | float:
        """What is added to every logit: SigLIP's bias, 0 for the others."""
        return self.family.logit_bias(self.model)


def _pooled(features) -> torch.Tensor:
    """The embeddings in `get_*_features`' output, which aren't normalised, in float32 or wider."""
    return _widened(features.pooler_output)


def _widened(embeds: torch.Tensor) -> torch.Tensor:
    """In float32 or wider."""
    return embeds.to(torch.promote_types(embeds.dtype, torch.float32))


@torch.inference_mode(False)
def frozen_copy(classifier: ZeroShotClassifier) -> ZeroShotClassifier:
    """The classifier over a frozen copy of its weights as they are now; of a PEFT model, without its adapters."""
    model = copy.deepcopy(classifier.model)
    if hasattr(model, "peft_config"):
        model = model.unload()
        model.load_state_dict(plain_weights(classifier.model))  # PEFT leaves trained copies of whole modules in it
    mean, std = classifier.image_mean.flatten().tolist(), classifier.image_std.flatten().tolist()
    model.requires_grad_(False).eval()
    return ZeroShotClassifier(model, classifier.processor, classifier.class_names, classifier.templates, mean, std)
