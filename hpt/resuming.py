"""`ResumableTrainer`: a Trainer whose runs survive being killed, and go on as if nothing had happened.

trainer.train(resume_from_checkpoint="last")  # the newest complete checkpoint in output_dir, or else from the start
"""

import json
import logging
import shutil
import signal
import threading
from abc import abstractmethod
from contextlib import contextmanager
from pathlib import Path

import torch
from accelerate.utils import broadcast_object_list
from safetensors import SafetensorError
from transformers import Trainer
from transformers.trainer import TRAINING_ARGS_NAME
from transformers.trainer_utils import rotate_checkpoints

from hpt.checkpoints import check_same_settings, checkpoint_folder, last_checkpoint, read_manifest, write_manifest
from hpt.errors import InputError, TrainingStopped
from hpt.schedulers import GPDSchedule


logger = logging.getLogger(__name__)

SETTINGS_FILE = "training_args.json"
LOSS_FILE = "loss_window.json"
TERMINATED = 75  # exit code after SIGTERM: EX_TEMPFAIL of sysexits.h, which asks to try again
UNWRITABLE = (OSError, RuntimeError, SafetensorError)  # what Python, torch and safetensors raise for a full disk


class CheckpointError(TrainingStopped):
    """A checkpoint couldn't be written; what there was of it has been removed, and older ones are untouched."""


class ResumableTrainer(Trainer):
    """A Trainer with checkpoints that are complete or don't count, and from which a run goes on bit for bit.

    - A checkpoint is complete once its manifest is there, which is written when all ranks have finished; only then
      are older ones deleted. See `hpt.checkpoints`.
    - SIGTERM lets the step that is under way end, saves, and ends the process with exit code 75.
    - What falls due at an epoch's last step is saved after the epoch's evaluation, which would be left out of a run
      that goes on from there otherwise. The mean loss that is logged next is that of the whole window.
    - Settings are saved as readable JSON in place of Trainer's pickle.

    Raises:
        InputError: by `train()`, for a checkpoint that is incomplete, damaged, or of a run with other settings.
        CheckpointError: by `train()`, when a checkpoint can't be written.
    """

    schedule: GPDSchedule

    @abstractmethod
    def mathematics(self) -> dict:
        """What fixes the numbers of a run, by name, as JSON has it: no checkpoint is resumed with another."""

    @abstractmethod
    def launch(self) -> dict:
        """What changes no more than the order of rounding."""

    def train(self, resume_from_checkpoint: str | bool | None = None, *args, **kwargs):
        """See [`~transformers.Trainer.train`].

        `resume_from_checkpoint=True` and `"last"` take the newest complete checkpoint of `output_dir`; where there is
        none, `True` is an error, while `"last"` starts anew.
        """
        self._identity, self._last_saved, self._epoch_ends_next = None, None, False
        if resume_from_checkpoint:
            resume_from_checkpoint = self._choose_checkpoint(resume_from_checkpoint)
            self._last_saved = resume_from_checkpoint and Path(resume_from_checkpoint)
        with self._sigterm_noticed():
            return super().train(resume_from_checkpoint, *args, **kwargs)

    # Checkpoints: which to resume from

    def _choose_checkpoint(self, wanted: str | bool) -> str | None:
        """On every rank alike, the checkpoint that the main process finds complete and of this run."""
        found = [None, None]
        if self.is_world_process_zero():
            try:
                found[0] = self._check_checkpoint(wanted)
            except InputError as error:
                found[1] = str(error)
        broadcast_object_list(found)
        if found[1] is not None:
            raise InputError(found[1])
        return found[0]

    def _check_checkpoint(self, wanted: str | bool) -> str | None:
        output_dir = self.args.output_dir
        if wanted is True or wanted == "last":
            checkpoint = last_checkpoint(output_dir)
            if checkpoint is None and wanted == "last":
                return None
            if checkpoint is None:
                raise InputError(f"{output_dir} has no complete checkpoint: leave resume_from_checkpoint out.")
        else:
            checkpoint = str(wanted)
            if not Path(checkpoint).is_dir():
                raise InputError(f"There is no checkpoint {checkpoint!r}.")
        check_same_settings(checkpoint, read_manifest(checkpoint), self._run_identity(), self.launch())
        return checkpoint

    def _run_identity(self) -> dict:
        if self._identity is None:
            self._identity = self.mathematics()
        return self._identity

    # Checkpoints: writing them

    def _maybe_log_save_evaluate(self, *args, **kwargs):
        """Trainer calls this after each optimizer step, and once more at an epoch's end."""
        at_epoch_end, self._epoch_ends_next = self._epoch_ends_next, False
        if not at_epoch_end and self.state.global_step % self.schedule.steps_per_epoch == 0:
            self._epoch_ends_next, self._save_is_due = True, self.control.should_save
            self.control.should_save = False
        elif at_epoch_end:
            self.control.should_save |= self._save_is_due
        super()._maybe_log_save_evaluate(*args, **kwargs)
        if not self._epoch_ends_next and self._on_any_rank(self._sigterm):
            self._save_and_exit()

    def _save_and_exit(self):
        folder = self._save_now()
        if self.is_world_process_zero():
            logger.warning(f"Stopped by SIGTERM after step {self.state.global_step}, which is saved in {folder}.")
        raise SystemExit(TERMINATED)

    def _save_now(self) -> Path:
        """Where the state after the last step is saved, now if it wasn't yet."""
        folder = checkpoint_folder(self.args.output_dir, self.state.global_step)
        if self._last_saved != folder:
            self._save_checkpoint(self.model, trial=None)
        return folder

    def _save_checkpoint(self, model, trial):
        folder = checkpoint_folder(self.args.output_dir, self.state.global_step)
        limit = self.args.save_total_limit
        with self._written_on_all_ranks(folder):
            if self.args.should_save and folder.exists():  # of a run that was cut off
                shutil.rmtree(folder)
            try:
                self.args.save_total_limit = None  # Trainer would delete older ones before this one is complete
                super()._save_checkpoint(model, trial)
            finally:
                self.args.save_total_limit = limit
        with self._written_on_all_ranks(folder):
            if self.args.should_save:
                self._save_settings(folder)
                write_manifest(folder, self._run_identity(), self.launch())
        self._last_saved = folder
        if self.args.should_save:
            best = self.state.best_model_checkpoint
            rotate_checkpoints(self.args.output_dir, limit, best_model_checkpoint=best, use_mtime=True)

    def save_model(self, output_dir=None, _internal_call=False):
        """See [`~transformers.Trainer.save_model`]."""
        with self._written_on_all_ranks(Path(output_dir or self.args.output_dir), remove=_internal_call):
            super().save_model(output_dir, _internal_call)

    def _save(self, output_dir=None, state_dict=None) -> None:
        super()._save(output_dir, state_dict)
        if self.args.should_save:
            folder = Path(output_dir or self.args.output_dir)
            (folder / TRAINING_ARGS_NAME).unlink()
            self._save_settings(folder)

    def _save_settings(self, folder: Path) -> None:
        (folder / SETTINGS_FILE).write_text(self.args.to_json_string(), encoding="utf-8")

    @contextmanager
    def _written_on_all_ranks(self, folder: Path, remove: bool = True):
        """Go on once all ranks have written their part; if one couldn't, raise [`CheckpointError`] on all of them."""
        failure = None
        try:
            yield
        except CheckpointError:
            raise
        except UNWRITABLE as error:
            failure = error
        if not self._on_any_rank(failure is not None):
            return
        if remove and self.args.should_save:
            shutil.rmtree(folder, ignore_errors=True)
        last = last_checkpoint(self.args.output_dir) if self.is_world_process_zero() else None
        free = shutil.disk_usage(self.args.output_dir).free / 1e6
        raise CheckpointError(
            f"{folder} can't be written ({failure or 'on another rank'}); {free:,.0f} MB are free there. "
            + (f"Make room and resume from {last}, which is intact." if last else "There is no complete checkpoint.")
        ) from failure

    def _on_any_rank(self, flag: bool) -> bool:
        """Whether `flag` is true on any rank; waits for all of them."""
        count = torch.tensor(float(flag), device=self.args.device)
        return self.accelerator.reduce(count, "sum").item() > 0

    # The loss since it was last logged, which Trainer forgets

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        sums = self.accelerator.gather(self._tr_loss.reshape(1)).tolist()
        if self.args.should_save:
            window = {"sum_per_rank": sums, "last_logged": self._globalstep_last_logged}
            (Path(output_dir) / LOSS_FILE).write_text(json.dumps(window), encoding="utf-8")

    def _load_rng_state(self, checkpoint: str | None) -> None:
        """Trainer calls this once when a run goes on, on every rank, right before its first step."""
        super()._load_rng_state(checkpoint)
        window = json.loads((Path(checkpoint) / LOSS_FILE).read_text(encoding="utf-8"))
        sums, rank = window["sum_per_rank"], self.args.process_index
        mean = sum(sums) / len(sums)
        self._tr_loss.fill_(sums[rank] if len(sums) == self.args.world_size else mean)
        self._globalstep_last_logged = window["last_logged"]
        self._total_loss_scalar = -mean  # of the final train_loss, which is over the steps of this call alone

    # SIGTERM

    @contextmanager
    def _sigterm_noticed(self):
        """Within, SIGTERM only sets `_sigterm`, which is looked at after each optimizer step."""
        self._sigterm = False
        if threading.current_thread() is not threading.main_thread():  # only there can handlers be set
            yield
            return
        before = signal.signal(signal.SIGTERM, lambda *_: setattr(self, "_sigterm", True))
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, before)
        if self._sigterm:  # it came after the last step
            signal.raise_signal(signal.SIGTERM)
