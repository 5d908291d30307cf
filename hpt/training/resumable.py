"""`ResumableTrainer`: a Trainer whose runs survive being killed, and go on as if nothing had happened.

trainer.train(resume_from_checkpoint="last")  # the newest complete checkpoint in output_dir, or else from the start
"""

import json
import logging
import math
import os
import shutil
import signal
import threading
import time
from abc import abstractmethod
from contextlib import contextmanager
from functools import cached_property, partial
from pathlib import Path

import torch
from safetensors import SafetensorError
from transformers import ProgressCallback, Trainer, TrainerState
from transformers.trainer import TRAINER_STATE_NAME, TRAINING_ARGS_NAME

from hpt.data.epochs import EpochMixture, EpochOrder
from hpt.errors import InputError, TrainingStopped
from hpt.files import write_file
from hpt.models.loading import load_saved_weights
from hpt.models.weights import find_non_finite
from hpt.processes import dead_workers_explained, hold_together, on_main_process
from hpt.training.checkpoints import (
    check_same_settings,
    checkpoint_folder,
    delete_older,
    delete_path,
    last_checkpoint,
    read_manifest,
    write_manifest,
)
from hpt.training.identity import describe_launch


logger = logging.getLogger(__name__)

SETTINGS_FILE = "training_args.json"
LOSS_FILE = "loss_window.json"
TERMINATED = 75  # exit code after SIGTERM: EX_TEMPFAIL of sysexits.h, which asks to try again
INTERVALS = ("logging_steps", "eval_steps", "save_steps")
SIGNALS = {signal.SIGTERM: "SIGTERM", signal.SIGINT: "Ctrl-C"}  # what a run is stopped by, and saved
MAX_SKIPPED = 40  # fp16 steps in a row: the scale of the loss falls from 2^16 to 2^-24, below which fp16 has only 0
UNWRITABLE = (OSError, RuntimeError, SafetensorError)  # what Python, torch and safetensors raise for a full disk

# accelerate calls the CPU of a process `cpu:0`, where transformers 5.17 lets torch load, which knows only `cpu`
torch.serialization.register_package(
    30, lambda storage: None, lambda storage, location: storage if location.startswith("cpu:") else None
)


class CheckpointError(TrainingStopped):
    """A checkpoint couldn't be written; what there was of it has been removed, and older ones are untouched."""


class NonFiniteError(TrainingStopped):
    """The state of a run became NaN or infinite; nothing of that was saved, and older checkpoints are untouched."""


class _Stopped(BaseException):
    """A signal has come, and the state is saved."""


class ResumableTrainer(Trainer):
    """A Trainer with checkpoints that are complete or don't count, and from which a run goes on bit for bit.

    - A checkpoint is complete once its manifest is there, which is written when all ranks have finished; only then
      are older ones deleted. See `hpt.training.checkpoints`.
    - SIGTERM and Ctrl-C let the step that is under way end, and save. Then SIGTERM ends the process with exit code 75,
      and Ctrl-C is the `KeyboardInterrupt` that it always is; a second one is so at once.
    - What falls due at an epoch's last step is saved after the epoch's evaluation, which would be left out of a run
      that goes on from there otherwise. The mean loss that is logged next is that of the whole window.
    - What is saved is finite: weights and what the optimizer keeps are looked at before each save and evaluation, and
      after each epoch. So a checkpoint that is there is a good one.
    - Settings are saved as readable JSON in place of Trainer's pickle.

    Raises:
        InputError: by `train()`, for a checkpoint that is incomplete, damaged, or of a run with other settings, also
            where one lies in the `output_dir` of a run that starts anew; for a model that isn't finite; and if another
            run is under way in `output_dir`.
        CheckpointError: by `train()`, when a checkpoint can't be written.
        NonFiniteError: by `train()` and `save_model()`, when what would be saved isn't finite.
    """

    best_step: int | None = None  # of the weights that `load_best_model_at_end` has loaded
    _seconds_before, _started = 0.0, None
    _signal = 0  # the number of the signal that has reached this process in training
    _skipped = 0  # how many of the last steps in a row fp16's gradient scaler has left out

    @abstractmethod
    def mathematics(self) -> dict:
        """What fixes the numbers of a run, by readable name: no checkpoint is resumed with another."""

    def describe_launch(self) -> dict:
        """How the work of a run is divided and computed, which changes no more than the order of rounding."""
        return describe_launch(self.args)

    def prepare(self, first_step: int) -> None:
        """Do what takes long before the first step that will be taken, counted from 0; a signal ends it at once."""

    def try_optimizer(self, num_training_steps: int) -> None:
        """Make the optimizer and its schedule, and drop them, before anything that can't be taken back.

        Args:
            num_training_steps (`int`): Over which the schedule goes.

        Raises:
            InputError: where the settings don't allow for it, or a library isn't installed.
        """
        try:
            self.create_optimizer_and_scheduler(num_training_steps)
        except (ImportError, TypeError, ValueError) as error:
            problem = " ".join(str(error).split())
            raise InputError(
                f"The optimizer or its learning rates can't be made of the settings: {problem}"
            ) from error
        self.optimizer = self.lr_scheduler = None

    @dead_workers_explained()
    def train(self, resume_from_checkpoint: str | bool | None = None, *args, **kwargs):
        """See [`~transformers.Trainer.train`].

        `resume_from_checkpoint=True` and `"last"` take the newest complete checkpoint of `output_dir`; where there is
        none, `True` is an error, while `"last"` starts anew. Without it a run starts anew in any case, but not in the
        folder of a run with other settings, whose checkpoints would be taken for its own.
        """
        with hold_together(self.args.output_dir):
            return self._train(resume_from_checkpoint, *args, **kwargs)

    def _train(self, resume_from_checkpoint: str | bool | None, *args, **kwargs):
        self._identity, self._last_saved, self.best_step = None, None, None
        self._seconds_before, self._started = 0.0, time.monotonic()
        self._epoch_ends_next, self._save_is_due, self._skipped = False, False, 0
        resume_from_checkpoint = self._choose_checkpoint(resume_from_checkpoint)
        self._last_saved = resume_from_checkpoint and Path(resume_from_checkpoint).resolve()
        if resume_from_checkpoint is None and (broken := find_non_finite(self.model.state_dict())):
            raise InputError(f"The model has NaN or infinite weights before training, {broken}: load a sound copy.")
        self.prepare(_step_of(resume_from_checkpoint))
        try:
            with self._signals_noticed():
                return super().train(resume_from_checkpoint, *args, **kwargs)
        except _Stopped as stopped:
            (number,) = stopped.args  # only now, without its frames, are the workers of the data loader let go
        finally:
            self._close_workers()
            self._close_progress_bars()
            self._seconds_before, self._started = self.train_seconds(), None
        raise KeyboardInterrupt if number == signal.SIGINT else SystemExit(TERMINATED)

    def _close_workers(self) -> None:
        """End workers that persist from epoch to epoch, which would else keep their buffers as long as the trainer."""
        if (loader := self.callback_handler.train_dataloader) is not None:
            loader.base_dataloader._iterator = None

    def _close_progress_bars(self) -> None:
        """Leave Trainer's bars as they are, where training ends early: what is printed next has its own line."""
        for callback in self.callback_handler.callbacks:
            if isinstance(callback, ProgressCallback):
                for bar in (callback.prediction_bar, callback.training_bar):
                    if bar is not None:
                        bar.close()

    def train_seconds(self) -> float:
        """How long the run has taken so far, without what was lost when it was cut off."""
        return self._seconds_before + (time.monotonic() - self._started if self._started else 0.0)

    # Checkpoints: which to resume from

    def _choose_checkpoint(self, wanted: str | bool | None) -> str | None:
        """On every rank alike, the checkpoint that the main process finds complete and of this run."""
        return on_main_process(lambda: self._check_checkpoint(wanted))

    def _check_checkpoint(self, wanted: str | bool | None) -> str | None:
        output_dir = self.args.output_dir
        if not wanted or wanted in (True, "True", "last"):  # the text is what a command line makes of it
            checkpoint = last_checkpoint(output_dir)
            if checkpoint is None and wanted in (True, "True"):
                raise InputError(f"{output_dir} has no complete checkpoint: leave resume_from_checkpoint out.")
            if checkpoint is None:
                return None
        else:
            checkpoint = str(wanted)
            if not Path(checkpoint).is_dir():
                raise InputError(f"There is no checkpoint {checkpoint!r}.")
        manifest = read_manifest(checkpoint)
        launch = self.describe_launch() if wanted else manifest["launch"]  # a run that starts anew has its own
        check_same_settings(checkpoint, manifest, self._run_identity(), launch)
        if not wanted:
            logger.warning(
                f"The run starts anew over the one that came to {checkpoint}, from which "
                "resume_from_checkpoint='last' goes on."
            )
            return None
        return checkpoint

    def _run_identity(self) -> dict:
        """[`mathematics`], as JSON has it, made once a run."""
        if self._identity is None:
            self._identity = json.loads(json.dumps(self.mathematics(), default=_as_json))
        return self._identity

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model=None) -> None:
        """Trainer's, but of a plain model all weights, whatever transformers has called them in the file."""
        if hasattr(self.model, "peft_config"):
            super()._load_from_checkpoint(resume_from_checkpoint, model)
        else:
            load_saved_weights(self.model, resume_from_checkpoint)

    def _load_best_model(self) -> None:
        """Likewise of the best checkpoint."""
        if hasattr(self.model, "peft_config"):
            super()._load_best_model()
        else:
            load_saved_weights(self.model, self.state.best_model_checkpoint)

    # Checkpoints: writing them

    def _init_training_state(self, max_steps, *args, **kwargs):
        """Trainer's, which compares our intervals with a checkpoint's, in steps, even if they are shares of a run."""
        given = {name: getattr(self.args, name) for name in INTERVALS}
        try:
            for name, value in given.items():
                if value is not None and value < 1:
                    setattr(self.args, name, math.ceil(max_steps * value))
            values = super()._init_training_state(max_steps, *args, **kwargs)
        finally:
            for name, value in given.items():
                setattr(self.args, name, value)
        if self.state.global_step and self.is_world_process_zero():
            self._say_where_it_goes_on(max_steps)
        return values

    def _say_where_it_goes_on(self, max_steps: int) -> None:
        """Say that a run goes on, or that there is nothing left of it to train."""
        step = self.state.global_step
        left = f"goes on with step {step + 1} of {max_steps}" if step < max_steps else "is finished"
        logger.warning(f"The run in {self.args.output_dir} {left}: it was found in {self._last_saved.name}.")

    def set_initial_training_values(self, args, dataloader, *others):
        values = super().set_initial_training_values(args, dataloader, *others)
        self._steps_per_epoch = values[1]
        return values

    def _run_epoch(self, *args, **kwargs):
        if self.state.global_step >= self.state.max_steps:  # resumed at its end, where Trainer takes one more step
            self.control.should_training_stop = True
            return
        super()._run_epoch(*args, **kwargs)

    def _maybe_log_save_evaluate(self, *args, **kwargs):
        """Trainer calls this after each optimizer step, and once more at an epoch's end."""
        at_epoch_end, self._epoch_ends_next = self._epoch_ends_next, False
        if at_epoch_end or self.control.should_evaluate:  # GPD keeps what an epoch ends with
            self._stop_unless_state_is_finite()
        if not at_epoch_end:
            self._stop_unless_steps_are_taken()
        if not at_epoch_end and self.state.global_step % self._steps_per_epoch == 0:
            self._epoch_ends_next, self._save_is_due = True, self.control.should_save
            self.control.should_save = False
        elif at_epoch_end:
            self.control.should_save |= self._save_is_due
        super()._maybe_log_save_evaluate(*args, **kwargs)
        if not self._epoch_ends_next:
            self._leave_if_stopped()

    def _finalize_training(self, *args, **kwargs):
        """Trainer logs its last entry here and loads the best weights, after which the last can't be saved."""
        self._leave_if_stopped()
        self._stop_unless_state_is_finite()
        if self.args.load_best_model_at_end and self.state.best_global_step:
            best = checkpoint_folder(self.args.output_dir, self.state.best_global_step)
            read_manifest(best)
            self.state.best_model_checkpoint = str(best)  # Trainer forgets it when the folder has been moved
        with self._deleting_nothing():
            output = super()._finalize_training(*args, **kwargs)
        self.best_step = self.state.best_global_step if self.args.load_best_model_at_end else None
        return output

    def _leave_if_stopped(self) -> None:
        """If a signal has reached any rank, save on all of them, and leave; SIGTERM counts before Ctrl-C."""
        number = self._signal
        if self.args.world_size > 1:  # a process alone needn't ask, and so waits for no device after each step
            number = int(self.accelerator.gather(torch.tensor([number], device=self.args.device)).max())
        if number == 0:
            return
        folder = self._save_now()
        if self.is_world_process_zero():
            self._close_progress_bars()
            step = self.state.global_step
            logger.warning(f"Stopped by {SIGNALS[number]} after step {step}, which is saved in {folder}.")
        raise _Stopped(number)

    def _save_now(self) -> Path:
        """Where the state after the last step is saved, now if it wasn't yet."""
        folder = checkpoint_folder(self.args.output_dir, self.state.global_step)
        if self._last_saved != folder.resolve():
            self._save_checkpoint(self.model, trial=None)
        return folder

    def _save_checkpoint(self, model, trial):
        self._stop_unless_state_is_finite()
        folder = checkpoint_folder(self.args.output_dir, self.state.global_step)
        self._loss_sums = self.accelerator.gather(self._tr_loss.reshape(1)).tolist()
        with self._written_on_all_ranks(folder):
            if self.args.should_save:  # what a run left that was cut off
                delete_path(folder)
            with self._deleting_nothing():
                super()._save_checkpoint(model, trial)
        with self._written_on_all_ranks(folder):
            if self.args.should_save:
                self._save_settings(folder)
                write_manifest(folder, self._run_identity(), self.describe_launch())
        self._last_saved = folder.resolve()
        if self.args.should_save:
            best = self.state.best_model_checkpoint
            delete_older(self.args.output_dir, self.args.save_total_limit, newest=folder, best=best)

    @contextmanager
    def _deleting_nothing(self):
        """Within, Trainer keeps older checkpoints, which [`delete_older`] deletes once the new one is complete."""
        limit, self.args.save_total_limit = self.args.save_total_limit, None
        try:
            yield
        finally:
            self.args.save_total_limit = limit

    def save_model(self, output_dir=None, _internal_call=False):
        """See [`~transformers.Trainer.save_model`]."""
        folder, broken = Path(output_dir or self.args.output_dir), find_non_finite(self.model.state_dict())
        if self._on_any_rank(bool(broken)):
            raise NonFiniteError(f"{folder} isn't written: weights of the model are NaN or infinite, {broken}.")
        with self._written_on_all_ranks(folder, remove=_internal_call):
            super().save_model(output_dir, _internal_call=True)  # which keeps Trainer from pushing within

    def _save(self, output_dir=None, state_dict=None) -> None:
        super()._save(output_dir, state_dict)
        if self.args.should_save:
            folder = Path(output_dir or self.args.output_dir)
            (folder / TRAINING_ARGS_NAME).unlink()
            self._save_settings(folder)

    def _save_settings(self, folder: Path) -> None:
        write_file(folder / SETTINGS_FILE, self.args.to_json_string())

    @contextmanager
    def _written_on_all_ranks(self, folder: Path, remove: bool = True):
        """Go on once all ranks have written their part; if one couldn't, raise [`CheckpointError`] on all of them.

        Nothing within may wait for other ranks, except for what is guarded in the same way by itself.
        """
        failure = None
        try:
            yield
        except (CheckpointError, NonFiniteError, torch.OutOfMemoryError):
            raise
        except Exception as error:
            if not isinstance(error, UNWRITABLE) and type(error) is not Exception:  # which tokenizers raises
                raise
            failure = error
        if not self._on_any_rank(failure is not None):
            return
        if remove and self.args.should_save:
            delete_path(folder)
        last = last_checkpoint(self.args.output_dir) if self.is_world_process_zero() else None
        free = shutil.disk_usage(self.args.output_dir).free / 1e6
        reason = str(failure or "on another rank").rstrip(".")
        raise CheckpointError(
            f"{folder} can't be written ({reason}); {free:,.0f} MB are free there. "
            + (f"Make room and resume from {last}, which is intact." if last else "There is no complete checkpoint.")
        ) from failure

    def _on_any_rank(self, flag: bool) -> bool:
        """Whether `flag` is true on any rank; waits for all of them."""
        count = torch.tensor(float(flag), device=self.args.device)
        return self.accelerator.reduce(count, "sum").item() > 0

    # What is saved is finite

    def _state_tensors(self) -> dict[str, torch.Tensor]:
        """What a run goes on from, by readable name: weights, buffers, and what the optimizer keeps of each weight."""
        tensors = self.model.state_dict()
        for number, kept in enumerate(self.optimizer.state.values()):
            named = {f"the optimizer's {name} {number}": value for name, value in kept.items()}
            tensors |= {name: value for name, value in named.items() if torch.is_tensor(value)}
        return tensors

    def _stop_unless_state_is_finite(self) -> None:
        """On every rank alike, raise [`NonFiniteError`] if what the run would go on from isn't finite."""
        broken = find_non_finite(self._state_tensors())
        if not self._on_any_rank(bool(broken)):
            return
        step = self.state.global_step
        raise NonFiniteError(
            f"The state after step {step} is NaN or infinite, {broken or 'on another rank'}, and isn't saved. "
            f"{self._advise(step - 1)} {self._last_good()}"
        )

    def _stop_unless_steps_are_taken(self) -> None:
        """Raise [`NonFiniteError`] once fp16's gradient scaler has left out [`MAX_SKIPPED`] steps in a row."""
        self._skipped = self._skipped + 1 if self.accelerator.optimizer_step_was_skipped else 0
        if self._skipped >= MAX_SKIPPED:
            raise NonFiniteError(
                f"The last {self._skipped} steps, up to step {self.state.global_step}, changed nothing: their "
                f"gradients aren't finite in fp16. Try, in another output_dir, bf16, or float32. {self._last_good()}"
            )

    def _advise(self, step: int) -> str:
        """What to do about numbers that grew too large in step `step`, counted from 0."""
        return (
            f"Try, in another output_dir, a lower {self._rate_of(step)}, a longer warmup_steps"
            + (", bf16 instead of fp16" if self.args.fp16 else "")
            + (", or max_grad_norm=1." if not self.args.max_grad_norm else ", or a lower max_grad_norm.")
        )

    def _rate_of(self, step: int) -> str:
        """The learning rate that step `step`, counted from 0, goes by, with its field."""
        return f"learning_rate (now {self.args.learning_rate:g})"

    def _last_good(self) -> str:
        """Which checkpoint is the newest good one; all ranks ask together, and say the same."""
        last = on_main_process(lambda: last_checkpoint(self.args.output_dir))
        return f"The last good state is in {last}." if last else "There is no complete checkpoint."

    # The loss since it was last logged, which Trainer forgets

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        if self.args.should_save:
            window = {"sum_per_rank": self._loss_sums, "last_logged": self._globalstep_last_logged}
            window["seconds"] = self.train_seconds()
            write_file(Path(output_dir) / LOSS_FILE, json.dumps(window))

    def _load_rng_state(self, checkpoint: str | None) -> None:
        """Trainer calls this once when a run goes on, on every rank, right before its first step."""
        super()._load_rng_state(checkpoint)
        window = json.loads((Path(checkpoint) / LOSS_FILE).read_text(encoding="utf-8"))
        sums, rank = window["sum_per_rank"], self.args.process_index
        mean = sum(sums) / len(sums)
        self._tr_loss.fill_(sums[rank] if len(sums) == self.args.world_size else mean)
        self._globalstep_last_logged, self._seconds_before = window["last_logged"], window["seconds"]
        self._total_loss_scalar = -mean  # of the final train_loss, which is over the steps of this call alone

    # SIGTERM and Ctrl-C

    @contextmanager
    def _signals_noticed(self):
        """Within, a signal only sets `_signal`, which is looked at after each optimizer step, and ends no worker."""
        self._signal = 0
        if threading.current_thread() is not threading.main_thread():  # only there can handlers be set
            yield
            return
        before = {number: signal.signal(number, self._notice) for number in SIGNALS}
        self._needs_workers.fill_(True)
        try:
            yield
        finally:
            self._needs_workers.fill_(False)
            for number, handler in before.items():
                signal.signal(number, handler)
        if self._signal:  # it came after training's end
            signal.raise_signal(self._signal)

    def _notice(self, number: int, frame) -> None:
        """Remember a signal; a second Ctrl-C does what it does without training."""
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            if self.is_world_process_zero():
                logger.warning(
                    "Ctrl-C: the step under way will be saved. Once more ends the run at once, without that."
                )
        self._signal = max(self._signal, number)

    def _get_train_sampler(self, train_dataset=None) -> torch.utils.data.Sampler | None:
        """Trainer's, but for a mixture, which has an order of its own."""
        dataset = self.train_dataset if train_dataset is None else train_dataset
        return EpochOrder(dataset) if isinstance(dataset, EpochMixture) else super()._get_train_sampler(dataset)

    def _get_dataloader(self, *args, **kwargs):
        """Trainer's, with workers that training doesn't lose by a signal, which often comes to all at once."""
        loader = super()._get_dataloader(*args, **kwargs)
        workers = loader.base_dataloader  # which accelerate has wrapped
        workers.worker_init_fn = partial(_leave_signals_to_trainer, workers.worker_init_fn, self._needs_workers)
        if workers.persistent_workers:  # they start once, and again when a run goes on: never by the run's own draws
            workers.generator = torch.Generator()
        return loader

    @cached_property
    @torch.inference_mode(False)  # it is written to later
    def _needs_workers(self) -> torch.Tensor:
        """Whether a step is under way that is ended and saved when a signal comes, in memory that workers see too."""
        return torch.tensor(False).share_memory_()


def _leave_signals_to_trainer(init_worker, is_needed: torch.Tensor, worker_id: int) -> None:
    """Let a loader's worker leave Ctrl-C to its trainer, and die of SIGTERM unless that is there and needs it."""
    trainer = os.getppid()

    def end_unless_needed(number: int, frame) -> None:
        if os.getppid() != trainer or not is_needed:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)

    signal.signal(signal.SIGTERM, end_unless_needed)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if init_worker is not None:
        init_worker(worker_id)


def _step_of(checkpoint: str | None) -> int:
    """The optimizer steps that were taken up to a checkpoint."""
    if checkpoint is None:
        return 0
    return TrainerState.load_from_json(str(Path(checkpoint) / TRAINER_STATE_NAME)).global_step


def _as_json(value):
    return sorted(value) if isinstance(value, set) else str(value)
