"""A model of open_clip as it is, to be evaluated or learned from, where transformers has no class for it.

    model, tokenizer = open_clip.create_model("RN50", pretrained="openai"), open_clip.get_tokenizer("RN50")
    resnet = OpenClipClassifier(model, tokenizer)  # pip install open_clip_torch
    HPTTrainer(..., proxy=resnet)
    evaluator(classifier=resnet, name="RN50", benchmarks=benchmarks)

CLIPs with a ResNet, a ConvNeXt or an EVA are such. One with CLIP's ViT is better converted (`hpt.models.conversion`).
"""

import copy

import torch
import torch.nn.functional as F
from torch import nn

from hpt.errors import InputError
from hpt.prompts import DEFAULT_TEMPLATE, check_class_names, check_templates, make_prompts


class OpenClipClassifier(nn.Module):
    """A model of open_clip as a classifier over class prompts; a view: it shares the model's weights.

    For image `x` and class prompts `t`: `scale * cos(image_embed(x), text_embed(t)) + bias`, in float32, where the
    text embeddings of several templates are averaged on the unit sphere. Texts are encoded once: the model's weights
    mustn't change.

    Args:
        model (`nn.Module`): From `open_clip.create_model`, which knows its input size and pixel statistics.
        tokenizer (`Callable`): From `open_clip.get_tokenizer`.
    """

    def __init__(self, model: nn.Module, tokenizer):
        super().__init__()
        self.model, self.tokenizer, self.templates = model.eval(), tokenizer, [DEFAULT_TEMPLATE]
        size = model.visual.image_size
        self.image_size = (size, size) if isinstance(size, int) else tuple(size)
        for name in ("image_mean", "image_std"):
            values = torch.tensor(getattr(model.visual, name), device=model.logit_scale.device)
            self.register_buffer(name, values.view(3, 1, 1), persistent=False)
        self.register_buffer("text_embeds", None, persistent=False)

    @torch.no_grad()
    def with_classes(self, class_names: list[str], template=None) -> "OpenClipClassifier":
        """The same model over classes, put into one prompt template or several; `None` for the ones that it has."""
        view = copy.copy(self)
        view._modules, view._buffers = self._modules.copy(), self._buffers.copy()
        class_names = check_class_names(class_names)
        view.templates = self.templates if template is None else check_templates(template)
        tokens = self.tokenizer(make_prompts(view.templates, class_names)).to(self.model.logit_scale.device)
        chunks = [self.model.encode_text(chunk, normalize=True).float() for chunk in tokens.split(256)]
        view.text_embeds = F.normalize(torch.cat(chunks).unflatten(0, (-1, len(class_names))).mean(0), dim=-1)
        return view

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits `(batch, classes)` of images `(batch, 3, height, width)` in [0, 1], of any size."""
        if self.text_embeds is None:
            raise InputError("This classifier has no classes yet: use with_classes([...]).")
        if images.shape[-2:] != self.image_size:
            images = F.interpolate(images, self.image_size, mode="bicubic", antialias=True)
        image_embeds = self.model.encode_image((images - self.image_mean) / self.image_std, normalize=True).float()
        logits = self.model.logit_scale.exp().float() * image_embeds @ self.text_embeds.T
        bias = getattr(self.model, "logit_bias", None)
        return logits if bias is None else logits + bias
