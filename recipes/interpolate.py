"""Turn the dial between clean and robust accuracy: measure points between a vanilla and a trained model, and save one.

    hpt train --save_endpoints True && hpt interpolate --run outputs/quickstart
    hpt interpolate --run outputs/robust --points 0.4 0.6 0.8 1 --rule "clean>=0.6"
    hpt interpolate --run outputs/robust --average_points 0 0.25 0.5    # the plane with the anchor stage's average
    hpt interpolate --vanilla openai/clip-vit-base-patch32 --final me/robust-clip --dataset cifar10 \
        --validation_size 1000 --eps 4/255 --output_dir outputs/dial

A point is vanilla + t (final - vanilla). It is chosen on images that the run held out of its training, or on a
validation split, never on a test split. Fields of `Interpolation` below stand in a YAML, or follow as `--field value`.
Started again, it goes on where it was cut off; several processes share the work.
"""

from dataclasses import dataclass, field
from pathlib import Path

from hpt import InputError, RobustnessEvaluator
from hpt.attacks.registry import parse_attacks_without_proxy
from hpt.cli import parse_config, run_recipe
from hpt.errors import check_at_least
from hpt.evaluation.dial import check_rule, measure_dial
from hpt.evaluation.dial_report import describe_dial
from hpt.evaluation.evaluator import check_sampling
from hpt.files import check_folder
from hpt.hub.interpolation import find_eps, find_trained, load_ends, load_unseen, save_chosen
from hpt.models.interpolation import make_grid
from hpt.models.sources import check_source
from hpt.processes import hold_together, join_processes, on_main_process
from hpt.radius import Fraction, as_radii
from hpt.references import parse_model


@dataclass
class Interpolation:
    """Between which models points lie, what they are measured on, and which is taken."""

    run: str | None = field(default=None, metadata={"help": "The output_dir of a finished run with endpoints."})
    vanilla: str | None = field(default=None, metadata={"help": "Hub id or path, if the run's isn't where it was."})
    final: str | None = field(default=None, metadata={"help": "Instead of a run: the model trained from vanilla."})
    points: list[float] = field(
        default_factory=lambda: [0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0], metadata={"help": "t: 0 vanilla, 1 final."}
    )
    average_points: list[float] = field(
        default_factory=lambda: [0.0], metadata={"help": "u: shares of the way to the anchor stage's average, added."}
    )
    rule: str = field(default="sum", metadata={"help": "sum of clean and robust accuracy, or such as clean>=0.6."})
    dataset: str | None = field(default=None, metadata={"help": "The training set; the run's own unless given."})
    validation_size: int | None = field(
        default=None, metadata={"help": "Training images held out to choose on; as many as the run did unless given."}
    )
    max_samples: int | None = field(default=500, metadata={"help": "So many of them, stratified."})
    attacks: list[str] = field(
        default_factory=lambda: ["pgd:steps=10"], metadata={"help": "As in hpt evaluate; robust is under all of them."}
    )
    eps: Fraction | None = field(default=None, metadata={"help": "Radius in [0, 1] pixels; the run's unless given."})
    protocol: str = field(default="hpt", metadata={"help": "hpt or pmg: the resolution at which images are attacked."})
    batch_size: int = field(default=64, metadata={"help": "Images per batch."})
    num_workers: int = field(default=0, metadata={"help": "Processes that decode images."})
    seed: int = field(default=0, metadata={"help": "Of the noise and the choice of samples."})
    use_cpu: bool = field(default=False, metadata={"help": "Leave a GPU alone."})
    output_dir: str | None = field(
        default=None, metadata={"help": "For results and the point; RUN/dial unless given."}
    )

    def __post_init__(self):
        if (self.run is None) == (self.final is None) or (self.final and not (self.vanilla and self.output_dir)):
            raise InputError(
                "Give a run with endpoints as --run, or two models by --vanilla, --final and --output_dir."
            )
        self.output_dir = self.output_dir or f"{self.run}/dial"


def main():
    (settings, _) = parse_config((Interpolation,), folder=Path(__file__).parent)
    points, vanilla = check(settings), parse_model(settings.vanilla) if settings.vanilla else None
    trained, folder = find_trained(settings.run, settings.final)
    attacks = {"attacks": settings.attacks, "eps": find_eps(settings.eps, folder.run)}
    parse_attacks_without_proxy(settings.attacks, as_radii(attacks["eps"]))
    state = join_processes(settings.use_cpu)
    with hold_together(settings.output_dir):
        # Data and models
        images = load_unseen(settings.dataset, folder.run, settings.validation_size, settings.protocol)
        classifier, endpoints = load_ends(settings.run, vanilla, trained, folder.run)
        classifier.to(state.device)
        images = images.for_model(classifier.processor.image_processor)

        # Measure
        names = ("max_samples", "batch_size", "num_workers", "seed", "output_dir")
        evaluator = RobustnessEvaluator(**attacks, **{name: getattr(settings, name) for name in names})
        measured = measure_dial(classifier, endpoints, images, evaluator, points)

        # Choose and save
        said = describe_dial(measured, images, evaluator, endpoints)
        on_main_process(lambda: save_chosen(said, settings.rule, classifier, endpoints, folder, settings.output_dir))


def check(settings: Interpolation) -> list[tuple[float, float]]:
    """The points, once what can't be meant is refused, before anything is loaded."""
    check_folder(Path(settings.output_dir))
    check_rule(settings.rule)
    for model in filter(None, (settings.vanilla, settings.final)):
        check_source(parse_model(model).source)
    check_sampling(settings.max_samples, settings.batch_size, settings.num_workers, settings.seed)
    check_at_least(0, validation_size=settings.validation_size or 0)
    return make_grid(settings.points, settings.average_points)


if __name__ == "__main__":
    run_recipe(main)
