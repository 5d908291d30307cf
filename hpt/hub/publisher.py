"""`Publisher`: what a trainer holds so that its every save has a card, and its pushes hold nothing but the model.

publisher = Publisher(args, describe_run=..., draw_figures=..., interrupted=...)
publisher.prepare()                                                 # before anything long begins
publisher.describe_save(ModelFolder("outputs/run/checkpoint-100"))  # after each save
publisher.push_save(ModelFolder("outputs/run/checkpoint-100"), step=100)  # in the background
publisher.push(ModelFolder("outputs/run"))                          # at the end
"""

import json
import logging
import shutil
import time
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path

from huggingface_hub import CommitInfo, run_as_future
from transformers import TrainingArguments
from transformers.trainer_utils import HubStrategy
from transformers.utils import PushInProgress

from hpt.errors import InputError, PushFailed, WriteFailed
from hpt.files import named_if_it_fails
from hpt.hub.card import write_card
from hpt.hub.contents import published_files, refuse_local_path, refuse_token
from hpt.hub.folder import ModelFolder
from hpt.hub.push import prepare_repository, publish, push_later
from hpt.locks import hold_folder
from hpt.processes import on_main_process


logger = logging.getLogger(__name__)

STAGING = ".push"  # in output_dir: copies of what is being pushed, which outlive the checkpoint


class Publisher:
    """Describes what a trainer saves by run, card and pictures, and pushes what `hpt.hub.contents` lets through.

    One push is on its way at a time. One that fails is said in a line, and training goes on.

    Args:
        args ([`~transformers.TrainingArguments`]): Their `output_dir`, and what they have on the Hub.
        describe_run (`Callable`): Gives what `training.json` and the card say of the run so far.
        draw_figures (`Callable`): Draws what there is to see of the run so far into a folder.
        interrupted (`Callable`): Says whether the process is to end: no push is waited for then.
    """

    def __init__(
        self,
        args: TrainingArguments,
        *,
        describe_run: Callable[[], dict],
        draw_figures: Callable[[Path], None],
        interrupted: Callable[[], bool],
    ):
        self.args = args
        self.describe_run = describe_run
        self.draw_figures = draw_figures
        self.interrupted = interrupted
        self.repo_id = args.hub_model_id or Path(args.output_dir).name
        self.in_progress = PushInProgress([])

    @property
    def _staging(self) -> Path:
        return Path(self.args.output_dir) / STAGING

    # What a folder says

    def describe_save(self, folder: ModelFolder, old: str | None = None) -> None:
        """Write run and card beside a model that was saved; `old` is the card before, instead of the folder's."""
        folder.write_run(self.describe_run())
        write_card(folder, self.repo_id, old)

    def describe(self, folder: ModelFolder, model_id: str | None = None, license: str | None = None) -> None:
        """Write run, pictures and card beside a model that was saved.

        Args:
            folder ([`ModelFolder`]): Where the model lies.
            model_id (`str`, *optional*): Hub id that it will be loaded by.
            license (`str`, *optional*): Of the weights, as the Hub spells it.
        """
        folder.write_run(self.describe_run())
        self.draw_figures(folder.make_figures())
        write_card(folder, model_id or self.repo_id, license=license)

    # The repository

    def prepare(self, token: str | None = None, private: bool | None = None) -> None:
        """Make the repository, on all ranks alike; a Hub that can't be reached is only a warning.

        Raises:
            InputError: without a token or permission, for a repository that holds another model, or if another run is
                under way in `output_dir`.
        """
        self.repo_id = on_main_process(lambda: self._make_repository(token, private))

    def _make_repository(self, token: str | None, private: bool | None) -> str:
        with hold_folder(self.args.output_dir):  # so that they are of a run that was killed
            shutil.rmtree(self._staging, ignore_errors=True)
        try:
            return prepare_repository(self.repo_id, **self._destination(token, private))
        except PushFailed as error:
            logger.warning(f"{error} Training goes on, and the next save is tried again.")
            return self.repo_id

    def _destination(self, token: str | None = None, private: bool | None = None, revision: str | None = None) -> dict:
        """Arguments of [`publish`]: those that are given, or else those of the settings."""
        return {
            "token": token or self.args.hub_token,
            "private": self.args.hub_private_repo if private is None else private,
            "revision": revision or self.args.hub_revision,
        }

    def refuse_private_run(self) -> None:
        """Refuse a run of which the card would publish a local path or a token, before it has taken long."""
        text = json.dumps(self.describe_run())
        refuse_token(text, "What the card says of this run", self.args.hub_token)
        refuse_local_path(text, "What the card says of this run")

    # Pushes in training

    def may_push_save(self) -> bool:
        """Whether saves are pushed, and none is on its way, for which `hub_always_push` waits.

        None is pushed by a process that is to end.
        """
        if self.args.hub_strategy == HubStrategy.END:
            return False
        while not self.in_progress.is_done() and self.args.hub_always_push and not self.interrupted():
            time.sleep(0.05)
        return self.in_progress.is_done() and not self.interrupted()

    def push_save(self, folder: ModelFolder, step: int) -> None:
        """Push what was saved after a step in the background, from a copy; what keeps it from that is a warning."""
        try:
            copy = self._copy(folder, str(step))
        except (InputError, WriteFailed, OSError) as error:
            logger.warning(f"Step {step} isn't pushed: {error}")
            return
        self.in_progress.jobs = [run_as_future(self._try_to_push_copy, copy, f"Training in progress, step {step}")]

    def _try_to_push_copy(self, copy: ModelFolder, message: str) -> None:
        try:
            self._push_copy(copy, message=message, **self._destination())
        except Exception as error:  # nobody looks at what this thread raises
            logger.warning(f"{error} Training goes on, and the next save is pushed again.")

    def _copy(self, folder: ModelFolder, name: str) -> ModelFolder:
        """Copy what of a folder is published to where no rotation and no later save changes it, with the curves."""
        copy = ModelFolder(self._staging / name)
        try:
            for file in published_files(folder, self.args.hub_token):
                with named_if_it_fails(copy.path / file):
                    (copy.path / file).parent.mkdir(parents=True, exist_ok=True)
                    shutil.copy(folder.path / file, copy.path / file)
            self.draw_figures(copy.make_figures())
        except BaseException:
            self._remove(copy)
            raise
        return copy

    def _push_copy(self, copy: ModelFolder, **options) -> CommitInfo:
        try:
            return publish(copy, self.repo_id, **options)
        finally:
            self._remove(copy)

    def _remove(self, copy: ModelFolder) -> None:
        shutil.rmtree(copy.path, ignore_errors=True)
        with suppress(OSError):  # not empty, if another push waits
            self._staging.rmdir()

    # The push at the end

    def push(
        self,
        folder: ModelFolder,
        message: str,
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        license: str | None = None,
    ) -> CommitInfo | Future:
        """Push a folder that is described, after the push that is on its way.

        Args:
            folder ([`ModelFolder`]): With a model of this run.
            message (`str`): Of the commit.
            blocking (`bool`, *optional*, defaults to `True`): Whether to wait until all is on the Hub. Otherwise a
                copy is pushed, which later saves don't change.
            token, revision, private: Instead of `hub_token`, `hub_revision` and `hub_private_repo`.
            license (`str`, *optional*): Of the weights, as the Hub spells it.

        Returns:
            `CommitInfo`, or a `Future` of it unless `blocking`.

        Raises:
            InputError: without a token or permission, or if the repository holds another model.
            PushFailed: if the Hub can't be reached, with the command to push later.
        """
        options = self._destination(token, private, revision) | {"license": license}
        if blocking:
            return self._push_now(folder, message, options)
        future = run_as_future(self._push_copy, self._copy(folder, folder.path.name), message=message, **options)
        self.in_progress.jobs = [future]
        return future

    def _push_now(self, folder: ModelFolder, message: str, options: dict) -> CommitInfo:
        try:
            info = publish(folder, self.repo_id, message=message, **options)
        except PushFailed as error:
            public = {name: value for name, value in options.items() if name != "token"}
            raise PushFailed(f"{error} Push later: {push_later(folder, self.repo_id, **public)}") from error
        self.repo_id = info.repo_url.repo_id
        return info
