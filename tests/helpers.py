"""What tests share: tiny models and datasets, made on the spot, and how runs are compared and recipes run."""

import os
import signal
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from runpy import run_path

import datasets
import numpy as np
import pytest
import torch
import torch.nn.functional as F
import transformers
from PIL import Image
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import CLIPImageProcessorPil, CLIPProcessor, TrainerCallback

from hpt import HPTConfig, HPTTrainer, InputError, Objective, ZeroShotClassifier
from hpt.attacks import AttackResult
from hpt.attacks.apgd import checkpoint_steps
from hpt.data.benchmark import Benchmark
from hpt.data.geometry import ImageTransform
from hpt.evaluation.rows import LARGE_EPS, WORST_CASE, Row, measured_accuracy
from hpt.locks import hold_folder
from hpt.training.pretraining import PretrainingConfig, build_clip, byte_tokenizer
from hpt.training.step import TrainingStep


TESTS = Path(__file__).parent
ROOT = TESTS.parent
# For programs that tests start: tests run beside each other, and what they share is found here
ONE_THREAD = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(TESTS), str(ROOT)])}
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]


CLASSES = ["cat", "dog", "grey heron"]


def make_clip(seed: int = 0, **architecture):
    """A two-layer CLIP at 16 pixels with random weights, and its processor."""
    torch.manual_seed(seed)
    shape = {"image_size": 16, "patch_size": 8, "vision_hidden_size": 16, "vision_layers": 2, "projection_dim": 8}
    shape |= {"text_hidden_size": 16} | architecture
    return build_clip(PretrainingConfig(output_dir="unused", use_cpu=True, **shape))


def make_dataset(rows: int = 12, size: int = 16, seed: int = 0) -> datasets.Dataset:
    """Random images with labels 0, 1, 2, 0, ... that name [`CLASSES`]."""
    pixels = np.random.default_rng(seed).integers(0, 256, (rows, size, size, 3), dtype=np.uint8)
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=CLASSES)})
    labels = [row % len(CLASSES) for row in range(rows)]
    return datasets.Dataset.from_dict({"image": list(pixels), "label": labels}, features=features)


def make_benchmark(rows: int = 10, template: str | None = "{}") -> Benchmark:
    """The random images of [`make_dataset`] as a test set of native size."""
    return Benchmark("random", "test", make_dataset(rows), CLASSES, template, ImageTransform())


def save_images(folder, splits=("train",), kinds=("cat", "dog")):
    """A folder of images with a subfolder for each split, and in it one for each class."""
    for split in splits:
        for label, kind in enumerate(kinds):
            (folder / split / kind).mkdir(parents=True)
            for number in range(2):
                Image.new("RGB", (20, 16), (90 * label, 40 * number, 0)).save(folder / split / kind / f"{number}.png")
    return folder


def make_trainer(
    folder, model=None, dataset=None, eval_dataset=None, proxy="another", processor=None, **settings
) -> HPTTrainer:
    """A trainer of a tiny pair over 12 images: 3 steps an epoch, 2 + 2 epochs, unless told otherwise."""
    target, own_processor = make_clip(0)
    settings = {
        "anchor_epochs": 2,
        "transfer_epochs": 2,
        "anchor_learning_rate": 0.05,
        "learning_rate": 0.5,
        "warmup_steps": 1,
        "attack_eps": 8 / 255,
        "attack_step_size": 4 / 255,
        "per_device_train_batch_size": 4,
        "save_strategy": "no",
        "logging_steps": 1,
        "disable_tqdm": True,
        "use_cpu": True,
    } | settings
    return HPTTrainer(
        model=target if model is None else model,
        args=HPTConfig(output_dir=str(folder), **settings),
        proxy=ZeroShotClassifier(*make_clip(1, patch_size=4)) if proxy == "another" else proxy,
        processing_class=own_processor if processor is None else processor,
        train_dataset=make_dataset() if dataset is None else dataset,
        eval_dataset=eval_dataset,
    )


def make_step(objective: Objective | None = None) -> TrainingStep:
    """Four images of a step in float64, attacked if the objective needs it, with target, proxy and original."""
    pairs = make_clip(0, patch_size=4), make_clip(1), make_clip(2, patch_size=4)
    names = ("target", "proxy", "original")
    models = {
        n: ZeroShotClassifier(model.double(), *rest, CLASSES) for n, (model, *rest) in zip(names, pairs, strict=True)
    }
    generator = torch.Generator().manual_seed(0)
    images, noise = torch.rand(2, 4, 3, 16, 16, generator=generator, dtype=torch.float64)
    needs = {} if objective is None else {"patches": objective.needs_patches, "attack": objective.needs_attack}
    step = TrainingStep(images, torch.tensor([0, 1, 2, 0]), **models, **needs)
    if needs.get("attack", True):
        adversarial = (images + 0.1 * (noise - 0.5)).clamp(0, 1)
        step.attacked = AttackResult(adversarial, torch.zeros(4, dtype=torch.bool))
    return step


def with_other_weights(trainer: HPTTrainer) -> HPTTrainer:
    """A trainer whose model has lost what training began with, for a checkpoint brings weights of its own."""
    zeros = {name: torch.zeros_like(weight) for name, weight in trainer.model.state_dict().items()}
    trainer.model.load_state_dict(zeros)
    return trainer


def weights(model):
    return {name: weight.detach().clone() for name, weight in model.named_parameters()}


def assert_same(first, second, atol=0.0):
    assert first.keys() == second.keys()
    for name in first:
        torch.testing.assert_close(
            first[name], second[name], rtol=0, atol=atol, msg=lambda text, name=name: f"{name}: {text}"
        )


def reference_pgd(classifier, images, labels, eps, steps, step_size):
    """PGD without random start, in the fewest lines: Madry et al., section 2.1."""
    adversarial = images.clone()
    for _ in range(steps):
        adversarial.requires_grad_(True)
        gradient = torch.autograd.grad(F.cross_entropy(classifier(adversarial), labels), adversarial)[0]
        adversarial = adversarial.detach() + step_size * gradient.sign()
        adversarial = torch.max(torch.min(adversarial, images + eps), images - eps)
        adversarial = torch.clip(adversarial, 0, 1)
    return adversarial


def reference_apgd(loss, x, start, eps, steps, norm):
    """Algorithm 1 of arXiv 2003.01690 for one sample; x_max."""

    def project(z):
        delta = z - x
        delta = delta.clamp(-eps, eps) if norm == "linf" else delta * min(1, eps / (delta.norm().item() or 1))
        return (x + delta).clamp(0, 1)

    def gradient(z):
        (g,) = torch.autograd.grad(loss(z := z.clone().requires_grad_()), z)
        return g.sign() if norm == "linf" else g / g.norm()

    def f(z):
        return loss(z).item()

    eta, current = 2 * eps, start
    previous = best = start
    raised, best_before, halved_before = [], f(start), False
    for k in range(1, steps + 1):
        alpha = 0.75 if k > 1 else 1
        z = project(current + eta * gradient(current))
        previous, last = current, previous
        current = project(previous + alpha * (z - previous) + (1 - alpha) * (previous - last))
        raised.append(f(current) > f(previous))
        best = current if f(current) > f(best) else best
        if k in checkpoint_steps(steps):
            halve = sum(raised) < 0.75 * len(raised) or (not halved_before and f(best) == best_before)
            raised, best_before, halved_before = [], f(best), halve
            if halve:
                eta, current = eta / 2, best
    return best


ALWAYS = {"README.md", "config.json", "model.safetensors", "processor_config.json", "run.yaml", "tokenizer.json"}


ALWAYS |= {"tokenizer_config.json", "training.json"}


def run_recipe(script: str, *arguments) -> None:
    """A recipe in this process, which has the stand-in for the Hub."""
    recipe = ROOT / "recipes" / script
    before, sys.argv = sys.argv, [str(recipe), *map(str, arguments)]
    try:
        run_path(str(recipe))["main"]()
    finally:
        sys.argv = before


def refusal_of(script: str, *arguments) -> str:
    """The line with which a recipe in this process refuses what it is given."""
    with pytest.raises(InputError) as refused:
        run_recipe(script, *arguments)
    return str(refused.value)


def run_recipe_apart(script: str, *arguments, processes: int = 1, cwd=None) -> subprocess.CompletedProcess:
    """A recipe in one or two processes of its own, to its end."""
    launcher = TORCHRUN if processes == 2 else [sys.executable]
    command = [*launcher, str(ROOT / "recipes" / script), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=ONE_THREAD)


@contextmanager
def held_by_another(folder):
    """Within, another thread works in a folder, which keeps this one out as another process would."""
    lock = hold_folder(folder)
    with ThreadPoolExecutor(1) as thread:
        thread.submit(lock.__enter__).result()
        try:
            yield
        finally:
            thread.submit(lock.__exit__, None, None, None).result()


class TerminateAt(TrainerCallback):
    def __init__(self, step, number=signal.SIGTERM):
        self.step, self.number = step, number

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step + 1 == self.step:
            os.kill(os.getpid(), self.number)


TEXT = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 77,
    "projection_dim": 8,
    "vocab_size": 514,
    "bos_token_id": 512,
    "eos_token_id": 513,
    "pad_token_id": 513,
}


VISION = {
    "image_size": 16,
    "patch_size": 8,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "projection_dim": 8,
}


GROUPS = {"depths": [1, 1, 0], "num_group_tokens": [4, 2, 0], "num_output_groups": [4, 2, 0]}

EFFICIENT_NET = {"image_size": 64, "width_coefficient": 0.1, "depth_coefficient": 0.1, "hidden_dim": 16}

# Family -> (model class, text overrides, vision overrides, top-level settings)
FAMILIES = {
    "CLIP": ({}, {}, {"projection_dim": 8}),
    "Siglip": ({"projection_size": 16}, {}, {}),
    "MetaClip2": ({}, {}, {"projection_dim": 8}),
    "Align": ({"hidden_size": 16}, EFFICIENT_NET, {"projection_dim": 32}),
    "AltCLIP": ({"project_dim": 16, "max_position_embeddings": 90, "pad_token_id": 1}, {}, {"projection_dim": 8}),
    "ChineseCLIP": ({}, {}, {"projection_dim": 8}),
    "Blip": ({"encoder_hidden_size": 16}, {}, {"projection_dim": 8, "image_text_hidden_size": 16}),
    "GroupViT": ({}, GROUPS, {"projection_dim": 8, "projection_intermediate_dim": 16}),
    "Aimv2": ({}, {}, {"projection_dim": 8}),
    "CLIPSeg": ({}, {}, {"projection_dim": 8}),
    "VisionTextDualEncoder": ({"model_type": "bert"}, {"model_type": "vit"}, {"projection_dim": 8}),
    "OwlViT": ({"max_position_embeddings": 77}, {}, {"projection_dim": 8}),
}


CONVOLUTIONAL = {"hidden_sizes": [8, 16], "depths": [1, 1]}

# Other towers than a ViT that a VisionTextDualEncoder can have beside a BERT
TOWERS = {
    "ResNet": CONVOLUTIONAL | {"model_type": "resnet", "layer_type": "basic", "embedding_size": 8},
    "ConvNeXt": CONVOLUTIONAL | {"model_type": "convnext", "num_stages": 2, "patch_size": 4},
    "DINOv2": {"model_type": "dinov2"},
    "Swin": {"model_type": "swin", "patch_size": 2, "embed_dim": 8, "depths": [1, 1], "window_size": 4}
    | {"num_attention_heads": [1, 1]},
}


def class_of(name: str) -> str:
    """The class of the models of a family, or with a tower."""
    return f"{'VisionTextDualEncoder' if name in TOWERS else name}Model"


def make_family(name):
    """A tiny model of a family, or with one of [`TOWERS`], with random weights, and a processor for it."""
    text, vision, top = FAMILIES["VisionTextDualEncoder" if name in TOWERS else name]
    text, vision = TEXT | text, VISION | vision | TOWERS.get(name, {})
    torch.manual_seed(0)
    kind = class_of(name).removesuffix("Model")
    config = getattr(transformers, f"{kind}Config")(text_config=text, vision_config=vision, **top)
    model = getattr(transformers, f"{kind}Model")(config).eval()
    for weight in model.parameters():
        if weight.dim() == 4:  # convolutions start so small that a stack of them underflows
            nn.init.kaiming_normal_(weight)
    side = config.vision_config.image_size
    image_processor = CLIPImageProcessorPil(size={"shortest_edge": side}, crop_size={"height": side, "width": side})
    padding = {"pad_token": '"'} if text["pad_token_id"] == 1 else {}  # XLM-RoBERTa's number, from which it counts
    return model, CLIPProcessor(image_processor, byte_tokenizer(**padding))


def make_row(attack, accuracy, eps=0.1, n=1000, **more):
    attacked = None if attack == "clean" else "m"
    steps = None if attack in ("clean", "worst case") else 10
    benchmark = more.pop("benchmark", "b")
    more = {"eps": None if attack == "clean" else eps, "norm": "linf", "steps": steps} | more
    return Row(
        "m", attacked, accuracy, accuracy - 0.03, accuracy + 0.03, n, benchmark, "test", "native", attack, **more
    )


def of_model(row: Row, name: str, **changes) -> Row:
    """The row of another model, made against that if it was made against its own."""
    return replace(row, model=name, attacked=row.attacked and name, **changes)


def with_accuracy(row: Row, accuracy: float, **changes) -> Row:
    """A row with other values, and the accuracy that is nearest to one with its interval."""
    row = replace(row, **changes)
    return replace(row, **measured_accuracy(round(accuracy * row.n), row.n))


SOUND = [
    make_row("clean", 0.9, stochastic=False),
    make_row(LARGE_EPS, 0.0, eps=0.5, zero_gradient=0),
    make_row("pgd", 0.52, zero_gradient=10),  # as much as is allowed
    make_row("pgd:steps=2", 0.6, zero_gradient=0, steps=2),
    make_row("apgd", 0.505, zero_gradient=0, broken_by={"apgd-ce": 380, "apgd-dlr": 5}),
    make_row("square", 0.6, zero_gradient=0),
    make_row("transfer-to-proxy", 0.9, zero_gradient=0),
    make_row("autoattack", 0.5, zero_gradient=0, broken_by={"apgd-ce": 380, "apgd-t": 20, "fab-t": 0, "square": 10}),
    make_row(WORST_CASE, 0.5, parameters={"attacks": ["apgd", "pgd"]}),
]


# Names of classes, benchmarks and models that mean something in a language that hpt writes
HOSTILE = {
    "heading": "# Owned",
    "html": "<h1>Owned</h1>",
    "end of a section": "<!-- /hpt:use -->",
    "comment": "--> <!--",
    "bold": "**x** __y__ _z_",
    "strike": "~~x~~",
    "code": "`x` ``",
    "fence": "```\n# Owned\n```python",
    "table": "|a|b\\|",
    "backslash": "\\*x\\",
    "link": "[x](http://evil)",
    "end of a link": "](http://evil)",
    "reference": "[x]: http://evil",
    "image": "![x][y]",
    "autolink": "<http://evil>",
    "entity": "&lt;b&#62;",
    "list": "- x",
    "numbered list": "12) x",
    "quote": "> x",
    "rule": "---",
    "indented": "    x  ",
    "mathtext": "x $_{$",
    "math": "\\$a$ b$",
    "hidden curve": "_x",
    "lines": "a\n\n# Owned\r\n\tb",
    "terminal": "\x1b]0;owned\x07\x1b[31mred\x9b",
    "overwritten line": "good\rbad",
    "turned": "a\u202egnp.exe",
    "unseen": "a\u200bb\ufeff\U000e0041",
    "line separators": "a\u2028b\u2029c",
    "surrogate": "a\ud800b\udcff",
    "nothing": "",
    "NUL": "a\0b",
    "parent": "x/../../../y",
    "root": "/etc/passwd",
    "device": "CON",
    "option": "--help",
    "long": "x" * 300,
    "wide": "猫" * 300,
    "formula": "=cmd|' /C calc'!A0",
    "python": '"); import os; os.abort() #',
    "format": "{0} %s {",
    "shell": "x'; $(touch owned) `touch owned` #",
    "yaml": "a: b\n---\n- !!python/object:x",
}


class Reads:
    """Counts, within, what on a GPU would make the host wait: values that are read, and sizes that depend on values.

    Copies by `.to("cpu")` aren't seen, for on the CPU there are none.

    Args:
        on_host (`list[torch.Tensor]`, *optional*): Tensors that are on the CPU in any case, and may be read.
    """

    OPERATIONS = (
        "_local_scalar_dense nonzero masked_select equal _unique2 unique_dim unique_consecutive bincount".split()
    )
    METHODS = (torch.Tensor.tolist, torch.Tensor.numpy, torch.Tensor.cpu, torch.Tensor.__array__)

    def __init__(self, on_host: list[torch.Tensor] | None = None):
        self.seen, self.on_host = Counter(), [] if on_host is None else on_host

    def __enter__(self):
        reads = self

        class Operations(TorchDispatchMode):
            def __torch_dispatch__(self, function, types, args=(), kwargs=None):
                name = function.overloadpacket.__name__
                by_mask = name in ("index", "index_put", "index_put_") and any(
                    index is not None and index.dtype == torch.bool for index in args[1]
                )
                if name in reads.OPERATIONS or by_mask:
                    reads.seen[name] += 1
                return function(*args, **(kwargs or {}))

        class Methods(TorchFunctionMode):
            def __torch_function__(self, function, types, args=(), kwargs=None):
                if function in reads.METHODS and not any(args[0] is known for known in reads.on_host):
                    reads.seen[function.__name__] += 1
                return function(*args, **(kwargs or {}))

        self._modes = ExitStack()
        self._modes.enter_context(Operations())
        self._modes.enter_context(Methods())
        return self

    def __exit__(self, *error):
        self._modes.close()
