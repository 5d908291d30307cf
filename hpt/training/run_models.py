"""The models of a run together: the target, what teaches it, and its vanilla copy, over the classes of each batch."""

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext

import torch
from accelerate import Accelerator
from accelerate.utils import DynamoBackend, TorchDynamoPlugin
from torch import nn

from hpt.data.epochs import EpochMixture
from hpt.models.attention import choose_attention
from hpt.models.classifier import ZeroShotClassifier
from hpt.models.proxies import try_out, zero_shot_parts
from hpt.models.weights import weights_frozen
from hpt.training.inputs import TrainingInputs


class RunModels:
    """Target `T`, proxy `P` and original `O` of a run on its device.

    Of a mixture with batches of one set, a batch sees each over that set's classes: views, which share weights, and
    of which each keeps its class embeddings, so that no set's are computed twice.

    Args:
        inputs ([`TrainingInputs`]): What the run was given.
        device (`torch.device`): Where it trains.
        mixed_precision (`str`): `"no"`, `"bf16"` or `"fp16"`.

    Attributes:
        target ([`ZeroShotClassifier`]): Over the training classes, like the other two.
        proxy (`nn.Module`, *optional*): Frozen.
        original ([`ZeroShotClassifier`], *optional*): Frozen.

    Raises:
        InputError: for a proxy that doesn't take such images, or doesn't tell the training classes apart.
    """

    def __init__(self, inputs: TrainingInputs, device: torch.device, mixed_precision: str):
        self.target: ZeroShotClassifier = inputs.classifier.to(device)
        self.proxy: nn.Module | None = inputs.proxy and inputs.proxy.to(device)
        self.original: ZeroShotClassifier | None = inputs.original and inputs.original.to(device)
        for part in zero_shot_parts(self.target, self.original):
            choose_attention(part.model, mixed_precision)
        for part in zero_shot_parts(self.proxy):  # whose precision is its own
            choose_attention(part.model)
        one_set = isinstance(inputs.train, EpochMixture) and not inputs.train.over_union
        self._over_sets = [
            tuple(model and model.with_classes(part.class_names, part.template) for model in self._all)
            for part in (inputs.train.sets.values() if one_set else ())
        ]
        self._is_compiled = False
        for target, proxy, _ in [self._all, *self._over_sets]:
            if proxy is not None:
                try_out(proxy, inputs.one_image().to(device), len(target.class_names))

    @property
    def _all(self) -> tuple:
        return self.target, self.proxy, self.original

    def of_batch(self, inputs: dict) -> tuple:
        """Target, proxy and original over the classes that the labels of a batch number."""
        return self._over_sets[inputs["set"]] if "set" in inputs else self._all

    def compile(self, accelerator: Accelerator) -> None:
        """Compile what `torch_compile` would: not the whole model, since attacks go past its wrapper, but its towers.

        Dynamic shapes are left to torch, which compiles anew for the second batch size that it sees.
        """
        plugin = accelerator.state.dynamo_plugin
        if plugin.backend == DynamoBackend.NO:
            return
        compile_towers(self.target, zero_shot_parts(self.proxy, self.original), plugin)
        self._is_compiled = True
        plugin.backend = DynamoBackend.NO  # accelerate would compile the whole model as well

    def under_attack(self) -> AbstractContextManager:
        """Within, compiled towers compute no gradients of weights, for which an attack doesn't ask.

        A compiled backward pass gives all gradients that can be asked for, others those that are. For these nothing is
        frozen, since of weights that train alone autocast keeps a copy over the steps of an attack.
        """
        return weights_frozen(self.target.model) if self._is_compiled else nullcontext()


def compile_towers(
    target: ZeroShotClassifier, frozen: Iterable[ZeroShotClassifier], plugin: TorchDynamoPlugin
) -> None:
    """Compile the towers that a step computes, once each: those of texts, which are encoded once, only to train them.

    Args:
        target ([`ZeroShotClassifier`]): `T`.
        frozen (`Iterable[ZeroShotClassifier]`): What teaches it, and its vanilla copy.
        plugin (`TorchDynamoPlugin`): How; accelerate's, with a backend.
    """
    trains_text = any(weight.requires_grad for weight in target.text_parameters)
    towers = target.family.towers(target.model)[: 1 + trains_text]
    for classifier in frozen:
        towers += classifier.family.towers(classifier.model)[:1]
    for tower in dict.fromkeys(towers):
        tower.compile(**plugin.to_kwargs())
