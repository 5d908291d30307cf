"""`RobustnessEvaluator`: a model on benchmarks under attacks, resumable, shared by processes, with intervals.

evaluator = RobustnessEvaluator(attacks=["pgd", "cw", "apgd"], eps=[1 / 255, 4 / 255], output_dir="outputs/evaluation")
rows = evaluator(clip, processor, [load_benchmark("cifar10"), load_benchmark("digits")], name="my clip")
rows = evaluator(classifier=defence, benchmarks="digits", name="my defence")  # any function of images to logits

Each row is worked off in pools of batches fixed by the samples' order, with noise from (seed, sample id), so that
every sample gets the same verdict whatever the number of processes, and however often the evaluation was killed and
continued.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import numpy as np
from accelerate.utils import broadcast_object_list

from hpt.attacks import Cascade
from hpt.attacks.registry import parse_attacks
from hpt.classifiers import Classifier, OpenClassifier
from hpt.data.benchmark import Benchmark
from hpt.data.given import as_benchmarks
from hpt.data.images import check_images, collate, to_unit_range
from hpt.errors import InputError, check_at_least, message_of
from hpt.evaluation.functions import as_subject
from hpt.evaluation.plan import Task, check_cascade
from hpt.evaluation.planner import Planner
from hpt.evaluation.progress import Progress
from hpt.evaluation.results import ResultsFolder
from hpt.evaluation.rows import LARGE_EPS, Row, Rows
from hpt.evaluation.scoring import score_batch
from hpt.evaluation.subject import Evaluated, Subject
from hpt.evaluation.summary import counts_against_model, find_worst_case
from hpt.evaluation.work import Work, finite
from hpt.models.classifier import ZeroShotClassifier
from hpt.processes import dead_workers_explained, hold_together, join_processes
from hpt.radius import as_radii
from hpt.references import check_names


def check_sampling(
    max_samples: int | None, batch_size: int, num_workers: int, seed: int, evaluations: int = 1
) -> None:
    """Refuse numbers that no evaluation can have; [`InputError`] naming the first."""
    if max_samples is not None:
        check_at_least(1, max_samples=max_samples)
    check_at_least(1, batch_size=batch_size, evaluations=evaluations)
    check_at_least(0, num_workers=num_workers, seed=seed)


class RobustnessEvaluator:
    """Accuracy of models on benchmarks, clean and under attacks in float32, with the worst case over the attacks.

    Calling it with a model gives its rows: per benchmark `"clean"`, then per eps one of each attack and the
    `"worst case"`. Samples that are wrong without an attack aren't attacked. A `"large-eps check"` on about 128
    samples, whose images may become all grey, shows whether attacks work at all; see `hpt.evaluation.flags`.

    A classifier that says that it is `randomised` is asked `evaluations` times about each image, clean or attacked,
    with draws that no attack has seen. Its accuracy is the mean: the chance that it is right once the attacker has
    chosen the image, which is what the risk of a randomised classifier is defined by (arXiv 2002.11565). Rows have
    the accuracy in each evaluation too, and the share of images that are right in all of them. Under several attacks,
    an image counts by the one that leaves it right the least often: with few evaluations, a little too low an
    accuracy. Images are attacked that are right at least once.

    Args:
        attacks (`str` or `list[str]`): Names in [`ATTACKS`], with settings behind a colon where they differ from the
            attack's defaults, such as `"pgd:steps=50,restarts=5"`; or `"transfer-to-proxy"`, made on the model,
            scored on the proxy.
        eps (`float`, `str` or a list of them): One or several radii in [0, 1] pixels, such as `8/255` or `"8/255"`.
        norm (`str`, *optional*, defaults to `"linf"`): `"linf"` or `"l2"`.
        proxy ([`ZeroShotClassifier`], *optional*): From [`load_proxy`], for `"adaptive"` and the transfer attacks.
        proxy_name (`str`, *optional*): What rows call it, instead of its Hub id or path.
        max_samples (`int`, *optional*): Evaluate on so many samples of each benchmark, stratified.
        evaluations (`int`, *optional*, defaults to 10): How often a randomised classifier is asked about each image.
        cascade (`bool`, *optional*, defaults to `False`): For who needs the worst case alone: the attacks in order of
            cost, each on the samples that those before left. It breaks the samples that they break one by one, and has
            one row at each radius, `"worst case (cascade)"`.
        batch_size (`int`, *optional*, defaults to 64): Images that go through a model at once.
        num_workers (`int`, *optional*, defaults to 0): Of the data loader.
        seed (`int`, *optional*, defaults to 0): Of the noise and the choice of samples.
        output_dir (`str`, *optional*): Folder for the results, continued if it holds some; without, nothing is kept.
            While it runs, no other evaluation or training works there.

    Raises:
        InputError: for unknown attacks, settings out of range, an attack that lacks its proxy, a proxy that isn't a
            classifier, an attack that a cascade can't have, or an `output_dir` in which another run is under way.
    """

    def __init__(
        self,
        *,
        attacks: str | Iterable[str] = ("pgd", "cw", "apgd"),
        eps: float | str | Iterable[float | str] = 1 / 255,
        norm: str = "linf",
        proxy: ZeroShotClassifier | None = None,
        proxy_name: str | None = None,
        max_samples: int | None = None,
        evaluations: int = 10,
        cascade: bool = False,
        batch_size: int = 64,
        num_workers: int = 0,
        seed: int = 0,
        output_dir: str | None = None,
    ):
        self.radii = as_radii(eps, norm)
        self.attacks = parse_attacks(attacks, self.radii, proxy)
        if cascade:
            check_cascade(self.attacks)
        self.seed = seed
        check_sampling(max_samples, batch_size, num_workers, seed, evaluations)
        if proxy is not None and not isinstance(proxy, ZeroShotClassifier):
            raise InputError(
                f"The proxy is a {type(proxy).__name__}, but must be a classifier: give load_proxy(name), or "
                "ZeroShotClassifier(model, processor)."
            )
        self.proxy = None if proxy is None else Subject(proxy, proxy_name)
        self.state = join_processes()
        self.results = ResultsFolder(output_dir, self.state.process_index)
        self._planner = Planner(
            self.results,
            self.attacks,
            self.radii,
            self.proxy,
            seed=seed,
            batch_size=batch_size,
            max_samples=max_samples,
            evaluations=evaluations,
            cascade=cascade,
        )
        self._work = Work(self.results, self.state, batch_size, num_workers)
        with hold_together(self.results.folder):
            self._read_results()

    def _read_results(self) -> None:
        kept = list(self.results.read()) if self.state.is_main_process else [None, None]
        self.results.take_up(*broadcast_object_list(kept))

    @contextmanager
    def _holding_results(self) -> Iterator[None]:
        """Within, no other run writes into `output_dir`; what one has written there up to now is taken up."""
        with hold_together(self.results.folder) as held_from_here:
            if held_from_here:
                self._read_results()
            yield

    def __call__(
        self,
        model=None,
        processor=None,
        benchmarks=None,
        name: str | None = None,
        *,
        classifier: Classifier | OpenClassifier | None = None,
        attacked: Classifier | OpenClassifier | None = None,
        attacked_name: str | None = None,
    ) -> Rows:
        """Evaluate a model, or any other function of images to logits.

        Args:
            model (`PreTrainedModel`): A dual encoder, on its device; it is put into eval mode.
            processor (`ProcessorMixin`): Its processor.
            benchmarks: What to classify: a [`Benchmark`], or what [`load_benchmark`] calls one; a dataset with class
                names, as [`HPTTrainer`] takes it; a list of these, or a dict, whose keys are what rows call them.
            name (`str`, *optional*): What rows call it, instead of its Hub id or path; a function needs one.
            classifier ([`Classifier`] or [`OpenClassifier`], *optional*): Instead of model and processor, a function
                of images in [0, 1] to logits over the classes of every benchmark, or what gives one by
                `with_classes(class_names, template)`. Images come to it as the benchmark says, or at their own size.
            attacked ([`Classifier`] or [`OpenClassifier`], *optional*): What attacks see instead of it, such as a
                defence's model without the defence: rows say so, and are flagged, for such an attack doesn't see what
                is scored.
            attacked_name (`str`, *optional*): What rows call that.

        Returns:
            [`Rows`]: a list of [`Row`], in the order of the benchmarks, then of eps, then of the attacks.
            `rows.to_pandas()` makes a table of them, and `print(format_accuracies(rows))` shows them as one.

        Raises:
            InputError: for images that can't be read, logits that aren't finite or have no gradient that an attack
                follows, or an `output_dir` with results from other settings, or in which another run is under way.
        """
        subject = self._subject(model, processor, name, classifier)
        seen = None if attacked is None else as_subject(attacked, attacked_name, self.state.device, what="attacked")
        benchmarks = as_benchmarks(benchmarks)
        if not benchmarks:
            raise InputError("There is nothing to evaluate on: give benchmarks.")
        check_names(benchmark.name for benchmark in benchmarks)
        for benchmark in benchmarks:
            check_images(benchmark.dataset, benchmark.name, same_size=benchmark.is_native)
        with self._holding_results():
            return self.run_all([self.plan(subject, benchmark, seen) for benchmark in benchmarks])

    def _subject(self, model, processor, name: str | None, classifier) -> Evaluated:
        if classifier is not None and model is None and processor is None:
            return as_subject(classifier, name, self.state.device)
        if classifier is not None or model is None or processor is None:
            raise InputError(
                "Give a model with its processor, or classifier=..., a function of images in [0, 1] to logits."
            )
        return Subject(ZeroShotClassifier(model, processor).eval(), name)

    def plan(self, subject: Evaluated, benchmark: Benchmark, attacked: Evaluated | None = None) -> list[Task]:
        """The rows to be of a model on one benchmark; see [`Planner.plan`]."""
        return self._planner.plan(subject, benchmark, attacked)

    def plan_all(
        self, subjects: list[Evaluated], benchmarks: list[Benchmark], failures: list[str]
    ) -> list[list[Task]]:
        """What [`plan`] gives for each model on each benchmark; see [`Planner.plan_all`]."""
        return self._planner.plan_all(subjects, benchmarks, failures)

    @property
    def left_out(self) -> list[str]:
        """A line for each attack that was left out of what was planned, and why."""
        return self._planner.left_out

    # Running

    def progress(self, planned: list[list[Task]]) -> Progress:
        """How far the rows are that [`plan`] gave for several models and benchmarks."""
        tasks = [task for tasks in planned for task in tasks]
        return Progress(tasks, self.results, self.state.num_processes)

    def run_all(self, planned: list[list[Task]], failures: list[str] | None = None) -> Rows:
        """The rows of what [`plan`] gave for several models and benchmarks; `failures` as of [`run`]."""
        with self._holding_results():
            progress = self.progress(planned)
            return Rows(row for tasks in planned for row in self.run(tasks, failures, progress))

    @dead_workers_explained()
    def run(self, tasks: list[Task], failures: list[str] | None = None, progress: Progress | None = None) -> list[Row]:
        """The rows of what [`plan`] gave for one model and benchmark; finished ones are taken from the results.

        Args:
            tasks (`list[Task]`): From [`plan`].
            failures (`list[str]`, *optional*): Takes a line for each task that can't be finished, and the others
                still run; without, the first of them raises an [`InputError`].
            progress ([`Progress`], *optional*): Of an evaluation that these are a part of.
        """
        with self._holding_results():
            self._planner.expect(tasks)
            return self._run(tasks, failures, progress or self.progress([tasks]))

    def _run(self, tasks: list[Task], failures: list[str] | None, progress: Progress) -> list[Row]:
        self.results.save_samples(tasks[0].benchmark)
        rows = []
        for task in tasks:
            if task.clean is not None and task.clean.key not in self.results.rows:
                continue  # whose failure stands among the failures
            with _noting(failures):
                rows.append(self._work.finish(task, progress))
        attacked = {row.radius: row.against for row in rows if counts_against_model(row)}
        for radius in self.radii:
            if radius in attacked:
                with _noting(failures):
                    rows.append(find_worst_case(self.results, tasks[0], radius, attacked[radius]))
        return rows

    def examples(self, tasks: list[Task], number: int = 5) -> list[dict]:
        """Samples that are right without an attack, attacked again by the first attack at the largest eps, for
        [`~hpt.evaluation.figures.draw_adversarial_images`]; none if nothing was attacked."""
        attacked = [task for task in tasks if task.clean is tasks[0] and task.settings["attack"] != LARGE_EPS]
        attacked = [task for task in attacked if task.attack.radius == self.radii[-1]]
        attacked = [task for task in attacked if task.key in self.results.rows]
        if not attacked:
            return []
        task = attacked[0]
        attack, name = task.attack, task.settings["attack"]
        if isinstance(attack, Cascade):  # of which one attack will do for a picture
            name, attack = next(iter(attack.attacks.items()))
        before = self.results.predicted(task.clean.key)[0]
        if len(before) < len(task.benchmark):
            return []  # lost, which stands among the failures
        right = np.flatnonzero(before == np.asarray(task.benchmark.dataset["label"][:]))[:number]
        if len(right) == 0:
            return []
        inputs = collate([task.benchmark[row] for row in right.tolist()])
        inputs = {name: values.to(task.device) for name, values in inputs.items()}
        images = to_unit_range(inputs["pixel_values"])
        scores = score_batch(task.scored, attack, inputs, attacked=task.attacked, seed=self.seed)
        after, names = finite(scores.logits).argmax(-1).tolist(), task.benchmark.class_names
        return [
            {
                "clean": images[place].cpu(),
                "adversarial": scores.images[place].cpu(),
                "label": names[inputs["labels"][place]],
                "before": names[before[row]],
                "after": names[after[place]],
                "attack": f"{name} at {attack.radius}",
            }
            for place, row in enumerate(right)
        ]


@contextmanager
def _noting(failures: list[str] | None) -> Iterator[None]:
    """Within, an [`InputError`] becomes a line of the failures, if there is a list of them."""
    try:
        yield
    except InputError as error:
        if failures is None:
            raise
        failures.append(message_of(error))
