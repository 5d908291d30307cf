"""How the rows of an evaluation are worked off: pool by pool of batches, shared by the processes, each kept when done.

work = Work(results, PartialState(), batch_size=64, num_workers=0)
row = work.finish(task, progress)
"""

import time
from collections.abc import Iterator
from itertools import islice

import numpy as np
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
from hpt.evaluation.scoring import Scores, evaluate_images, score_batch
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
        records, problem = [], None
        try:
            pools = [pool for pool in task.pools if not set(pool).isdisjoint(missing)]
            mine = pools[self.state.process_index :: self.state.num_processes]
            for record in self._work_off_all(task, mine, set(missing), progress):
                records.append(record)
        except InputError as error:  # to be raised by all processes alike
            problem = message_of(error)
        done |= {record["batch"]: record for record in gather_object(records)}
        problems = [line for line in gather_object([problem]) if line is not None]
        if problems:
            raise InputError(f"{task}: {problems[0]}")

    def _work_off_all(self, task: Task, pools: list[range], missing: set[int], progress: Progress) -> Iterator[dict]:
        """Work off pools of batches, and keep and give what was predicted for those missing as each pool is finished.

        A pool that was cut off between its batches is worked off whole again: other samples beside it would change
        the last digits of a sample's logits.
        """
        size = self.batch_size
        batches = [batch for pool in pools for batch in pool]
        sampler = [range(batch * size, min((batch + 1) * size, len(task.benchmark))) for batch in batches]
        loader = DataLoader(task.benchmark, batch_sampler=sampler, collate_fn=collate, num_workers=self.num_workers)
        right, seen, loaded = {"clean": 0, "robust": 0}, 0, iter(loader)
        with progress.bar(task, len(batches), disable=not self.state.is_local_main_process) as bar:
            for pool in pools:
                inputs = list(islice(loaded, len(pool)))
                for batch, record in zip(pool, self._work_off(task, pool, inputs, bar), strict=True):
                    if batch in missing:
                        record = self.results.add_predictions(task.key, batch, record)
                        progress.add(task, record)
                        yield record
                for batch, given in zip(pool, inputs, strict=True):
                    seen += len(given["labels"])
                    right["clean"] += self._number_right(task.clean or task, batch, given)
                    right["robust"] += self._number_right(task, batch, given)
                shown = ["clean", "robust"] if task.clean else ["clean"]
                bar.set_postfix({kind: f"{100 * right[kind] / seen:.1f} %" for kind in shown}, refresh=False)
                bar.set_description(progress.describe(task))

    def _work_off(self, task: Task, pool: range, inputs: list[dict], bar: tqdm) -> list[dict]:
        """What is predicted for the batches of a pool, with what each took: its share of what all did."""
        attacked = [self._number_attacked(task, batch, given) for batch, given in zip(pool, inputs, strict=True)]
        most = max(1, sum(attacked) * task.most_passes)
        counter, start = PassCounter(bar, most, len(pool)), time.perf_counter()
        inputs = [{name: values.to(task.device) for name, values in given.items()} for given in inputs]
        # Attacks are in float32
        with torch.autocast(task.device.type, enabled=False), watch_passes(counter.note):
            records = self._attack(task, pool, inputs) if task.attack else self._classify(task, pool[0], inputs[0])
        counter.finish()
        seconds = time.perf_counter() - start
        for record, number in zip(records, attacked, strict=True):
            share = number / sum(attacked) if any(attacked) else 1 / len(pool)
            record |= {"seconds": share * seconds, "passes": round(share * counter.passes)}
            record |= {"most_passes": max(1, number * task.most_passes)}
        return records

    def _number_attacked(self, task: Task, batch: int, inputs: dict) -> int:
        """How many samples of a batch are worked on: all, or those that an attack finds right at least once."""
        labels = inputs["labels"]
        return len(labels) if task.clean is None else int(self._right(task.clean, batch, labels).any(0).sum())

    def _right(self, task: Task, batch: int, labels: torch.Tensor) -> torch.Tensor:
        """Which samples of a batch that is done are predicted right, `(evaluations, samples)`."""
        predicted = torch.from_numpy(predictions_of(self.results.predictions[task.key][batch]))
        return predicted == labels.cpu()

    def _number_right(self, task: Task, batch: int, inputs: dict) -> float:
        """How many samples of a batch that is done are predicted right, on average over the evaluations."""
        right = self._right(task, batch, inputs["labels"])
        return right.sum().item() / len(right)

    def _classify(self, task: Task, batch: int, inputs: dict) -> list[dict]:
        """What is predicted for a batch of clean images."""
        drawn = {"seed": task.settings["seed"], "evaluations": task.evaluations}
        logits = finite(score_batch(task.scored, None, inputs, **drawn).evaluations)
        record = as_record(logits.argmax(-1).tolist())
        if batch == 0:
            again = finite(score_batch(task.scored, None, inputs, **drawn).evaluations)
            record["stochastic"] = not torch.allclose(again, logits, rtol=1e-3, atol=1e-3)
        return [record]

    def _attack(self, task: Task, pool: range, inputs: list[dict]) -> list[dict]:
        """What is predicted for the batches of a pool under attack, and what the attack noticed."""
        whole = {name: torch.cat([given[name] for given in inputs]) for name in inputs[0]}
        clean = [predictions_of(self.results.predictions[task.clean.key][batch]) for batch in pool]
        predictions = torch.tensor(np.concatenate(clean, axis=1), device=task.device)
        right = (predictions == whole["labels"]).any(0)  # the others aren't attacked
        zero_gradient, broken_by = torch.zeros_like(right), torch.full_like(whole["labels"], -1)
        if right.any():
            scores = self._score(task, whole, right)
            predictions[:, right] = finite(scores.evaluations).argmax(-1)
            zero_gradient[right] = scores.result.zero_gradient
            if scores.result.broken_by is not None:
                broken_by[right] = scores.result.broken_by
        sizes = [len(given["labels"]) for given in inputs]
        parts = zip(predictions.split(sizes, dim=1), zero_gradient.split(sizes), broken_by.split(sizes), strict=True)
        names = task.attack.running(len(task.benchmark.class_names)) if isinstance(task.attack, Suite) else []
        return [
            as_record(predicted.tolist())
            | {"zero_gradient": int(zero.sum())}
            | {"broken_by": {name: int((broken == place).sum()) for place, name in enumerate(names)}}
            for predicted, zero, broken in parts
        ]

    def _score(self, task: Task, inputs: dict, right: torch.Tensor) -> Scores:
        """Attack those samples of a pool that are right, and score them."""
        seed, size = task.settings["seed"], self.batch_size
        images, ids = to_unit_range(inputs["pixel_values"])[right], inputs["sample_ids"][right]
        seen = task.attacked or task.scored
        for model in task.attack.followed(seen):
            if model is not seen:  # a proxy
                finite(evaluate_images(model, images, ids, seed, batch_size=size))
        settings = {"seed": seed, "evaluations": task.evaluations, "batch_size": size}
        scores = score_batch(task.scored, task.attack, inputs, only=right, attacked=task.attacked, **settings)
        _check_within_ball(task, images, scores.images)
        return scores


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
