"""Time training steps and attacks beside the published order of work, and measure what else speed depends on."""

from dataclasses import dataclass, field

import torch

from hpt.benchmarking.models import ARCHITECTURES, Architecture
from hpt.errors import InputError, check_at_least, check_known
from hpt.training.objectives import OBJECTIVES
from hpt.training.sums import parse_terms


PRECISIONS = {"float32": None, "bf16": torch.bfloat16, "fp16": torch.float16}  # of autocast
COMPILE_MODES = ("default", "reduce-overhead")  # of torch.compile; the latter replays CUDA graphs on a GPU
COUNTS = "images attack_steps rounds batch_size steps rows templates threads".split()
GROWTH = {"classes": "growth_classes", "images": "growth_images", "attack_steps": "growth_attack_steps"}
GROWTH |= {"image_size": "growth_image_sizes"}  # what a step's time is measured against, and the field of its values


@dataclass
class Settings:
    """What is measured, and at which size; the defaults are the real one: ViT-B/32 against ViT-B/16 at 224 pixels."""

    measure: list[str] = field(
        default_factory=lambda: ["step", "evaluation"],
        metadata={
            "help": "One or several of step, compiled, evaluation, clean, attacks, memory, growth, trainer, startup, "
            "objectives, training, loading."
        },
    )
    rounds: int = field(default=5, metadata={"help": "How often each variant is timed, in turn with the others."})
    output_dir: str | None = field(default=None, metadata={"help": "Folder for benchmark.json and benchmark.png."})
    threads: int = field(default=1, metadata={"help": "Of the CPU; with one, process time is taken."})
    use_cpu: bool = field(default=False, metadata={"help": "Leave a GPU alone."})

    models: str = field(
        default="vit_b", metadata={"help": f"Shapes of target and proxy: {', '.join(ARCHITECTURES)}; random weights."}
    )
    images: int = field(default=16, metadata={"help": "Images in a step."})
    classes: int = field(default=50, metadata={"help": "Classes, and so prompts."})
    attack_steps: int = field(default=2, metadata={"help": "PGD steps in training."})
    image_size: int | None = field(default=None, metadata={"help": "Side in pixels; the models' own unless given."})
    precision: str = field(
        default="float32",
        metadata={
            "help": "bf16 or fp16: step and evaluation time them beside float32; others compute so, but for attacks."
        },
    )

    compile_modes: list[str] = field(
        default_factory=lambda: list(COMPILE_MODES),
        metadata={"help": f"For compiled, as --torch_compile_mode has them: {', '.join(COMPILE_MODES)}."},
    )

    attacked: list[str] = field(
        default_factory=list, metadata={"help": "Trained models whose attacks are timed: Hub ids or paths."}
    )
    attacked_dataset: str = field(
        default="digits", metadata={"help": "What they classify: a benchmark, or NAME=PATH."}
    )
    attacked_eps: str = field(default="16/255", metadata={"help": "Radius in [0, 1] pixels."})
    attacks: list[str] = field(
        default_factory=lambda: ["autoattack", "apgd"], metadata={"help": "The attacks, as hpt evaluate takes them."}
    )

    growth_classes: list[int] = field(
        default_factory=lambda: [10, 100, 1000], metadata={"help": "Classes to measure growth at."}
    )
    growth_images: list[int] = field(
        default_factory=lambda: [4, 8, 16, 32], metadata={"help": "Images in a step, likewise."}
    )
    growth_attack_steps: list[int] = field(
        default_factory=lambda: [1, 2, 4, 8], metadata={"help": "PGD steps, likewise."}
    )
    growth_image_sizes: list[int] = field(
        default_factory=lambda: [160, 224, 320], metadata={"help": "Sides in pixels, likewise."}
    )

    rows: int = field(default=200_000, metadata={"help": "Of a large training set."})
    many_classes: int = field(default=1000, metadata={"help": "Of a training set of many classes."})
    templates: int = field(default=80, metadata={"help": "Prompt templates of these."})

    objectives: list[str] = field(
        default_factory=lambda: ["tecoa", *(name for name in OBJECTIVES if name != "tecoa")],
        metadata={"help": "Objectives, or sums of them; ratios are to the first."},
    )

    batch_size: int = field(
        default=64, metadata={"help": "Images in a step of training, and in a batch of attacks and loading."}
    )
    steps: int = field(default=3, metadata={"help": "Steps of training."})
    compile: bool = field(default=False, metadata={"help": "Compile the towers in training, as --torch_compile does."})

    dataset: str | None = field(
        default=None, metadata={"help": "For loading: a benchmark, or NAME=PATH, whose test split is read."}
    )
    workers: list[int] = field(default_factory=lambda: [0, 1, 2], metadata={"help": "Worker processes to load with."})

    help_groups = {  # by their first fields
        "measure": "What, and how often",
        "models": "A step",
        "attacked": "Attacks",
        "growth_classes": "Growth of a step's time",
        "rows": "Start-up",
        "objectives": "Objectives",
        "batch_size": "Training by Trainer",
        "dataset": "Loading",
    }

    def __post_init__(self):
        check_known("models", self.models, ARCHITECTURES)
        check_known("precision", self.precision, PRECISIONS)
        check_at_least(1, **{name: getattr(self, name) for name in COUNTS})
        check_at_least(1, image_size=self.side)
        classes = {"classes": self.classes, "many_classes": self.many_classes}
        check_at_least(2, **classes)  # of one class no attack has a gradient
        for axis, name in GROWTH.items():
            values = {f"{name}[{place}]": value for place, value in enumerate(getattr(self, name))}
            if not values:
                raise InputError(f"{name} is empty: give the {axis} to measure at.")
            check_at_least(2 if axis == "classes" else 1, **values)
        if not self.workers:
            raise InputError("workers is empty: give one or several numbers of worker processes, such as 0 2.")
        check_at_least(0, **{f"workers[{place}]": number for place, number in enumerate(self.workers)})
        for mode in self.compile_modes:
            check_known("compile_modes", mode, COMPILE_MODES)
        if not self.objectives:
            raise InputError(f"objectives is empty: give one or several of {', '.join(OBJECTIVES)}.")
        for text in self.objectives:
            parse_terms("objectives", text)
        sizes = [self.side, *(self.growth_image_sizes if "growth" in self.measure else ())]
        for size in sizes:
            self.architecture.check_size(size)

    @property
    def architecture(self) -> Architecture:
        return ARCHITECTURES[self.models]

    @property
    def side(self) -> int:
        """Side of the images in pixels."""
        return self.architecture.image_size if self.image_size is None else self.image_size

    @property
    def device(self) -> torch.device:
        return torch.device("cuda" if torch.cuda.is_available() and not self.use_cpu else "cpu")

    @property
    def size(self) -> str:
        """`16 images, 50 prompts, PGD-2`, for titles."""
        return f"{self.images} images, {self.classes} prompts, PGD-{self.attack_steps}"
