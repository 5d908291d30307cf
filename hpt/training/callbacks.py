"""What happens to a model's weights after each optimizer step, and to its images before each epoch."""

import math

import torch
from torch import nn
from transformers import TrainerCallback

from hpt.data.augmentation import CropFlip


class LogitScaleCallback(TrainerCallback):
    """Keep `logit_scale` at most ln 100 while it trains, as CLIP does (Radford et al., 2021, section 2.5)."""

    MAXIMUM = math.log(100)

    def on_optimizer_step(self, args, state, control, model: nn.Module, **kwargs):
        with torch.no_grad():
            model.logit_scale.clamp_(max=self.MAXIMUM)


class AugmentationCallback(TrainerCallback):
    """Tell an augmentation which epoch begins: accelerate's data loaders tell the sampler alone."""

    def __init__(self, augmentation: CropFlip, steps_per_epoch: int):
        self.augmentation, self.steps_per_epoch = augmentation, steps_per_epoch

    def on_epoch_begin(self, args, state, control, **kwargs):
        self.augmentation.set_epoch(state.global_step // self.steps_per_epoch)
