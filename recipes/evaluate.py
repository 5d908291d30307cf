"""Evaluate models on benchmarks under attacks: rows with intervals, a table, reliability flags and pictures.

    hpt evaluate                                    # the quickstart's models on digits
    hpt evaluate --config evaluate_cifar10 --benchmarks cifar10=PATH
    hpt evaluate --plan                             # lists the rows to be, with an estimate of the time; runs nothing
    hpt evaluate --check                            # looks for known mistakes on a few images; measures nothing
    hpt evaluate --models openai/clip-vit-base-patch32 mine=outputs/robust \
        --benchmarks tiny_imagenet cifar10 --attacks pgd:steps=50,restarts=5 autoattack --eps 1/255 4/255 \
        --max_samples 1000 --output_dir outputs/evaluation

`--models my_defence.py:make` evaluates any function of images to logits, which a function in a file of yours makes:
`hpt.evaluation.user_code` says what it is given. The code in that file is run.

Fields of `Evaluation` below stand in the YAML, or follow as `--field value`; evaluate.yaml is read where neither a
config nor models are given. Started again, it goes on where it was cut off. Several processes share the work, and
every sample gets the same verdict as with one.
"""

import sys
from dataclasses import dataclass, field
from pathlib import Path

from hpt import InputError, RobustnessEvaluator
from hpt.attacks.registry import parse_attacks
from hpt.cli import check_quickstart, parse_config, run_recipe
from hpt.data.loading import load_available
from hpt.data.names import call_before_loading, expand_all
from hpt.escaping import markdown
from hpt.evaluation.evaluator import check_sampling
from hpt.evaluation.outputs import report_evaluation
from hpt.evaluation.plan import Task, check_cascade
from hpt.evaluation.progress import format_plan
from hpt.evaluation.protocol.check import IMAGES, check_protocols
from hpt.evaluation.protocol.findings import WRONG, report_findings
from hpt.evaluation.subject import Evaluated, Subject
from hpt.evaluation.user_code import check_code, describe_code, failures_located, is_code, load_code
from hpt.files import check_folder
from hpt.models.converted import check_model
from hpt.models.loading import load_named
from hpt.processes import hold_together, join_processes, set_cpu_threads
from hpt.radius import Fraction, as_radii
from hpt.references import Reference, check_names, parse_model


HERE = Path(__file__).parent
# Python looks for modules beside the script first, and this one is called like the `evaluate` package.
sys.path = [folder for folder in sys.path if Path(folder).resolve() != HERE.resolve()]


@dataclass
class Evaluation:
    """What is evaluated on what, and how it is attacked."""

    models: list[str] = field(
        metadata={
            "help": "Hub ids or paths; NAME=PATH names one, ID@REVISION pins one, PATH:image_size=336 resizes one; "
            "hf-hub:OWNER/NAME and FILE.pt:base=ID are converted; FILE.py:FUNCTION runs your code, which makes one."
        }
    )
    benchmarks: list[str] = field(
        metadata={"help": "Benchmarks, all, NAME=PATH, or any other dataset as NAME=PATH:split=...,label_column=..."}
    )
    output_dir: str = field(metadata={"help": "Folder for results, table and pictures; continued if it has some."})
    attacks: list[str] = field(
        default_factory=lambda: ["pgd", "cw", "apgd"],
        metadata={"help": "Names, with settings as in pgd:steps=50,restarts=5."},
    )
    eps: list[Fraction] = field(default_factory=lambda: ["1/255"], metadata={"help": "Radii in [0, 1] pixels."})
    norm: str = field(default="linf", metadata={"help": "linf or l2."})
    proxy: str | None = field(default=None, metadata={"help": "Proxy for adaptive and transfer attacks."})
    protocol: str = field(default="hpt", metadata={"help": "hpt or pmg: the resolution at which images are attacked."})
    max_samples: int | None = field(default=None, metadata={"help": "So many samples a benchmark, stratified."})
    evaluations: int = field(
        default=10, metadata={"help": "How often a randomised classifier is asked about each image."}
    )
    cascade: bool = field(
        default=False,
        metadata={"help": "The worst case alone, sooner: the cheapest attack first, each on what those before left."},
    )
    batch_size: int = field(default=64, metadata={"help": "Samples per batch."})
    num_workers: int = field(default=0, metadata={"help": "Processes that decode images."})
    seed: int = field(default=0, metadata={"help": "Of the noise and the choice of samples."})
    cpu_threads: int | None = field(
        default=None,
        metadata={"help": "CPU threads, on which last digits depend; torch's own unless given."},
    )
    use_cpu: bool = field(default=False, metadata={"help": "Leave a GPU alone."})
    plan: bool = field(default=False, metadata={"help": "Print the rows and an estimate of the time; run nothing."})
    check: bool = field(
        default=False,
        metadata={"help": "Look for known mistakes on about 128 images, or max_samples; measure nothing."},
    )

    def __post_init__(self):
        self.eps = as_radii(self.eps, self.norm)
        if self.plan and self.check:
            raise InputError(
                "--plan and --check can't go together: a plan is of an evaluation, and a check measures none."
            )


def main():
    own_models = any(argument.partition("=")[0] == "--models" for argument in sys.argv)
    settings, _ = parse_config((Evaluation,), None if own_models else "evaluate", folder=HERE)
    datasets = expand_all(settings.benchmarks)
    models = [parse_model(text, loaded=True) for text in settings.models]
    proxy_model = parse_model(settings.proxy, loaded=True) if settings.proxy else None
    check_quickstart([*models, proxy_model] if proxy_model else models)
    attacks = parse_attacks(settings.attacks, settings.eps, settings.proxy)
    if settings.cascade:
        check_cascade(attacks)
    check_sampling(
        settings.max_samples, settings.batch_size, settings.num_workers, settings.seed, settings.evaluations
    )
    check_folder(Path(settings.output_dir))
    check_names(map(call_before_loading, datasets))
    check_names(model.name for model in {*models, proxy_model} - {None})
    for model in models:
        check_code(model) if is_code(model) else check_model(model)
    if proxy_model:
        check_model(proxy_model)
    set_cpu_threads(settings.cpu_threads)
    state = join_processes(settings.use_cpu)
    with hold_together(None if settings.plan else settings.output_dir), failures_located(models):
        evaluate(settings, datasets, models, proxy_model, state)


def evaluate(settings: Evaluation, datasets: list[Reference], models: list[Reference], proxy_model, state) -> None:
    """Evaluate, or plan it, once the settings are known to be right and nobody else works in `output_dir`."""
    # Data and models
    benchmarks, missing = load_available(datasets, settings.protocol)
    if not benchmarks:
        raise InputError(" ".join(missing.values()))
    for model in filter(is_code, models if state.is_main_process else []):
        print(describe_code(model))
    subjects = [load_subject(model, state.device) for model in models]
    proxy = load_subject(proxy_model, state.device) if proxy_model else None
    if settings.check:
        return check(settings, subjects, benchmarks, proxy, missing, state)

    # Evaluate
    evaluator = RobustnessEvaluator(
        attacks=settings.attacks,
        eps=settings.eps,
        norm=settings.norm,
        proxy=proxy and proxy.classifier,
        proxy_name=proxy and proxy.name,
        max_samples=settings.max_samples,
        evaluations=settings.evaluations,
        cascade=settings.cascade,
        batch_size=settings.batch_size,
        num_workers=settings.num_workers,
        seed=settings.seed,
        output_dir=settings.output_dir,
    )
    failures = [f"{name}: {reason}" for name, reason in missing.items()]
    planned = evaluator.plan_all(subjects, benchmarks, failures)
    if not planned:
        raise InputError(" ".join(failures))
    notes = [markdown(line) for line in evaluator.left_out]
    notes += [f"Missing: {markdown(failure)}" for failure in failures]
    if settings.plan:
        if state.is_main_process:
            print("\n".join([format_plan(evaluator.progress(planned)), *notes]))
        return
    if state.is_main_process:
        print("".join(f"{line}\n" for line in notes), end="")  # and again at the end
        print_what_is_there(evaluator, planned)
    evaluator.run_all(planned, failures)  # whatever fails, the others still run
    if state.is_main_process:
        report_evaluation(evaluator, planned, missing, failures)
    state.wait_for_everyone()  # or the launcher would end a process that is still drawing
    if failures:
        sys.exit(1)


def check(settings: Evaluation, subjects: list[Subject], benchmarks, proxy, missing, state) -> None:
    """Look for the mistakes that numbers of robustness were published with; exits with 1 if there are some."""
    findings, failures = [], [f"{name}: {reason}" for name, reason in missing.items()]
    if state.is_main_process:
        findings = check_protocols(
            subjects,
            benchmarks,
            settings.attacks,
            settings.eps,
            proxy,
            failures,
            norm=settings.norm,
            max_samples=settings.max_samples or IMAGES,
            batch_size=settings.batch_size,
            seed=settings.seed,
            device=state.device,
        )
        report_findings(findings, Path(settings.output_dir), failures)
    state.wait_for_everyone()
    if failures or any(finding.verdict == WRONG for finding in findings):
        sys.exit(1)


def print_what_is_there(evaluator: RobustnessEvaluator, planned: list[list[Task]]) -> None:
    """Say that an evaluation goes on, or that there is nothing left of it to measure."""
    progress = evaluator.progress(planned)
    there = [progress.done(task) == 1 for task in progress.tasks]
    if any(there):
        left = "is finished" if all(there) else "goes on"
        print(f"The evaluation in {evaluator.results.folder} {left}: {sum(there)} of {len(there)} rows are there.")


def load_subject(model: Reference, device) -> Evaluated:
    """A model that `--models` names."""
    if is_code(model):
        return load_code(model, device)
    name, classifier = load_named(model, device)
    return Subject(classifier, name)


if __name__ == "__main__":
    run_recipe(main)
