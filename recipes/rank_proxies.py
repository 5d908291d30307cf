"""Which proxy to take for a target: every model scored on images made against every other, and a ranking.

    hpt rank-proxies --target openai/clip-vit-base-patch32 \
        --proxies openai/clip-vit-base-patch16 google/siglip-base-patch16-224 kakaobrain/align-base \
        --dataset tiny_imagenet --validation_size 1000 --output_dir outputs/proxies
    hpt rank-proxies --config rank_proxies_cifar10 --dataset cifar10=PATH

Fields of `Ranking` below stand in the YAML, or follow as `--field value`. The images are of a validation split or held
out of the training split, since a proxy chosen on a test split would flatter what is then reported on it; models that
were trained on the images would flatter themselves. Started again, it goes on where it was cut off; several processes
share the work.
"""

from dataclasses import dataclass, field
from pathlib import Path

from hpt import InputError
from hpt.cli import parse_config, run_recipe
from hpt.data.loading import load_validation
from hpt.data.names import parse_benchmark
from hpt.errors import check_at_least
from hpt.evaluation.evaluator import check_sampling
from hpt.evaluation.outputs import report_ranking
from hpt.evaluation.ranking import TransferMatrix
from hpt.files import check_folder
from hpt.models.converted import check_model
from hpt.models.loading import load_named
from hpt.processes import hold_together, join_processes
from hpt.radius import Fraction, as_radii
from hpt.references import Reference, check_names, parse_model


@dataclass
class Ranking:
    """Which models are compared, on what, and how they are attacked."""

    target: str = field(metadata={"help": "Hub id or path; NAME=PATH names it, ID@REVISION pins it."})
    proxies: list[str] = field(metadata={"help": "The candidates, in the same way."})
    dataset: str = field(metadata={"help": "Benchmark, NAME=PATH, or any other dataset."})
    output_dir: str = field(metadata={"help": "Folder for the ranking, matrix and picture; continued if it has some."})
    validation_size: int = field(
        default=0,
        metadata={"help": "Training images held out to choose on, the same in every recipe; 0: the validation split."},
    )
    max_samples: int | None = field(default=None, metadata={"help": "So many of them, stratified."})
    eps: list[Fraction] = field(
        default_factory=lambda: ["1/255", "4/255", "8/255"], metadata={"help": "Radii in [0, 1] pixels."}
    )
    steps: int = field(default=10, metadata={"help": "PGD steps."})
    protocol: str = field(default="hpt", metadata={"help": "hpt or pmg: the resolution at which images are attacked."})
    batch_size: int = field(default=64, metadata={"help": "Images per batch."})
    num_workers: int = field(default=0, metadata={"help": "Processes that decode images."})
    seed: int = field(default=0, metadata={"help": "Of the noise and the choice of samples."})
    use_cpu: bool = field(default=False, metadata={"help": "Leave a GPU alone."})

    def __post_init__(self):
        self.eps = as_radii(self.eps)


def main():
    (settings, _) = parse_config((Ranking,), folder=Path(__file__).parent)
    dataset = parse_benchmark(settings.dataset)
    target, *candidates = [parse_model(text, loaded=True) for text in (settings.target, *settings.proxies)]
    check(settings, dataset, [target, *candidates])
    state = join_processes(settings.use_cpu)
    with hold_together(settings.output_dir):
        rank(settings, dataset, target, candidates, state)


def rank(settings: Ranking, dataset: Reference, target: Reference, candidates: list[Reference], state) -> None:
    """Rank, once the settings are known to be right and nobody else works in `output_dir`."""
    # Data and models
    images = load_validation(dataset, settings.validation_size, settings.protocol)
    images = images.subset(settings.max_samples, settings.seed)
    models = dict(load_named(model, state.device) for model in (target, *candidates))

    # Measure
    matrix = TransferMatrix(models, images, settings.eps, settings.steps, settings.seed, settings.output_dir)
    matrix.measure(settings.batch_size, settings.num_workers, state)
    if state.is_main_process:
        report_ranking(matrix, target.name)
    state.wait_for_everyone()  # or the launcher would end a process that is still drawing


def check(settings: Ranking, dataset: Reference, models: list[Reference]) -> None:
    """Refuse what can't be meant, before anything is downloaded."""
    check_folder(Path(settings.output_dir))
    if "split" in dataset.settings and settings.validation_size:
        raise InputError("The dataset names its split, so nothing is held out: leave out validation_size.")
    check_names(model.name for model in models)
    for model in models:
        check_model(model)
    if not settings.proxies or not settings.eps:
        raise InputError("There are no proxies, or no eps: give one or several of each.")
    check_sampling(settings.max_samples, settings.batch_size, settings.num_workers, settings.seed)
    check_at_least(1, steps=settings.steps)
    check_at_least(0, validation_size=settings.validation_size)


if __name__ == "__main__":
    run_recipe(main)
