"""`PublishingTrainer`: a Trainer whose every save has a model card, and whose pushes hold nothing but the model."""

import json
import logging
import shutil
import time
from abc import abstractmethod
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path

from accelerate.utils import broadcast_object_list
from huggingface_hub import CommitInfo, run_as_future
from transformers.trainer_utils import HubStrategy
from transformers.utils import PushInProgress

from hpt.errors import InputError, PushFailed
from hpt.hub.card import write_card
from hpt.hub.card_text import read_card
from hpt.hub.contents import published_files, refuse_local_path, refuse_token
from hpt.hub.folder import has_same_weights, hash_saved_weights, write_run
from hpt.hub.push import prepare_repository, publish, push_later
from hpt.training.checkpoints import checkpoint_folder
from hpt.training.resumable import ResumableTrainer


logger = logging.getLogger(__name__)

STAGING = ".push"  # in output_dir: copies of what is being pushed, which outlive the checkpoint


class PublishingTrainer(ResumableTrainer):
    """A Trainer that writes a model card with every save, and pushes what `hpt.hub.push` lets through.

    With `push_to_hub`, the repository is made before anything long begins, and saves are pushed in the background. One
    that comes while the last is still on its way isn't, unless `hub_always_push`: then training waits for that one. A
    push that fails is told in a line, and training goes on.

    Raises:
        InputError: without a token or permission, for a repository that holds another model, or, by `train()`, for
            settings that would publish a local path or a token.
    """

    @abstractmethod
    def describe_run(self) -> dict:
        """What `training.json` and the card say of the run so far."""

    @abstractmethod
    def draw_figures(self, folder: Path) -> None:
        """Draw what there is to see of the training into a folder."""

    # The card

    def _save(self, output_dir=None, state_dict=None) -> None:
        folder = Path(output_dir or self.args.output_dir)
        old = read_card(folder) or ""
        super()._save(output_dir, state_dict)
        if self.train_dataset is not None and self.args.should_save:
            write_run(folder, self.describe_run())
            write_card(folder, self._hub_name(), old=old)

    def describe(self, folder: str | Path, model_id: str | None = None, license: str | None = None) -> None:
        """Write `training.json`, `run.yaml`, pictures and the card into a folder that the model is saved in.

        Args:
            folder (`str` or `Path`): Where the model lies.
            model_id (`str`, *optional*): Hub id that it will be loaded by.
            license (`str`, *optional*): Of the weights, as the Hub spells it.
        """
        folder = Path(folder)
        write_run(folder, self.describe_run())
        (folder / "figures").mkdir(exist_ok=True)
        self.draw_figures(folder / "figures")
        write_card(folder, model_id or self._hub_name(), license=license)

    def create_model_card(self, model_name: str | None = None, license: str | None = None) -> None:
        """Write the card in `output_dir` anew, with all that is known by now.

        Args:
            model_name (`str`, *optional*): Hub id that it will be loaded by.
            license (`str`, *optional*): Of the weights, as the Hub spells it.
        """
        if self.is_world_process_zero():
            self.describe(self.args.output_dir, model_name, license)

    def _hub_name(self) -> str:
        return self.hub_model_id or self.args.hub_model_id or Path(self.args.output_dir).name

    # The Hub

    def init_hf_repo(self, token: str | None = None, private: bool | None = None) -> None:
        """Make the repository, or refuse what can't be pushed, on all ranks alike; no Hub is only a warning."""
        if self.train_dataset is None:
            raise InputError("There is no run to push: the trainer has no train_dataset. Leave push_to_hub out.")
        made, problem = None, None
        if self.is_world_process_zero():
            shutil.rmtree(Path(self.args.output_dir) / STAGING, ignore_errors=True)
            try:
                made = prepare_repository(self._hub_name(), **self._where(token, private))
            except PushFailed as error:
                logger.warning(f"{error} Training goes on, and the next save is tried again.")
            except InputError as error:
                problem = str(error)
        made, problem = broadcast_object_list([made, problem])
        if problem is not None:
            raise InputError(problem)
        self.hub_model_id, self.push_in_progress = made, PushInProgress([])

    def _where(self, token: str | None = None, private: bool | None = None, revision: str | None = None) -> dict:
        """Arguments of [`publish`], those of the call before those of the trainer."""
        private = self.args.hub_private_repo if private is None else private
        return {
            "token": token or self.args.hub_token,
            "private": private,
            "revision": revision or self.args.hub_revision,
        }

    def train(self, *args, **kwargs):
        """See [`~transformers.Trainer.train`]."""
        if self.args.push_to_hub:
            told = json.dumps(self.describe_run())
            refuse_token(told, "What the card says of this run", self.args.hub_token)
            refuse_local_path(told, "What the card says of this run")
        return super().train(*args, **kwargs)

    def save_model(self, output_dir=None, _internal_call=False):
        """See [`~transformers.Trainer.save_model`]; with `push_to_hub`, what was saved is pushed."""
        super().save_model(output_dir, _internal_call)
        if self.args.push_to_hub and not _internal_call:
            self.push_to_hub("Model save", folder=output_dir or self.args.output_dir)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """Trainer calls this before a checkpoint is complete, which is too early."""

    def _save_checkpoint(self, model, trial) -> None:
        super()._save_checkpoint(model, trial)
        wanted = self.args.push_to_hub and self.args.hub_strategy != HubStrategy.END and not self._sigterm
        if wanted and self.is_world_process_zero() and self._may_push_now():
            self.callback_handler.on_push_begin(self.args, self.state, self.control)
            step = self.state.global_step
            try:
                copy = self._copy(checkpoint_folder(self.args.output_dir, step), str(step))
            except (InputError, OSError) as error:
                shutil.rmtree(Path(self.args.output_dir) / STAGING, ignore_errors=True)  # what there is of the copy
                logger.warning(f"Step {step} isn't pushed: {error}")
                return
            self.push_in_progress = PushInProgress([run_as_future(self._push_save, copy, step)])

    def _may_push_now(self) -> bool:
        """Whether no push is on its way, for which `hub_always_push` waits, unless SIGTERM comes."""
        while not self.push_in_progress.is_done() and self.args.hub_always_push and not self._sigterm:
            time.sleep(0.05)
        return self.push_in_progress.is_done()

    def _copy(self, folder: Path, name: str) -> Path:
        """Copy what of a folder is published to where no rotation and no later save changes it, with the curves."""
        copy = Path(self.args.output_dir) / STAGING / name
        for file in published_files(folder, self.args.hub_token):
            (copy / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(folder / file, copy / file)
        (copy / "figures").mkdir(exist_ok=True)
        self.draw_figures(copy / "figures")
        return copy

    def _push_save(self, copy: Path, step: int) -> None:
        try:
            self._push_copy(copy, message=f"Training in progress, step {step}", **self._where())
        except Exception as error:  # nobody looks at what this thread raises
            logger.warning(f"{error} Training goes on, and the next save is pushed again.")

    def _push_copy(self, copy: Path, **how) -> CommitInfo:
        try:
            return publish(copy, self._hub_name(), **how)
        finally:
            shutil.rmtree(copy, ignore_errors=True)
            with suppress(OSError):  # not empty, if another push waits
                copy.parent.rmdir()

    def push_to_hub(
        self,
        commit_message: str = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        folder: str | Path | None = None,
        license: str | None = None,
    ) -> CommitInfo | Future | None:
        """Save the model into `output_dir` and push it with its processor, card, curves, settings and evaluation.

        Args:
            commit_message (`str`, *optional*): Of the commit.
            blocking (`bool`, *optional*, defaults to `True`): Whether to wait until all is on the Hub. Otherwise a
                copy is pushed, which later saves don't change.
            token, revision, private: Instead of `hub_token`, `hub_revision` and `hub_private_repo`.
            folder (`str` or `Path`, *optional*): Push this one, in which a model of this run was saved, instead.
            license (`str`, *optional*): Of the weights, as the Hub spells it.

        Returns:
            `CommitInfo`, or a `Future` of it unless `blocking`; `None` on all ranks but the first.

        Raises:
            InputError: without a token or permission, or if the repository holds another model.
            PushFailed: if the Hub can't be reached, with the command to push later.
        """
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        if folder is None:
            self.save_model(_internal_call=True)
        if not self.is_world_process_zero():
            return None
        self._finish_current_push()
        told, folder = folder is not None, Path(folder or self.args.output_dir)
        if not (told and has_same_weights(folder, hash_saved_weights(folder))):  # a checkpoint's card is of its step
            self.describe(folder, license=license)
        how = self._where(token, private, revision) | {"license": license}
        if blocking:
            return self._push_folder(folder, message=commit_message, **how)
        copy = self._copy(folder, folder.name)
        push = run_as_future(self._push_copy, copy, message=commit_message, **how)
        self.push_in_progress = PushInProgress([push])
        return push

    def _push_folder(self, folder: Path, **how) -> CommitInfo:
        try:
            info = publish(folder, self._hub_name(), **how)
        except PushFailed as error:
            where = {name: how[name] for name in ("private", "revision", "license")}
            later = push_later(folder, self._hub_name(), **where)
            raise PushFailed(f"{error} Push later: {later}") from error
        self.hub_model_id = info.repo_url.repo_id
        return info
