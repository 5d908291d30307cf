"""`PublishingTrainer`: a Trainer whose every save has a model card, and whose pushes hold nothing but the model."""

import logging
import shutil
from abc import abstractmethod
from contextlib import suppress
from pathlib import Path

from accelerate.utils import broadcast_object_list
from huggingface_hub import run_as_future
from transformers.trainer_utils import HubStrategy
from transformers.utils import PushInProgress

from hpt.errors import InputError, PushFailed
from hpt.model_card import CARD_FILE, write_card
from hpt.provenance import write_run
from hpt.publishing import prepare_repository, publish, published_files, push_later
from hpt.resuming import ResumableTrainer


logger = logging.getLogger(__name__)

STAGING = ".push"  # in output_dir: copies of what is being pushed, which outlive the checkpoint


class PublishingTrainer(ResumableTrainer):
    """A Trainer that writes a model card with every save, and pushes what `hpt.publishing` lets through.

    With `push_to_hub`, the repository is made before anything long begins, and every save is pushed in the background;
    a push that fails is told in a line with the command to push later, and training goes on.
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
        old = (folder / CARD_FILE).read_text(encoding="utf-8") if (folder / CARD_FILE).is_file() else ""
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
        self.hub_model_id, self.push_in_progress = made, None

    def _where(self, token: str | None = None, private: bool | None = None, revision: str | None = None) -> dict:
        """Arguments of [`publish`], those of the call before those of the trainer."""
        private = self.args.hub_private_repo if private is None else private
        return {
            "token": token or self.args.hub_token,
            "private": private,
            "revision": revision or self.args.hub_revision,
        }

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """Trainer calls this for every checkpoint that it has written."""
        busy = self.push_in_progress is not None and not self.push_in_progress.is_done()
        if not self.is_world_process_zero() or self.args.hub_strategy == HubStrategy.END:
            return
        if busy and not self.args.hub_always_push:
            return
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        step = self.state.global_step
        staged = self._stage(Path(checkpoint_folder), Path(self.args.output_dir) / STAGING / str(step))
        jobs = [run_as_future(self._push_staged, staged, f"Training in progress, step {step}")]
        self.push_in_progress = PushInProgress(jobs + (self.push_in_progress.jobs if busy else []))

    def _stage(self, checkpoint: Path, staged: Path) -> Path:
        """Copy what of a checkpoint is published into a folder that no rotation deletes, and draw the curves there."""
        for name in published_files(checkpoint):
            (staged / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(checkpoint / name, staged / name)
        (staged / "figures").mkdir(exist_ok=True)
        self.draw_figures(staged / "figures")
        return staged

    def _push_staged(self, staged: Path, message: str) -> None:
        try:
            info = publish(staged, self._hub_name(), message=message, **self._where())
            self.hub_model_id = info.repo_url.repo_id
        except (InputError, PushFailed) as error:
            logger.warning(f"{error} Training goes on, and the next save is pushed again.")
        finally:
            shutil.rmtree(staged, ignore_errors=True)
            with suppress(OSError):  # not empty, if another push waits
                staged.parent.rmdir()

    def push_to_hub(
        self,
        commit_message: str = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        folder: str | Path | None = None,
        license: str | None = None,
    ):
        """Save the model into `output_dir` and push it with its processor, card, curves, settings and evaluation.

        Args:
            commit_message (`str`, *optional*): Of the commit.
            blocking (`bool`, *optional*, defaults to `True`): Whether to wait until all is on the Hub.
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
        folder = Path(folder or self.args.output_dir)
        self.describe(folder, license=license)
        where = self._where(token, private, revision)
        push = run_as_future(publish, folder, self._hub_name(), message=commit_message, license=license, **where)
        if not blocking:
            return push
        try:
            info = push.result()
        except PushFailed as error:
            raise PushFailed(f"{error} Push later: {push_later(folder, self.args)}") from error
        self.hub_model_id = info.repo_url.repo_id
        return info
