"""Which rows an evaluation is going to have, checked against those that its folder has; nothing is run.

planner = Planner(results, attacks, radii, proxy, seed=0, batch_size=64, max_samples=None, evaluations=10)
tasks = planner.plan(subject, benchmark)
"""

import logging
from dataclasses import replace

from hpt.attacks import Attack, NamedAttack
from hpt.data.benchmark import Benchmark
from hpt.errors import InputError
from hpt.evaluation.plan import (
    Task,
    check_attacked,
    check_gradients,
    check_samples_leave,
    plan_attack,
    plan_attack_on,
    plan_cascade,
    plan_clean,
    plan_large_eps,
)
from hpt.evaluation.results import ResultsFolder
from hpt.evaluation.subject import Evaluated, Subject
from hpt.evaluation.summary import refuse_altered_row, refuse_odd_predictions
from hpt.radius import Radius


logger = logging.getLogger(__name__)


class Planner:
    """Plans rows, and expects them of the results: what contradicts them is refused from there on.

    Args:
        results ([`ResultsFolder`]): What is there.
        attacks (`list[NamedAttack]`), radii (`list[Radius]`): What models have to withstand.
        proxy ([`Subject`], *optional*): For attacks that are made with one.
        seed, batch_size, max_samples, evaluations, cascade: as of [`RobustnessEvaluator`].

    Attributes:
        left_out (`list[str]`): A line for each attack that was left out of what was planned, and why.
    """

    def __init__(
        self,
        results: ResultsFolder,
        attacks: list[NamedAttack],
        radii: list[Radius],
        proxy: Subject | None,
        *,
        seed: int,
        batch_size: int,
        max_samples: int | None,
        evaluations: int,
        cascade: bool,
    ):
        self.results, self.attacks, self.radii, self.proxy = results, attacks, radii, proxy
        self.seed, self.batch_size, self.max_samples, self.evaluations = seed, batch_size, max_samples, evaluations
        self.cascade = cascade
        self.left_out: list[str] = []
        self._undrawn: set[str] = set()  # attacks over draws that were left out
        self._unknown: set[str] = set()  # names of functions of which a warning has said that they aren't identified

    def plan_all(
        self, subjects: list[Evaluated], benchmarks: list[Benchmark], failures: list[str]
    ) -> list[list[Task]]:
        """What [`plan`] gives for each model on each benchmark.

        An attack that averages over draws is left out for models that aren't randomised, if another one is.

        Args:
            subjects, benchmarks (`list`): What is evaluated on what.
            failures (`list[str]`): Takes a line for each model and benchmark that is refused.

        Raises:
            InputError: if an attack averages over draws, and none of several models has any.
        """
        planned, among_several = [], len(subjects) > 1
        for subject in subjects:
            for benchmark in benchmarks:
                try:
                    planned.append(self.plan(subject, benchmark, among_several=among_several))
                except InputError as error:
                    failures.append(f"{subject.name}, {benchmark.name}: {error}")
        self._refuse_undrawn({task.settings["attack"] for tasks in planned for task in tasks}, failures)
        return planned

    def _refuse_undrawn(self, planned: set[str], failures: list[str]) -> None:
        """Refuse attacks over draws that were left out everywhere."""
        if undrawn := sorted(self._undrawn - planned):
            reason = (
                f"Of {', '.join(undrawn)}, gradients are averaged over draws, but nothing that is attacked says "
                "`randomised = True`, so that all draws would be the same: leave eot out."
            )
            raise InputError(" ".join([*failures, reason]))

    def plan(
        self,
        subject: Evaluated,
        benchmark: Benchmark,
        attacked: Evaluated | None = None,
        *,
        among_several: bool = False,
    ) -> list[Task]:
        """The rows to be of a model on one benchmark.

        Args:
            subject ([`Evaluated`]): The model.
            benchmark ([`Benchmark`]): What it classifies.
            attacked ([`Evaluated`], *optional*): What attacks see instead of the model.
            among_several (`bool`, *optional*): Leave attacks out that average over draws if nothing is drawn here,
                which are refused otherwise.

        Raises:
            InputError: for attacks that can't be made on the model, and what contradicts the results that are there.
        """
        check_attacked(subject, attacked, self.attacks)
        benchmark = subject.see(benchmark).subset(self.max_samples, self.seed)
        clean, attacks = self._plan_clean(subject, benchmark), self._defined_on(benchmark)
        check_gradients(attacked or subject, benchmark, attacks)
        if self.cascade:
            check_samples_leave(subject, clean.scored, attacked)
        tasks, seen = [clean], (attacked or subject).on(benchmark)
        if self.attacks and attacked is None and subject.why_no_gradient(benchmark) is None:
            tasks.append(plan_large_eps(clean))
        on_proxy = any(attack.scored_on_proxy for attack in self.attacks)
        tasks += [self._plan_clean(self.proxy, benchmark)] if on_proxy else []
        proxy_clean = tasks[-1]
        for radius in self.radii:
            made = {}
            for named in attacks:
                attack = self._make(named, radius, clean)
                if among_several and attack.lacks_draws(seen):
                    self._undrawn.add(str(named))
                    self._leave_out(f"{named} is left out of {subject.name}: what it attacks there isn't randomised.")
                    continue
                attack.check_draws(seen)
                made[named] = attack
            if self.cascade:
                tasks += [plan_cascade(clean, made, self.proxy)] if made else []
                continue
            for named, attack in made.items():
                scored = proxy_clean if named.scored_on_proxy else clean
                tasks.append(self._plan_attack(scored, named, attack, subject, attacked))
        self.expect(tasks)
        self._warn_of_lost_predictions(tasks)
        self._warn_if_unknown(clean)
        return tasks

    def _make(self, named: NamedAttack, radius: Radius, clean: Task) -> Attack:
        proxy = None if self.proxy is None else self.proxy.on(clean.benchmark)
        return named.make(radius, seed=self.seed, proxy=clean.scored if named.scored_on_proxy else proxy)

    def _plan_attack(
        self, clean: Task, named: NamedAttack, attack: Attack, subject: Evaluated, attacked: Evaluated | None
    ) -> Task:
        """The task of an attack on a model, or on what is attacked instead, or with the proxy."""
        text = str(named)
        if attacked is not None:
            return plan_attack_on(clean, text, attack, attacked)
        if named.scored_on_proxy:
            return plan_attack(clean, text, attack, subject.name, subject, attacked_weights=subject.weights)
        if named.needs_proxy:
            made_on = self.proxy if named.is_transfer else subject
            return plan_attack(clean, text, attack, made_on.name, self.proxy, **self.proxy.as_proxy())
        return plan_attack(clean, text, attack, subject.name)

    def _plan_clean(self, subject: Evaluated, benchmark: Benchmark) -> Task:
        task = plan_clean(subject, benchmark, self.seed, self.batch_size, self.max_samples, self.evaluations)
        return replace(task, settings=self.results.as_said_there(task.settings))

    def _defined_on(self, benchmark: Benchmark) -> list[NamedAttack]:
        """The attacks that so few classes can have."""
        classes = len(benchmark.class_names)
        for attack in self.attacks:
            if classes < attack.kind.min_classes:
                self._leave_out(f"{attack} isn't defined for the {classes} classes of {benchmark.name}.")
        return [attack for attack in self.attacks if classes >= attack.kind.min_classes]

    def _leave_out(self, line: str) -> None:
        self.left_out += [line] if line not in self.left_out else []

    # Against the results that are there

    def expect(self, tasks: list[Task]) -> None:
        """Refuse tasks that contradict results that are there, or those expected, and expect theirs."""
        for task in tasks:
            self.results.refuse_other_settings(task.settings)
        for task in tasks:
            self.results.expect(task.settings)
        for task in tasks:
            refuse_odd_predictions(self.results, task)
            is_kept = task.key in self.results.rows
            if is_kept and not self._missing(task) and not self._missing(task.clean or task):
                refuse_altered_row(self.results, task)

    def _missing(self, task: Task) -> list[int]:
        return self.results.missing(task.key, task.num_batches)

    def _warn_if_unknown(self, clean: Task) -> None:
        """Say that a model which goes on under a name can't be told from another one."""
        name = clean.settings["model"]
        if clean.settings.get("identified_by") == "name" and self.results.folder and name not in self._unknown:
            self._unknown.add(name)
            logger.warning(
                f"{name} has no weights that were found: whether results in {self.results.folder} that are gone on "
                "with are of the same function can be checked by its name and settings alone."
            )

    def _warn_of_lost_predictions(self, tasks: list[Task]) -> None:
        """Say which rows the results have without their predictions."""
        kept = [task for task in tasks if task.key in self.results.rows]
        lost = [task for task in kept if len(self._missing(task)) == task.num_batches]
        if lost and self.results.rank == 0:
            logger.warning(
                f"{self.results.folder} has rows without their predictions, {len(lost)} of {len(tasks)}, the first of "
                f"{lost[0]}: they are measured again, unless predictions-*.jsonl are brought back."
            )
