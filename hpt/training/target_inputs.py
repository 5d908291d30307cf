"""The target that a trainer is given, checked before any long work, and left with gradients where it trains."""

import torch

from hpt.errors import InputError
from hpt.models.classifier import ZeroShotClassifier
from hpt.models.families import check_dual_encoder, check_towers
from hpt.models.lora import check_adapter
from hpt.models.weights import in_eval_mode
from hpt.training.gpd import trained_weights


def check_target(target) -> None:
    """Refuse a target that isn't a float32 dual encoder, or whose adapters wouldn't all be saved.

    Raises:
        InputError: naming what is wrong with it.
    """
    check_dual_encoder(target)
    check_towers(target)
    if target.dtype not in (torch.float32, torch.float64):
        raise InputError(
            f"The target's weights are {target.dtype}: load it with dtype=torch.float32 and train with bf16=True."
        )
    adapters = getattr(target, "peft_config", {})
    if adapters and list(adapters) != ["default"]:
        raise InputError(
            f"The target has adapters named {', '.join(adapters)}, but only one named default is trained and saved: "
            "make it without an adapter_name."
        )
    for adapter in adapters.values():
        check_adapter(adapter)


def freeze_unused(classifier: ZeroShotClassifier) -> None:
    """Freeze what neither images nor texts pass through, such as DINOv2's mask token: it never has a gradient.

    DDP would wait for one, and adapters of it would be trained in vain. A grey image and a text show what has one.
    """
    model, side = classifier.model, classifier.image_size
    weights = list(trained_weights(model).values())
    image = torch.zeros(1, 3, side, side, device=model.device, dtype=model.dtype)
    tokens = classifier.processor.tokenizer("0", return_tensors="pt").to(model.device)
    with torch.inference_mode(False), torch.enable_grad(), in_eval_mode(list(model.modules())):
        logits = classifier(image, model.get_text_features(**tokens).pooler_output)
        gradients = torch.autograd.grad(logits.sum(), weights, allow_unused=True)
    for weight, gradient in zip(weights, gradients, strict=True):
        weight.requires_grad_(gradient is not None)
