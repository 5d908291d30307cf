"""What happens to a model's weights after each optimizer step, in any training."""

import math

import torch
from torch import nn
from transformers import TrainerCallback


class LogitScaleCallback(TrainerCallback):
    """Keep `logit_scale` at most ln 100 while it trains, as CLIP does (Radford et al., 2021, section 2.5)."""

    MAXIMUM = math.log(100)

    def on_optimizer_step(self, args, state, control, model: nn.Module, **kwargs):
        with torch.no_grad():
            model.logit_scale.clamp_(max=self.MAXIMUM)
