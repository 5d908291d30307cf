"""`SavingTrainer`: what a run of HPT-GPD leaves behind beside the model: averages, endpoints, cards, pushes."""

import logging
from abc import abstractmethod
from concurrent.futures import Future
from pathlib import Path

import torch
from huggingface_hub import CommitInfo

from hpt.errors import InputError
from hpt.evaluation.figures import draw_training_curves
from hpt.hub.folder import CURVES, ModelFolder
from hpt.hub.publisher import Publisher
from hpt.json_files import digest
from hpt.models.endpoints import ANCHOR_END, AVERAGE, ENDPOINTS, FINAL, collect_endpoint, write_endpoints
from hpt.models.families import plain_model
from hpt.models.weights import find_non_finite
from hpt.training.checkpoints import checkpoint_folder
from hpt.training.config import HPTConfig
from hpt.training.gpd import GPDCallback, GPDSchedule
from hpt.training.resumable import NonFiniteError
from hpt.training.search import SearchableTrainer


logger = logging.getLogger(__name__)


class SavingTrainer(SearchableTrainer):
    """A Trainer that saves what a run of HPT-GPD comes to, as far as others than the run itself may need it.

    - A checkpoint has GPD's average and vanilla weights too, which the run goes on with.
    - With `save_endpoints`, the folder has what `hpt interpolate` goes between.
    - Every save has a model card. With `push_to_hub`, a [`Publisher`], which it holds, pushes them.
    """

    gpd: GPDCallback
    schedule: GPDSchedule
    publisher: Publisher

    @abstractmethod
    def describe_run(self) -> dict:
        """What `training.json` and the card say of the run so far."""

    def train(self, *args, **kwargs):
        """See [`~hpt.training.search.SearchableTrainer`]; settings that would publish what is private are refused."""
        if self.args.push_to_hub:
            self.publisher.refuse_private_run()
        return super().train(*args, **kwargs)

    def _make_publisher(self, args: HPTConfig) -> None:
        self.publisher = Publisher(
            args,
            describe_run=self.describe_run,
            draw_figures=self.draw_figures,
            interrupted=lambda: self._signal != 0,
        )
        self.push_in_progress = self.publisher.in_progress  # for which Trainer waits at its end

    # GPD's part of a checkpoint

    def _state_tensors(self) -> dict[str, torch.Tensor]:
        return super()._state_tensors() | self.gpd.tensors()

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        if self.args.should_save:
            self.gpd.save(output_dir)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None:
            self.gpd.load(checkpoint, self.args.device)

    # Endpoints, which `hpt interpolate` goes between

    def _keep_anchor(self) -> None:
        """Keep what the anchor stage ends with, before the restart."""
        self._keep_endpoints({AVERAGE: self.gpd.ema, ANCHOR_END: None})

    def _finalize_training(self, *args, **kwargs):
        """Keep what the run ends with, which Trainer may replace by the best weights here."""
        output = super()._finalize_training(*args, **kwargs)
        if self.args.save_endpoints and self.state.global_step > self.schedule.boundary:
            self._keep_endpoints({FINAL: None})
        return output

    def _keep_endpoints(self, weights: dict[str, dict | None]) -> None:
        """Write endpoints by their names; `None` stands for the model's own weights."""
        run, endpoints, there = Path(self.args.output_dir), {}, set()
        if self.is_world_process_zero():
            endpoints = {name: collect_endpoint(self.model, given) for name, given in weights.items()}
        broken = "; ".join(filter(None, map(find_non_finite, endpoints.values())))
        if self._on_any_rank(bool(broken)):
            raise NonFiniteError(f"The endpoints in {run} aren't written: weights are NaN or infinite, {broken}.")
        with self._written_on_all_ranks(run / ENDPOINTS, remove=False):
            if endpoints:
                there = write_endpoints(run, endpoints, self._describe_endpoints(), self._path_of_vanilla())
        if FINAL in there and self.schedule.anchor_epochs > 0 and AVERAGE not in there:
            logger.warning(
                f"{run / ENDPOINTS} has only the final weights: the anchor stage ended without save_endpoints."
            )

    def _describe_endpoints(self) -> dict:
        described = self.describe_run()
        names = "target vanilla_weights trainable adapter schedule objective anchor_objective seed".split()
        return {name: described[name] for name in names} | {"run": digest(self._run_identity())}

    def _path_of_vanilla(self) -> str:
        """Where the target was loaded from, if that isn't on the Hub."""
        model = plain_model(self.model)
        return "" if self.describe_run()["target"]["hub_id"] else str(model.name_or_path)

    # Cards and pushes, which the publisher writes and does

    def _save(self, output_dir=None, state_dict=None) -> None:
        folder = ModelFolder(output_dir or self.args.output_dir)
        card = folder.card  # PEFT's save writes its own over it
        super()._save(output_dir, state_dict)
        if self.train_dataset is not None and self.args.should_save:
            self.publisher.describe_save(folder, card or "")

    def save_model(self, output_dir=None, _internal_call=False):
        """See [`~transformers.Trainer.save_model`]; with `push_to_hub`, what was saved is pushed."""
        super().save_model(output_dir, _internal_call)
        if self.args.push_to_hub and not _internal_call:
            self.push_to_hub("Model save", folder=output_dir or self.args.output_dir)

    def describe(self, folder: str | Path, model_id: str | None = None, license: str | None = None) -> ModelFolder:
        """Write `training.json`, `run.yaml`, pictures and the card into a folder that the model is saved in.

        Args:
            folder (`str` or `Path`): Where the model lies.
            model_id (`str`, *optional*): Hub id that it will be loaded by.
            license (`str`, *optional*): Of the weights, as the Hub spells it.

        Returns:
            [`ModelFolder`]: the folder, for all that is read of it or added to it further.
        """
        model = ModelFolder(folder)
        self.publisher.describe(model, model_id, license)
        return model

    def create_model_card(self, model_name: str | None = None, license: str | None = None) -> None:
        """Write the card in `output_dir` anew, with all that is known by now; see [`describe`]."""
        if self.is_world_process_zero():
            self.describe(self.args.output_dir, model_name, license)

    def init_hf_repo(self, token: str | None = None, private: bool | None = None) -> None:
        """Make the repository, or refuse what can't be pushed, on all ranks alike; no Hub is only a warning."""
        if self.train_dataset is None:
            raise InputError("There is no run to push: the trainer has no train_dataset. Leave push_to_hub out.")
        self.publisher.prepare(token, private)
        self.hub_model_id = self.publisher.repo_id

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """Trainer calls this before a checkpoint is complete, which is too early."""

    def _save_checkpoint(self, model, trial) -> None:
        super()._save_checkpoint(model, trial)
        if self.args.push_to_hub and self.is_world_process_zero() and self.publisher.may_push_save():
            self.callback_handler.on_push_begin(self.args, self.state, self.control)
            step = self.state.global_step
            self.publisher.push_save(ModelFolder(checkpoint_folder(self.args.output_dir, step)), step)

    def push_to_hub(
        self,
        commit_message: str = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        folder: str | Path | ModelFolder | None = None,
        license: str | None = None,
    ) -> CommitInfo | Future | None:
        """Save the model into `output_dir` and push it with its processor, card, curves, settings and evaluation.

        Args:
            folder (`str`, `Path` or [`ModelFolder`], *optional*): Push this one instead, in which a model of this run
                was saved.
            commit_message, blocking, token, revision, private, license: See [`Publisher.push`].

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
        model = folder if isinstance(folder, ModelFolder) else ModelFolder(folder or self.args.output_dir)
        if folder is None or not model.has_weights_of_run:  # a checkpoint's card is of its step
            self.publisher.describe(model, license=license)
        pushed = self.publisher.push(model, commit_message, blocking, token, revision, private, license)
        self.hub_model_id = self.publisher.repo_id
        return pushed

    def draw_figures(self, folder: Path) -> None:
        """Draw training curves into a folder, once there is something to see."""
        if any("loss" in entry for entry in self.state.log_history):
            draw_training_curves(self.state.log_history, self.schedule.boundary, folder / CURVES)
