"""A data loader's worker that dies: one line that says what to do, at once; and workers that nobody needs any more."""

import os
import signal
import time
from dataclasses import dataclass, replace
from multiprocessing.process import BaseProcess

import psutil
import pytest
import torch
from helpers import TerminateAt, make_benchmark, make_clip, make_dataset, make_trainer

from hpt import RobustnessEvaluator, ZeroShotClassifier
from hpt.data.geometry import ImageTransform
from hpt.errors import WorkerDied
from hpt.evaluation.comparison import predict
from hpt.evaluation.subject import Subject
from hpt.training.checkpoints import last_checkpoint


LINE = r"^DataLoader worker \(pid.* \d+\) [^\n]+\. If memory ran out, `dmesg` says so: take fewer workers or smaller"


@dataclass(frozen=True)
class Deadly(ImageTransform):
    """What the system does to a worker that takes too much memory."""

    number: int = signal.SIGKILL

    def __call__(self, image, *more):
        if torch.utils.data.get_worker_info() is not None:
            os.kill(os.getpid(), self.number)
        return super().__call__(image, *more)


def trains(folder):
    trainer = make_trainer(folder, dataloader_num_workers=2, save_strategy="steps", save_steps=1)
    trainer.add_callback(KillWorker(4))
    trainer.train()


def evaluates_in_training(folder):
    make_trainer(folder, eval_dataset=deadly_benchmark(), eval_strategy="epoch", dataloader_num_workers=1).train()


def evaluates_a_trainer(folder):
    make_trainer(folder, eval_dataset=deadly_benchmark(), dataloader_num_workers=1).evaluate()


def evaluates(folder):
    model, processor = make_clip()
    evaluator = RobustnessEvaluator(attacks="pgd", batch_size=4, num_workers=1, output_dir=folder)
    evaluator(model, processor, deadly_benchmark())


def compares(folder):
    subject = Subject(ZeroShotClassifier(*make_clip()).eval(), "mine")
    predict([subject], deadly_benchmark(), batch_size=4, num_workers=1)


def deadly_benchmark(number=signal.SIGKILL):
    return replace(make_benchmark(), transform=Deadly(number=number))


class KillWorker(TerminateAt):
    """SIGKILL to the first of the workers that a run has started."""

    def __init__(self, step):
        super().__init__(step, signal.SIGKILL)
        self.before = psutil.Process().children()

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step + 1 == self.step:
            next(child for child in psutil.Process().children() if child not in self.before).kill()


@pytest.mark.parametrize("work", [trains, evaluates_in_training, evaluates_a_trainer, evaluates, compares])
def test_a_killed_worker_is_a_line_at_once(tmp_path, work):
    start = time.monotonic()
    with pytest.raises(WorkerDied, match=LINE) as death:
        work(tmp_path)
    assert str(death.value).count("If memory ran out") == 1  # also of an evaluation within a training
    assert time.monotonic() - start < 15
    assert work is not trains or last_checkpoint(tmp_path) is not None


@pytest.mark.parametrize("number", [signal.SIGBUS, signal.SIGSEGV, signal.SIGTERM])
def test_other_deaths_are_the_same_line(number, capfd):
    subject = Subject(ZeroShotClassifier(*make_clip()).eval(), "mine")
    with pytest.raises(WorkerDied, match=LINE):
        predict([subject], deadly_benchmark(number), batch_size=4, num_workers=1)


def test_a_comparison_starts_no_more_workers_than_it_is_asked_for(subject, benchmark, monkeypatch):
    """Of two that die, the second would be reported wherever the program then is."""
    started, start = [], BaseProcess.start
    monkeypatch.setattr(BaseProcess, "start", lambda process: (started.append(process), start(process)))
    predict([subject], benchmark, batch_size=4, num_workers=2)
    assert len(started) == 2


def test_an_error_of_ones_own_stays_as_it_is(monkeypatch, subject, benchmark):
    def broken(*_):
        raise RuntimeError("mine")

    monkeypatch.setattr("hpt.evaluation.comparison.score_batch", broken)
    with pytest.raises(RuntimeError, match="^mine$"):
        predict([subject], benchmark)


def test_workers_outside_of_training_die_of_the_first_sigterm(tmp_path):
    """In training they outlive it: see `test_a_signal_to_all_processes_leaves_the_loaders_workers_alive`."""
    before = psutil.Process().children()
    trainer = make_trainer(
        tmp_path, eval_dataset=make_dataset(6), dataloader_num_workers=1, dataloader_persistent_workers=True
    )
    trainer.evaluate()
    (worker,) = (child for child in psutil.Process().children() if child not in before)
    with pytest.raises(RuntimeError, match=f"{worker.pid}.* is killed by signal: Terminated"):
        worker.terminate()
        time.sleep(5)


@pytest.mark.parametrize("streamed", [True, False])
def test_workers_that_persist_over_epochs_end_with_training(tmp_path, streamed):
    before = psutil.Process().children()
    dataset = make_dataset(12)
    trainer = make_trainer(
        tmp_path,
        dataset=dataset.to_iterable_dataset(num_shards=2) if streamed else dataset,
        steps_per_epoch=3 if streamed else None,
        dataloader_num_workers=2,
        dataloader_persistent_workers=True,
    )
    trainer.train()
    assert [child for child in psutil.Process().children() if child not in before] == []
