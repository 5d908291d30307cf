"""`SearchableTrainer`: a search for settings by Trainer's own `hyperparameter_search`, each trial a run of its own.

def space(trial):
    return {"learning_rate": trial.suggest_float("learning_rate", 1e-3, 1e-1, log=True)}

trainer = HPTTrainer(
    model_init=lambda: CLIPModel.from_pretrained("openai/clip-vit-base-patch32"), args=HPTConfig("outputs/search"),
    proxy=proxy, processing_class=processor, train_dataset=train, eval_dataset=validation,
)
best = trainer.hyperparameter_search(space, n_trials=20)  # trial 0 trains in outputs/search/run-0
"""

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from statistics import mean

from torch import nn
from transformers import enable_full_determinism, set_seed
from transformers.hyperparameter_search import ALL_HYPERPARAMETER_SEARCH_BACKENDS, default_hp_search_backend
from transformers.trainer_utils import BestRun, HPSearchBackend, number_of_arguments

from hpt.errors import InputError, check_at_least, did_you_mean
from hpt.training.config import HPTConfig
from hpt.training.gpd import ANCHOR
from hpt.training.resumable import NonFiniteError, ResumableTrainer


SETTINGS = {field.name for field in fields(HPTConfig) if field.init}
# Fields that aren't a trial's to set, and why
NOT_OF_A_TRIAL = {
    "output_dir": "each trial has a folder of its own",
    "num_train_epochs": "it is derived: set anchor_epochs and transfer_epochs",
    "push_to_hub": "all trials would be pushed to one repository",
}
IN_PARALLEL = "start several by themselves, which share an Optuna study by storage and study_name."


class SearchableTrainer(ResumableTrainer):
    """A Trainer with `model_init`, which begins each run anew: with a fresh model, and all that depends on `args`.

    So a trial of a search gives the numbers, bit for bit, of a trainer that is made with its settings.
    """

    has_own_metrics = False  # by a compute_metrics of the user's own

    @abstractmethod
    def _start_over(self, model: nn.Module, args: HPTConfig) -> None:
        """Make all anew that a run makes of its model and settings."""

    def train(self, resume_from_checkpoint: str | bool | None = None, trial=None, ignore_keys_for_eval=None):
        """See [`ResumableTrainer`]; with `model_init`, the run begins anew, by `args` as they are then."""
        if self.model_init is not None:
            self._begin_anew(trial)
        output = super().train(resume_from_checkpoint, trial, ignore_keys_for_eval)
        if trial is not None:
            self.objective = None  # so that the backend evaluates the weights that the trial ends with
        return output

    def hyperparameter_search(
        self,
        hp_space: Callable | None = None,
        compute_objective: Callable[[dict[str, float]], float] | None = None,
        n_trials: int = 20,
        direction: str | list[str] = "maximize",
        backend: str | None = None,
        hp_name: Callable | None = None,
        **kwargs,
    ) -> BestRun | list[BestRun]:
        """Train with other settings again and again; see [`~transformers.Trainer.hyperparameter_search`].

        Trial `N` trains a fresh model in the folder `run-N` of `output_dir`. If its numbers become NaN or infinite, it
        fails, and the search goes on. It isn't pruned for the anchor stage's weights, which are thrown away. After the
        search the trainer is as it was before.

        Args:
            hp_space (`Callable`): For Optuna, of a trial to a dict of settings, fields of [`HPTConfig`]; for Ray Tune
                see transformers.
            compute_objective (`Callable`, *optional*): Of the metrics of `evaluate()` to what is searched for, by
                default [`mean_robust_accuracy`]. It is that of the weights that a trial ends with.
            n_trials (`int`, *optional*, defaults to 20): How many trials to run.
            direction (`str` or `list[str]`, *optional*, defaults to `"maximize"`): Or `"minimize"`.
            backend (`str`, *optional*): `"optuna"` or `"ray"`, by default the first that is installed.
            hp_name (`Callable`, *optional*): Of a trial to the name of its folder.
            kwargs: For the backend, such as Optuna's `sampler`, `pruner`, `storage` and `study_name`.

        Raises:
            InputError: without `model_init` or `eval_dataset`, or for a search that can't be meant, before its first
                trial; for settings that can't be meant, before their trial.
        """
        check_search(self, hp_space, compute_objective, direction, n_trials, kwargs.get("n_jobs", 1))
        backend = check_backend(backend)
        if backend == HPSearchBackend.OPTUNA:
            kwargs = {"catch": (NonFiniteError,)} | kwargs
        objective = compute_objective or mean_robust_accuracy
        self._searched = self.args
        try:
            best = super().hyperparameter_search(hp_space, objective, n_trials, direction, backend, hp_name, **kwargs)
        finally:
            self.args, self.hp_search_backend = self._searched, None
        self._begin_anew()
        return best

    def _begin_anew(self, trial=None) -> None:
        """Load a fresh model, and begin with it by `args`, or by those of a trial."""
        args = renewed(self.args) if trial is None else self._settings_of(trial)
        self._start_over(make_model(self.model_init, args, trial, before=self.classifier.model), args)

    def _settings_of(self, trial) -> HPTConfig:
        self.args = self._searched  # in whose folder the trial has its own
        values = self.hp_space(trial) if self.hp_search_backend == HPSearchBackend.OPTUNA else trial
        return trial_settings(self.args, values, super()._get_output_dir(trial))

    def call_model_init(self, trial=None) -> nn.Module:
        """The model that this run begins with, for which Trainer asks at the beginning of training."""
        return self.model

    def _hp_search_setup(self, trial) -> None:
        """Trainer would write a trial's settings into `args` here, which are the trial's already."""

    def _get_output_dir(self, trial) -> str:
        return self.args.output_dir

    def _report_to_hp_search(self, trial, step: int, metrics: dict[str, float]) -> None:
        if self.schedule.stage(step - 1) != ANCHOR:
            super()._report_to_hp_search(trial, step, metrics)


# The model of each run


def check_model_init(model_init: Callable | None, model, optimizers: tuple) -> None:
    """Refuse a `model_init` that isn't one, or that is given beside what would be of another model.

    Raises:
        InputError: saying what is wrong.
    """
    if model_init is None:
        return
    if model is not None:
        raise InputError("Both model and model_init are given: give model_init alone, which loads the model.")
    if isinstance(model_init, nn.Module) or not callable(model_init):
        raise InputError(
            f"model_init is a {type(model_init).__name__}, but must be a function that loads the model anew, such as "
            "lambda: CLIPModel.from_pretrained(name)."
        )
    if number_of_arguments(model_init) > 1:
        raise InputError("model_init takes several arguments, but is given none, or the trial alone.")
    if any(part is not None for part in optimizers):
        raise InputError(
            "optimizers are given beside model_init, but belong to one model: give optim and optim_args in args, or "
            "optimizer_cls_and_kwargs."
        )


def make_model(model_init: Callable, args: HPTConfig, trial=None, before: nn.Module | None = None) -> nn.Module:
    """A fresh model, with random weights, if it has some, by the run's seed.

    Args:
        model_init (`Callable`): Takes no argument, or the trial, which is `None` outside a search.
        args ([`HPTConfig`]): Settings of the run.
        trial: As the search's backend has it.
        before (`nn.Module`, *optional*): The model of the last run.

    Raises:
        InputError: if the model is, or shares weights with, the one before, which may have been trained.
    """
    enable_full_determinism(args.seed) if args.full_determinism else set_seed(args.seed)
    model = model_init(trial) if number_of_arguments(model_init) else model_init()
    if isinstance(model, nn.Module) and before is not None:
        kept = set(map(id, before.parameters()))
        if any(id(weight) in kept for weight in model.parameters()):
            raise InputError("model_init gives the same weights again, which have been trained: load them within it.")
    return model


# A search


def check_search(trainer: SearchableTrainer, hp_space, compute_objective, direction, n_trials, n_jobs) -> None:
    """Refuse a search that can't be meant, before its first trial; see [`SearchableTrainer.hyperparameter_search`].

    Raises:
        InputError: naming what is wrong.
    """
    args = trainer.args
    if trainer.model_init is None:
        raise InputError("A search needs a fresh model for each trial: give HPTTrainer model_init instead of model.")
    if trainer.train_dataset is None or trainer.eval_dataset is None:
        raise InputError(
            "A search needs images to train on, and others to choose by: give HPTTrainer train_dataset and "
            "eval_dataset."
        )
    if not callable(hp_space):
        raise InputError(
            'hp_space is missing: give a function of a trial to settings, such as lambda trial: {"learning_rate": '
            'trial.suggest_float("learning_rate", 1e-3, 1e-1, log=True)}.'
        )
    if compute_objective is None and trainer.has_own_metrics:
        raise InputError("compute_objective is missing: it says which of compute_metrics' metrics to search for.")
    if compute_objective is None and direction != "maximize":
        raise InputError(
            f"direction is {direction!r}, but robust accuracy, which is searched for without compute_objective, is to "
            "be maximized: leave direction out."
        )
    check_at_least(1, n_trials=n_trials)
    if args.push_to_hub:
        raise InputError("push_to_hub would push all trials to one repository: leave it out, and push the best run.")
    if n_jobs != 1:
        raise InputError(f"n_jobs is {n_jobs}, but a trainer trains one model at a time: {IN_PARALLEL}")
    if args.world_size > 1:
        raise InputError(f"A search runs in one process, not in {args.world_size} together: {IN_PARALLEL}")


def check_backend(backend: str | HPSearchBackend | None) -> HPSearchBackend:
    """The backend of that name, or the first that is installed.

    Raises:
        InputError: for an unknown name, or a backend that isn't installed.
    """
    known = {name.value: kind for name, kind in ALL_HYPERPARAMETER_SEARCH_BACKENDS.items()}
    if backend is None and not any(kind.is_available() for kind in known.values()):
        raise InputError("Neither Optuna nor Ray Tune is installed: pip install optuna.")
    name = getattr(backend, "value", backend) or default_hp_search_backend()
    if name not in known:
        raise InputError(f"Unknown backend {name!r}; known: {', '.join(known)}{did_you_mean(name, known)}")
    if not known[name].is_available():
        raise InputError(f"{name} isn't installed: {known[name].pip_install().strip('`')}.")
    return HPSearchBackend(name)


def trial_settings(args: HPTConfig, values: dict, folder: str) -> HPTConfig:
    """Settings of a trial: those of the search, but for what the trial sets, in a folder of its own.

    Args:
        args ([`HPTConfig`]): Of the search.
        values (`dict`): Field of [`HPTConfig`] -> its value in this trial.
        folder (`str`): Where the trial trains.

    Raises:
        InputError: for an unknown field, one that no trial can set, or a value out of range.
    """
    if not isinstance(values, dict):
        raise InputError(f"hp_space gives a {type(values).__name__}, but must give a dict of settings.")
    for name in values:
        if name not in SETTINGS:
            raise InputError(f"hp_space sets {name!r}, which is no field of HPTConfig{did_you_mean(name, SETTINGS)}")
        if name in NOT_OF_A_TRIAL:
            raise InputError(f"hp_space sets {name}, but {NOT_OF_A_TRIAL[name]}: leave it out.")
    if Path(folder).parent != Path(args.output_dir):
        raise InputError(f"hp_name gives {folder!r}, but must give the plain name of a folder in {args.output_dir}.")
    return renewed(args, **values, output_dir=folder)


def renewed(args: HPTConfig, **changes) -> HPTConfig:
    """Settings with changes, checked anew, and with epochs derived anew."""
    return replace(args, **{"num_train_epochs": None} | changes)


def mean_robust_accuracy(metrics: dict[str, float]) -> float:
    """What a search maximizes by default: robust accuracy, averaged over the evaluation sets; in [0, 1]."""
    return mean(value for name, value in metrics.items() if name.endswith("_robust_accuracy"))
