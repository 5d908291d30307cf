"""The vision tower of a robust CLIP or SigLIP in a vision-language model, and that model as a function of images.

    vlm = LlavaForConditionalGeneration.from_pretrained("llava-hf/llava-1.5-7b-hf")
    processor = AutoProcessor.from_pretrained("llava-hf/llava-1.5-7b-hf")
    swap_vision_tower(vlm, load_proxy("me/robust-clip-vit-large-patch14-336"), processor=processor)
    vlm.save_pretrained("robust_llava")

    prompted = PromptedVLM(vlm, processor, "USER: <image>\\nWhat is this? ASSISTANT:")
    answers = prompted.decode(images, max_tokens=20)  # (batch, 20) token ids, of images in [0, 1]
    pgd = PGD(eps=4 / 255, loss=lambda losses, labels: losses)
    adversarial = pgd(partial(prompted.losses, answers=answers), images, labels=[0] * len(images))

It was tried on models of random weights alone.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn
from transformers import LlavaForConditionalGeneration, LlavaNextForConditionalGeneration

from hpt.errors import InputError
from hpt.models.classifier import ZeroShotClassifier
from hpt.models.processors import input_size, pixel_statistics, to_pixel_values
from hpt.models.weights import describe_names


HOSTS = (LlavaForConditionalGeneration, LlavaNextForConditionalGeneration)
CLASS_TOKENS = {"clip_vision_model": 1, "siglip_vision_model": 0}  # by a tower's model_type, its tokens before patches
# What a tower computes with beside its weights
SHAPE = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_channels")
SHAPE += ("image_size", "patch_size", "hidden_act", "layer_norm_eps")
NO_TOKEN = -100  # what stands in answers behind their end, as in transformers' labels


def swap_vision_tower(vlm: nn.Module, robust: nn.Module, *, processor=None) -> nn.Module:
    """Give a LLaVA the weights of a robust model's vision tower, of the same kind and shape as its own.

    The tower keeps its dtype, device and `requires_grad`, and shares nothing with the robust model. What comes behind
    it, projector and language model, stays as it is. All is checked before a weight changes.

    Args:
        vlm (`LlavaForConditionalGeneration` or `LlavaNextForConditionalGeneration`): The host, which is changed. Its
            vision tower is a CLIP's or a SigLIP's.
        robust ([`ZeroShotClassifier`] or `PreTrainedModel`): What [`~hpt.models.loading.load_proxy`] gives, or a plain
            model that has such a tower or is one, such as a `CLIPModel`.
        processor (`ProcessorMixin`, *optional*): The host's. With it, its image size and its placeholders are checked
            too, and, against a [`ZeroShotClassifier`], by which mean and deviation it normalises pixels.

    Returns:
        `nn.Module`: the same `vlm`.

    Raises:
        InputError: with a line for each thing that doesn't fit; `vlm` is as it was.
    """
    tower = _tower_of(vlm)
    model = robust.model if isinstance(robust, ZeroShotClassifier) else robust
    donor = next((module for module in model.modules() if type(module) is type(tower)), None)
    if donor is None:
        raise InputError(
            f"{type(model).__name__} has no {type(tower).__name__}, which is the vision tower of {type(vlm).__name__}."
        )
    faults = [*_other_shapes(tower, donor), *_unusable_weights(tower, donor), *_wrong_features(vlm.config)]
    if processor is not None:
        faults += _wrong_processor(vlm.config, processor)
        if isinstance(robust, ZeroShotClassifier):
            faults += _other_statistics(processor, robust)
    if faults:
        listed = "".join(f"\n- {fault}" for fault in faults)
        raise InputError(f"The vision tower of {type(model).__name__} doesn't fit {type(vlm).__name__}:{listed}")
    weights = donor.state_dict()
    tower.load_state_dict({name: weights[name] for name in tower.state_dict()})  # a SigLIP's may lack the head
    return vlm


def _tower_of(vlm: nn.Module) -> nn.Module:
    """The vision tower of a host; [`InputError`] if it is no host, or its tower of another kind."""
    if not isinstance(vlm, HOSTS):
        names = " or a ".join(host.__name__ for host in HOSTS)
        raise InputError(f"The host is a {type(vlm).__name__}, but must be a {names}; merge its adapters, if it has.")
    if vlm.config.vision_config.model_type not in CLASS_TOKENS:
        raise InputError(
            f"The vision tower of {type(vlm).__name__} is of the model_type {vlm.config.vision_config.model_type!r}, "
            f"but must be of {' or '.join(CLASS_TOKENS)}."
        )
    return vlm.model.vision_tower


def _other_shapes(tower: nn.Module, donor: nn.Module) -> Iterator[str]:
    for name in SHAPE:
        own, given = getattr(tower.config, name), getattr(donor.config, name)
        if own != given:
            hint = f": load_proxy(name, image_size={own}) resizes its position embeddings" * (name == "image_size")
            yield f"its {name} is {given!r}, but the host's {own!r}{hint}."


def _unusable_weights(tower: nn.Module, donor: nn.Module) -> Iterator[str]:
    """What keeps weights from being copied although the configurations agree."""
    own, given = tower.state_dict(), donor.state_dict()
    for whose, weights in (("the host's", own), ("its", given)):
        packed = {name for name, weight in weights.items() if weight.is_meta or not weight.is_floating_point()}
        if packed:
            yield (
                f"{len(packed)} of {whose} {len(weights)} weights are offloaded or quantised "
                f"({describe_names(packed)}): load them in a floating-point dtype, onto a device."
            )
    if lacking := own.keys() - given.keys():
        yield (
            f"it lacks {len(lacking)} of {len(own)} weights ({describe_names(lacking)}): if it has adapters, merge "
            "them by merge_and_unload()."
        )


def _num_features(config) -> int:
    """Tokens that the tower makes of an image for the language model, of a LLaVA-NeXT for each of its tiles."""
    vision = config.vision_config
    with_class_token = config.vision_feature_select_strategy == "full"
    return (vision.image_size // vision.patch_size) ** 2 + CLASS_TOKENS[vision.model_type] * with_class_token


def _wrong_features(config) -> Iterator[str]:
    """Where a host's configuration asks for other features than a tower of its kind and shape has."""
    vision, depth = config.vision_config, config.vision_config.num_hidden_layers
    layers = config.vision_feature_layer
    for layer in [layers] if isinstance(layers, int) else layers:
        if not -depth - 1 <= layer <= depth:
            yield f"the host's vision_feature_layer is {layer}, but the tower has {depth} layers."
    if config.vision_feature_select_strategy == "default" and not CLASS_TOKENS[vision.model_type]:
        yield (
            "the host's vision_feature_select_strategy is 'default', which drops the class token, but the tower has "
            "none, and would lose a patch: 'full' keeps all."
        )
    elif config.image_seq_length != _num_features(config):
        yield f"the host's image_seq_length is {config.image_seq_length}, but the tower makes {_num_features(config)}."


def _wrong_processor(config, processor) -> Iterator[str]:
    """Where a host's processor makes other images or numbers of placeholders than its tower takes and makes."""
    vision = config.vision_config
    if (side := input_size(processor.image_processor)) != vision.image_size:
        yield f"the processor makes images of {side} pixels, but the tower takes {vision.image_size}."
    expected = {
        "patch_size": vision.patch_size,
        "vision_feature_select_strategy": config.vision_feature_select_strategy,
        "num_additional_image_tokens": CLASS_TOKENS[vision.model_type],
    }
    for name, value in expected.items():
        if getattr(processor, name) != value:
            yield f"the processor's {name} is {getattr(processor, name)!r}, but the host needs {value!r}."


def _other_statistics(processor, robust: ZeroShotClassifier) -> Iterator[str]:
    expected = robust.image_mean.flatten(), robust.image_std.flatten()
    given = [torch.tensor(values).to(expected[0]) for values in pixel_statistics(processor.image_processor)]
    for name, own, robusts in zip(("mean", "deviation"), given, expected, strict=True):
        if not torch.allclose(own, robusts, rtol=0, atol=1e-6):
            own, robusts = (", ".join(f"{value:.4g}" for value in values.tolist()) for values in (own, robusts))
            yield f"the processor normalises pixels by a {name} of ({own}), but the robust model by ({robusts})."


class PromptedVLM:
    """A LLaVA that is asked one thing about images in [0, 1]: features, answers, and the loss of given answers.

    Resizing and normalising happen inside, differentiably, as in a [`ZeroShotClassifier`].

    Args:
        vlm (`LlavaForConditionalGeneration`): Any, in eval mode. LLaVA-NeXT cuts images into tiles, which isn't done
            here.
        processor (`ProcessorMixin`): Its processor: tokenizer, input size and normalisation.
        prompt (`str`): With one placeholder of the image: `"USER: <image>\\nWhat is this? ASSISTANT:"`.

    Raises:
        InputError: for another model, or a prompt without just one placeholder.
    """

    def __init__(self, vlm: LlavaForConditionalGeneration, processor, prompt: str):
        if not isinstance(vlm, LlavaForConditionalGeneration):
            raise InputError(f"The model is a {type(vlm).__name__}, but must be a LlavaForConditionalGeneration.")
        if prompt.count(processor.image_token) != 1:
            raise InputError(f"The prompt is {prompt!r}, but must have {processor.image_token} in it once.")
        self.vlm, self.processor = vlm, processor
        self.image_size = input_size(processor.image_processor)
        statistics = pixel_statistics(processor.image_processor)
        self.image_mean, self.image_std = (torch.tensor(part, device=vlm.device).view(3, 1, 1) for part in statistics)
        black = Image.new("RGB", (self.image_size, self.image_size))  # which gives the placeholders their number
        tokens = processor(images=black, text=prompt, return_tensors="pt")
        self.prompt_ids = tokens["input_ids"].to(vlm.device)

    def losses(self, images: torch.Tensor, answers: torch.Tensor) -> torch.Tensor:
        """The teacher-forced language loss of an answer for each image: `-1/n sum_i log p(a_i | image, prompt, a_<i)`.

        With `loss=lambda losses, labels: losses`, [`~hpt.attacks.PGD`] makes the answers less likely, and with
        `-losses` more: `functools.partial(prompted.losses, answers=answers)` is what it attacks.

        Args:
            images (`torch.Tensor` of shape `(batch, 3, height, width)`): Pixels in [0, 1], any size.
            answers (`torch.Tensor` of shape `(batch, length)`): Token ids, and -100 behind an answer's end.

        Returns:
            `torch.Tensor` of shape `(batch,)`: losses in nats per token, in float32.
        """
        before = torch.cat([self._prompts(images), answers[:, :-1].clamp(min=0)], dim=1)  # what is behind isn't seen
        logits = self._see(self.vlm, images, before, logits_to_keep=answers.shape[1]).logits  # of the answer's tokens
        # 0 where there is no token
        losses = F.cross_entropy(logits.float().transpose(1, 2), answers, reduction="none", ignore_index=NO_TOKEN)
        return losses.sum(1) / (answers != NO_TOKEN).sum(1)

    @torch.no_grad()
    def decode(self, images: torch.Tensor, max_tokens: int) -> torch.Tensor:
        """Greedily decoded answers to images in [0, 1]: token ids `(batch, max_tokens)`, and -100 behind their end."""
        prompts, generation = self._prompts(images), self.vlm.generation_config
        never = [self.vlm.config.image_token_id]  # a placeholder is no answer
        settings = {"max_new_tokens": max_tokens, "do_sample": False, "num_beams": 1, "suppress_tokens": never}
        answers = self._see(self.vlm.generate, images, prompts, **settings)[:, prompts.shape[1] :]
        ends = torch.tensor(generation.eos_token_id if generation.eos_token_id is not None else -1)
        ended = torch.isin(answers, ends.to(answers.device)).long()
        answers = answers.masked_fill(ended.cumsum(1) > ended, NO_TOKEN)  # the end itself is a part of the answer
        return F.pad(answers, (0, max_tokens - answers.shape[1]), value=NO_TOKEN)

    @torch.no_grad()
    def features(self, images: torch.Tensor) -> torch.Tensor:
        """What the language model is given of images in [0, 1], from tower and projector: `(batch, tokens, dim)`."""
        return torch.stack(list(self.vlm.get_image_features(self._pixel_values(images)).pooler_output))

    def _prompts(self, images: torch.Tensor) -> torch.Tensor:
        return self.prompt_ids.expand(len(images), -1)

    def _see(self, function, images: torch.Tensor, input_ids: torch.Tensor, **settings):
        """What a function of the model makes of token ids with images in [0, 1]."""
        seen = {"pixel_values": self._pixel_values(images), "attention_mask": torch.ones_like(input_ids)}
        return function(input_ids=input_ids, **seen, **settings)

    def _pixel_values(self, images: torch.Tensor) -> torch.Tensor:
        return to_pixel_values(images, self.image_size, self.image_mean, self.image_std).to(self.vlm.dtype)
