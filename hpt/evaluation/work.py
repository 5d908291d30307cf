"""How the rows of an evaluation are worked off: batch by batch, shared by the processes, each kept as it is finished.

work = Work(results, PartialState(), batch_size=64, num_workers=0)
row = work.finish(task, progress)
"""

import time
from collections.abc import Iterator

import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from hpt.attacks import Suite
from hpt.attacks.passes import watch_passes
from hpt.data.images import collate, to_unit_range
from hpt.errors import InputError, message_of
from hpt.evaluation.plan import Task
from hpt.evaluation.progress import PassCounter, Progress
from hpt.evaluation.results import ResultsFolder, as_record, predictions_of
from hpt.evaluation.rows import Row
from hpt.evaluation.scoring import evaluate_images, score_batch
from hpt.evaluation.summary import refuse_altered_row, summarise


class Work:
    """Works off the batches of tasks that the results lack.

    Args:
        results ([`ResultsFolder`]): Takes predictions and rows.
        state (`PartialState`): The processes among which batches are shared.
        batch_size, num_workers (`int`): Of the data loader.
    """

    def __init__(self, results: ResultsFolder, state: PartialState, batch_size: int, num_workers: int):
        self.results, self.state = results, state
        self.batch_size, self.num_workers = batch_size, num_workers

    def finish(self, task: Task, progress: Progress) -> Row:
        """The task's row, from the results or by working off the batches that they lack."""
        if missing := self.results.missing(task.key, task.num_batches):
            self._share(task, missing, progress)
        if task.key in self.results.rows:
            refuse_altered_row(self.results, task)
        else:
            self.results.add_row(summarise(self.results, task))
        return self.results.rows[task.key]

    def _share(self, task: Task, missing: list[int], progress: Progress) -> None:
        """Work off batches of a task, shared by the processes."""
        done = self.results.predictions.setdefault(task.key, {})
        mine = missing[self.state.process_index :: self.state.num_processes]
        records, problem = [], None
        try:
            for record in self._attack_batches(task, mine, progress):
                records.append(record)
        except InputError as error:  # to be raised by all processes alike
            problem = message_of(error)
        done |= {record["batch"]: record for record in gather_object(records)}
        problems = [line for line in gather_object([problem]) if line is not None]
        if problems:
            raise InputError(f"{task}: {problems[0]}")

    def _attack_batches(self, task: Task, batches: list[int], progress: Progress) -> Iterator[dict]:
        """Work off batches of a task, and keep and give what was predicted as each is finished."""
        size = self.batch_size
        sampler = [range(batch * size, min((batch + 1) * size, len(task.benchmark))) for batch in batches]
        loader = DataLoader(task.benchmark, batch_sampler=sampler, collate_fn=collate, num_workers=self.num_workers)
        right, seen = {"clean": 0, "robust": 0}, 0
        with progress.bar(task, len(batches), disable=not self.state.is_local_main_process) as bar:
            for batch, inputs in zip(batches, loader, strict=True):
                record = self._work_off(task, batch, inputs, bar)
                progress.add(task, record)
                yield record
                seen += len(inputs["labels"])
                right["clean"] += self._number_right(task.clean or task, batch, inputs)
                right["robust"] += self._number_right(task, batch, inputs)
                shown = ["clean", "robust"] if task.clean else ["clean"]
                bar.set_postfix({kind: f"{100 * right[kind] / seen:.1f} %" for kind in shown}, refresh=False)
                bar.set_description(progress.describe(task))

    def _work_off(self, task: Task, batch: int, inputs: dict, bar: tqdm) -> dict:
        """What is predicted for a batch, kept, with what it took."""
        labels = inputs["labels"]
        attacked = len(labels) if task.clean is None else int(self._right(task.clean, batch, labels).any(0).sum())
        counter, start = PassCounter(bar, max(1, attacked * task.most_passes)), time.perf_counter()
        inputs = {name: values.to(task.device) for name, values in inputs.items()}
        # Attacks are in float32
        with torch.autocast(task.device.type, enabled=False), watch_passes(counter.note):
            record = self._attack_batch(task, batch, inputs)
        counter.finish()
        record |= {"seconds": time.perf_counter() - start}
        record |= {"passes": counter.passes, "most_passes": counter.most_passes}
        return self.results.add_predictions(task.key, batch, record)

    def _right(self, task: Task, batch: int, labels: torch.Tensor) -> torch.Tensor:
        """Which samples of a batch that is done are predicted right, `(evaluations, samples)`."""
        predicted = torch.from_numpy(predictions_of(self.results.predictions[task.key][batch]))
        return predicted == labels.cpu()

    def _number_right(self, task: Task, batch: int, inputs: dict) -> float:
        """How many samples of a batch that is done are predicted right, on average over the evaluations."""
        right = self._right(task, batch, inputs["labels"])
        return right.sum().item() / len(right)

    def _attack_batch(self, task: Task, batch: int, inputs: dict) -> dict:
        """What is predicted for a batch, clean or adversarial, and what the attack noticed."""
        drawn = {"seed": task.settings["seed"], "evaluations": task.evaluations}
        if task.attack is None:
            logits = finite(score_batch(task.scored, None, inputs, **drawn).evaluations)
            record = as_record(logits.argmax(-1).tolist())
            if batch == 0:
                again = finite(score_batch(task.scored, None, inputs, **drawn).evaluations)
                record["stochastic"] = not torch.allclose(again, logits, rtol=1e-3, atol=1e-3)
            return record
        predictions = predictions_of(self.results.predictions[task.clean.key][batch])
        predictions = torch.tensor(predictions, device=task.device)
        right = (predictions == inputs["labels"]).any(0)  # the others aren't attacked
        noticed = {"zero_gradient": 0, "broken_by": {}}
        if right.any():
            images, ids = to_unit_range(inputs["pixel_values"])[right], inputs["sample_ids"][right]
            if task.attack.needs_proxy:
                finite(evaluate_images(task.attack.proxy, images, ids, drawn["seed"]))
            scores = score_batch(task.scored, task.attack, inputs, only=right, attacked=task.attacked, **drawn)
            _check_within_ball(task, images, scores.images)
            predictions[:, right] = finite(scores.evaluations).argmax(-1)
            noticed["zero_gradient"] = int(scores.result.zero_gradient.sum())
            if isinstance(task.attack, Suite):
                names = task.attack.running(len(task.benchmark.class_names))
                noticed["broken_by"] = {
                    name: int((scores.result.broken_by == place).sum()) for place, name in enumerate(names)
                }
        return as_record(predictions.tolist()) | noticed


def finite(logits: torch.Tensor) -> torch.Tensor:
    """The logits; [`InputError`] if some aren't finite."""
    if not logits.isfinite().all():
        raise InputError(
            "the logits of the model, or of its proxy, aren't finite, so nothing can be said of it: check its weights "
            "and dtype."
        )
    return logits


def _check_within_ball(task: Task, images: torch.Tensor, adversarial: torch.Tensor) -> None:
    """Never score what the threat model doesn't allow."""
    change = (adversarial - images).flatten(1)
    length = change.abs().amax(1) if task.attack.norm == "linf" else change.norm(dim=1)
    allowed = task.attack.eps * 1.001 + 1e-6  # float32's rounding
    if not (length.max() <= allowed and adversarial.min() >= 0 and adversarial.max() <= 1):  # and so not NaN
        raise RuntimeError(f"{task}: the attack left its eps-ball or [0, 1], which is a defect of the attack.")
