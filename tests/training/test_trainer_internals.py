"""What hpt overrides, calls or reads of transformers' Trainer, much of it private, and why.

Each member is held against the Trainer that is installed: its signature, and which methods of Trainer call it or, for
an attribute, set it. Where transformers has changed one, the test says in words what changed: look in the new source
whether the reason that stands beside the member still holds, and write down the new form. Where hpt has changed, bring
the table up to date: it lists what hpt overrides and uses, no less and no more.
"""

import ast
import inspect
import re
from dataclasses import dataclass

import pytest
import transformers
from helpers import ROOT
from transformers import Trainer

from hpt.training.pretraining import ContrastiveTrainer
from hpt.training.trainer import HPTTrainer


LOWEST, HIGHEST = "5.17", "5.24"  # of transformers, whose Trainers the table describes
ATTRIBUTE, ABSENT = "an attribute", "absent"


@dataclass(frozen=True)
class Member:
    """A method or attribute of Trainer.

    Args:
        form (`str` or pair of them): A method's signature without annotations, or `ATTRIBUTE`; where they differ, that
            of `LOWEST` and that of `HIGHEST`.
        users (`str`): The methods of Trainer that call it or, for an attribute, set it, as far as hpt relies on them.
        why (`str`): What hpt does with it.
    """

    form: str | tuple[str, str]
    users: str
    why: str

    @property
    def forms(self) -> tuple[str, str]:
        return (self.form, self.form) if isinstance(self.form, str) else self.form


OVERRIDDEN = {
    # The run
    "__init__": Member(
        "(self, model=None, args=None, data_collator=None, train_dataset=None, eval_dataset=None, "
        "processing_class=None, model_init=None, compute_loss_func=None, compute_metrics=None, callbacks=None, "
        "optimizers=(None, None), optimizer_cls_and_kwargs=None, preprocess_logits_for_metrics=None)",
        "",
        "models and data are checked, and data wrapped, before Trainer sees them",
    ),
    "train": Member(
        "(self, resume_from_checkpoint=None, trial=None, ignore_keys_for_eval=None)",
        "",
        "it resumes from complete checkpoints alone, and ends with exit code 75 after SIGTERM",
    ),
    "set_initial_training_values": Member(
        "(self, args, dataloader)",
        "_inner_training_loop",
        "its second value, the optimizer steps of an epoch, tells which step is an epoch's last",
    ),
    "_init_training_state": Member(
        "(self, max_steps, num_update_steps_per_epoch, num_train_epochs, resume_from_checkpoint, trial)",
        "_inner_training_loop",
        "intervals that are shares of the run are compared with a checkpoint's in steps; a run that goes on says so",
    ),
    "_run_epoch": Member(
        "(self, model, epoch, train_dataloader, steps_in_epoch, num_update_steps_per_epoch, trial, "
        "ignore_keys_for_eval, start_time, resume_from_checkpoint, epochs_trained, steps_trained_in_current_epoch)",
        "_inner_training_loop",
        "a run that is resumed at its very end must not take one more step",
    ),
    "_maybe_log_save_evaluate": Member(
        "(self, tr_loss, grad_norm, model, trial, epoch, ignore_keys_for_eval, start_time, learning_rate=None)",
        "_run_epoch",
        "at an epoch's last step a save waits for the epoch's evaluation; after each step SIGTERM is looked at",
    ),
    "_finalize_training": Member(
        "(self, trial, num_train_samples, start_time)",
        "_inner_training_loop",
        "SIGTERM leaves before the best weights replace the last, and the best checkpoint is found where it lies now",
    ),
    # Steps
    "_get_train_sampler": Member(
        "(self, train_dataset=None)",
        "get_train_dataloader",
        "a mixture has an order of its own",
    ),
    "create_scheduler": Member(
        "(self, num_training_steps, optimizer=None)",
        "_prepare_for_training",
        "GPD has a schedule of two stages",
    ),
    "get_batch_samples": Member(
        "(self, epoch_iterator, num_batches, device)",
        "_run_epoch",
        "the images of an optimizer step are counted, over which the loss is a mean",
    ),
    "training_step": Member(
        "(self, model, inputs, num_items_in_batch=None)",
        "_run_epoch",
        "micro-batches are counted, for their noise and their log, and the loss sum before a step is kept",
    ),
    "compute_loss": Member(
        "(self, model, inputs, return_outputs=False, num_items_in_batch=None)",
        "training_step",
        "the loss is that of an attack and an objective",
    ),
    "_get_grad_norm": Member(
        "(self, model, grad_norm=None)",
        "_run_epoch",
        "it is called between backward and optimizer step, the last place to stop for what isn't finite",
    ),
    "loss_is_scaled_for_ga": Member(
        (ABSENT, ATTRIBUTE),
        "",
        "the loss is a mean per micro-batch, which Trainer has to divide by their number",
    ),
    "hyperparameter_search": Member(
        "(self, hp_space=None, compute_objective=None, n_trials=20, direction='minimize', backend=None, hp_name=None, "
        "**kwargs)",
        "",
        "robust accuracy is maximized by default, and a search that can't be meant is refused",
    ),
    "call_model_init": Member(
        "(self, trial=None)",
        "__init__ train",
        "the model is made before Trainer's train(), with all that depends on it",
    ),
    "_hp_search_setup": Member(
        "(self, trial)", "train", "a trial's settings are in args before Trainer's train(), checked as any others"
    ),
    "_get_output_dir": Member(
        "(self, trial)",
        "_save_checkpoint",
        "it names a trial's folder, which is its output_dir from then on",
    ),
    "_report_to_hp_search": Member(
        "(self, trial, step, metrics)", "_evaluate", "the anchor stage's weights are thrown away, and prune no trial"
    ),
    # The log and evaluation
    "log": Member(
        "(self, logs, start_time=None)",
        "_maybe_log_save_evaluate _finalize_training evaluate",
        "an entry of the log has the stage and the accuracies of the step",
    ),
    "evaluate": Member(
        "(self, eval_dataset=None, ignore_keys=None, metric_key_prefix='eval')",
        "_evaluate",
        "each evaluation set is classified among its own classes",
    ),
    "get_test_dataloader": Member(
        "(self, test_dataset)", "predict", "predict() takes a plain dataset and classifies among its classes"
    ),
    "prediction_step": Member(
        "(self, model, inputs, prediction_loss_only, ignore_keys=None)",
        "evaluation_loop",
        "clean and adversarial images are classified, the latter made with gradients",
    ),
    "_determine_best_metric": Member(
        "(self, metrics, trial)",
        "_maybe_log_save_evaluate",
        "weights of the anchor stage, which are thrown away, can't be the best",
    ),
    "_get_dataloader": Member(
        "(self, dataset, description, batch_size, sampler_fn=None, is_training=False, dataloader_key=None)",
        "get_train_dataloader get_eval_dataloader get_test_dataloader",
        "a loader's workers outlive the SIGTERM that the run is saved after, and evaluations take all images",
    ),
    # Checkpoints
    "_save_checkpoint": Member(
        "(self, model, trial)",
        "_maybe_log_save_evaluate",
        "a manifest completes a checkpoint, and only then are older ones deleted",
    ),
    "save_model": Member(
        "(self, output_dir=None, _internal_call=False)",
        "_save_checkpoint push_to_hub",
        "a full disk on one rank ends all with a line, and what is pushed is chosen by hpt",
    ),
    "_save": Member(
        "(self, output_dir=None, state_dict=None)",
        "save_model",
        "settings are JSON in place of a pickle, and every save has a card",
    ),
    "_save_rng_state": Member(
        "(self, output_dir)", "_save_checkpoint", "the loss since the last entry of the log is saved beside it"
    ),
    "_load_rng_state": Member(
        "(self, checkpoint)",
        "_run_epoch",
        "it is called once when a run goes on, right before the first step: where that loss is put back",
    ),
    "_load_from_checkpoint": Member(
        "(self, resume_from_checkpoint, model=None)",
        "train",
        "weights that transformers renames as it saves them, such as a DINOv2's, would be left as they are",
    ),
    "_load_best_model": Member("(self)", "_finalize_training", "the same"),
    "_save_optimizer_and_scheduler": Member(
        "(self, output_dir)", "_save_checkpoint", "the EMA and the vanilla weights are saved beside them"
    ),
    "_load_optimizer_and_scheduler": Member(
        "(self, checkpoint)", "_prepare_for_training", "the EMA and the vanilla weights are loaded beside them"
    ),
    # The Hub
    "create_model_card": Member(
        "(self, language=None, license=None, tags=None, model_name=None, finetuned_from=None, tasks=None, "
        "dataset_tags=None, dataset=None, dataset_args=None)",
        "push_to_hub",
        "the card is hpt's",
    ),
    "init_hf_repo": Member(
        ("(self, token=None)", "(self, token=None, private=None)"),
        "__init__",
        "a repository that can't be pushed to is refused before anything long begins",
    ),
    "push_to_hub": Member(
        (
            "(self, commit_message='End of training', blocking=True, token=None, revision=None, **kwargs)",
            "(self, commit_message='End of training', blocking=True, token=None, revision=None, private=None, "
            "**kwargs)",
        ),
        "save_model",
        "only what hpt publishes is pushed, and no other model's repository is written to",
    ),
    "_push_from_checkpoint": Member(
        "(self, checkpoint_folder)", "_save_checkpoint", "Trainer's push comes before a checkpoint is complete"
    ),
}

CALLED = {
    "add_callback": Member("(self, callback)", "", "GPD is a callback"),
    "remove_callback": Member("(self, callback)", "", "a run that begins anew has a GPD of its own"),
    "create_accelerator_and_postprocess": Member(
        "(self)", "__init__", "a run that begins anew may have another precision or another number of micro-batches"
    ),
    "create_optimizer_and_scheduler": Member(
        "(self, num_training_steps)", "", "an optimizer that can't be made is refused before anything is deleted"
    ),
    "get_train_dataloader": Member("(self)", "_inner_training_loop", "a comparison counts what a batch costs"),
    "is_world_process_zero": Member("(self)", "", "one process alone chooses checkpoints and pushes"),
    "_prepare_inputs": Member("(self, inputs)", "", "an evaluation's batch is moved to the device"),
    "_finish_current_push": Member("(self)", "_finalize_training", "a push waits for the one before"),
}

ATTRIBUTES = {
    "accelerator": Member(ATTRIBUTE, "create_accelerator_and_postprocess", "autocast, and what ranks tell each other"),
    "args": Member(ATTRIBUTE, "__init__", "the settings"),
    "callback_handler": Member(ATTRIBUTE, "__init__", "callbacks hear of a push"),
    "control": Member(
        ATTRIBUTE, "__init__", "saves are put off by should_save, and a run ends by should_training_stop"
    ),
    "eval_dataset": Member(ATTRIBUTE, "__init__", "the evaluation sets, whose classes differ"),
    "hp_search_backend": Member(
        ATTRIBUTE, "__init__ hyperparameter_search", "it says how to read a trial, and is None outside a search"
    ),
    "hp_space": Member(ATTRIBUTE, "hyperparameter_search", "of a trial to its settings"),
    "hub_model_id": Member(ATTRIBUTE, "__init__", "the name that the model is loaded by"),
    "lr_scheduler": Member(ATTRIBUTE, "__init__ _prepare_for_training", "a scheduler that the user gave stays"),
    "model": Member(ATTRIBUTE, "__init__", "the plain model, never its wrapper"),
    "model_accepts_loss_kwargs": Member(
        ATTRIBUTE, "__init__", "False: 5.17 doesn't know loss_is_scaled_for_ga, and CLIPModel takes any argument"
    ),
    "model_init": Member(ATTRIBUTE, "__init__", "a run with it begins anew"),
    "objective": Member(
        ATTRIBUTE, "_report_to_hp_search", "where it is None after train(), the backend evaluates the weights"
    ),
    "optimizer": Member(ATTRIBUTE, "__init__", "what GPD's schedule steers"),
    "processing_class": Member(ATTRIBUTE, "__init__", "the benchmark tokenizes as the target does"),
    "push_in_progress": Member(ATTRIBUTE, "init_hf_repo", "Trainer waits for this push at the end of training"),
    "state": Member(ATTRIBUTE, "__init__", "the step, on which stage, noise and checkpoints depend"),
    "train_dataset": Member(ATTRIBUTE, "__init__", "the run that a card describes"),
    "current_gradient_accumulation_steps": Member(
        ATTRIBUTE, "_run_epoch", "how many micro-batches the step has, fewer at an epoch's end"
    ),
    "_created_lr_scheduler": Member(
        ATTRIBUTE, "__init__ create_scheduler", "set, or Trainer would take the scheduler for one of the user's"
    ),
    "_eval_dataloaders": Member(
        ATTRIBUTE, "_get_dataloader", "a loader whose workers persist is let go when the evaluation set changes"
    ),
    "_globalstep_last_logged": Member(
        ATTRIBUTE, "_inner_training_loop _maybe_log_save_evaluate", "the step that the logged loss is a mean since"
    ),
    "_total_loss_scalar": Member(
        ATTRIBUTE,
        "_inner_training_loop _maybe_log_save_evaluate",
        "the loss before this call doesn't count in train_loss",
    ),
    "_train_batch_size": Member(ATTRIBUTE, "__init__", "a run that begins anew may have another"),
    "_tr_loss": Member(
        ATTRIBUTE,
        "_inner_training_loop _run_epoch",
        "the sum of losses since the last entry of the log, with a step's own when its gradient's norm is asked for",
    ),
}

MEMBERS = OVERRIDDEN | CALLED | ATTRIBUTES


# Reading a class


def read_members(source: str) -> dict[str, Member]:
    """Of a class, every method with its signature and callers, and every attribute with the methods that set it."""
    (described,) = ast.parse(source).body
    methods = {node.name: node for node in described.body if isinstance(node, ast.FunctionDef)}
    forms = {name: _signature(method) for name, method in methods.items()}
    users = {name: [] for name in forms}
    for node in described.body:
        if isinstance(node, ast.Assign | ast.AnnAssign):
            users |= {
                target.id: [] for target in ast.walk(node) if _is_stored(target) and isinstance(target, ast.Name)
            }
    for name, method in methods.items():
        for used in own_attributes(method):
            if used.attr in forms or _is_stored(used):
                users.setdefault(used.attr, []).append(name)
    return {name: Member(forms.get(name, ATTRIBUTE), " ".join(users[name]), "") for name in users}


def own_attributes(tree: ast.AST) -> list[ast.Attribute]:
    """All `self.NAME` and `trainer.NAME` in a source, also `self.trainer.NAME` and the like."""
    attributes = [node for node in ast.walk(tree) if isinstance(node, ast.Attribute)]
    return [node for node in attributes if ast.unparse(node.value).endswith(("self", "trainer"))]


def _is_stored(node: ast.AST) -> bool:
    return isinstance(getattr(node, "ctx", None), ast.Store)


def _signature(method: ast.FunctionDef) -> str:
    for argument in ast.walk(method.args):
        if isinstance(argument, ast.arg):
            argument.annotation = None
    return f"({ast.unparse(method.args)})"


# Saying what changed


def changes(listed: Member, installed: Member) -> list[str]:
    """In words, how an installed member differs from the listed one; nothing, if it has one of its forms."""
    in_words = min((_changes_of_form(form, installed.form) for form in listed.forms), key=len)
    if installed.form != ABSENT:
        verb = "sets" if ATTRIBUTE in listed.forms else "calls"
        gone = [user for user in listed.users.split() if user not in installed.users.split()]
        in_words += [f"{user} no longer {verb} it" for user in gone]
    return in_words


def _changes_of_form(listed: str, installed: str) -> list[str]:
    if listed == installed:
        return []
    if ABSENT in (listed, installed) or ATTRIBUTE in (listed, installed):
        return [f"it was {listed} and is {installed}"]
    before, after = _parameters(listed), _parameters(installed)
    in_words = [f"{name} is gone" for name in before if name not in after]
    in_words += [f"{name} is new" for name in after if name not in before]
    kept = [name for name in before if name in after]
    in_words += [
        f"the default of {name} was {before[name]} and is {after[name]}"
        for name in kept
        if before[name] != after[name]
    ]
    if kept != [name for name in after if name in before]:
        in_words.append("its parameters stand in another order")
    return in_words or [f"{listed} has become {installed}"]


def _parameters(form: str) -> dict[str, str]:
    """Parameter -> its default, or "none"."""
    arguments = ast.parse(f"def method{form}: pass").body[0].args
    positional = arguments.posonlyargs + arguments.args
    defaults = [None] * (len(positional) - len(arguments.defaults)) + arguments.defaults + arguments.kw_defaults
    named = zip(positional + arguments.kwonlyargs, defaults, strict=True)
    rest = {f"{stars}{rest.arg}": "none" for stars, rest in (("*", arguments.vararg), ("**", arguments.kwarg)) if rest}
    return {parameter.arg: "none" if default is None else ast.unparse(default) for parameter, default in named} | rest


def explain(name: str, installed: dict[str, Member]) -> str | None:
    """What changed of a listed member in an installed Trainer, and why it matters; `None` if nothing did."""
    in_words = changes(MEMBERS[name], installed.get(name, Member(ABSENT, "", "")))
    if not in_words:
        return None
    forms = " and ".join(dict.fromkeys(MEMBERS[name].forms))
    return (
        f"transformers {transformers.__version__} has changed Trainer.{name}: {'; '.join(in_words)}. "
        f"hpt relies on what it is in {LOWEST} and {HIGHEST}, {forms}: {MEMBERS[name].why}."
    )


TRAINER = read_members(inspect.getsource(Trainer))


@pytest.mark.parametrize("name", MEMBERS)
def test_trainer_is_what_hpt_relies_on(name):
    explanation = explain(name, TRAINER)
    assert explanation is None, explanation


# The table itself

OUR_TRAINERS = [
    trainer
    for trainer in dict.fromkeys(HPTTrainer.__mro__ + ContrastiveTrainer.__mro__)
    if issubclass(trainer, Trainer) and trainer is not Trainer
]


def overridden() -> set[str]:
    """What our trainers define and Trainer has."""
    defined = {name for trainer in OUR_TRAINERS for name in vars(trainer)}
    return defined & (TRAINER.keys() | {name for name, member in MEMBERS.items() if ABSENT in member.forms})


def used() -> set[str]:
    """What our trainers take of themselves, and the rest of hpt of a `trainer`, and Trainer has."""
    trees = [ast.parse(inspect.getsource(trainer)) for trainer in OUR_TRAINERS]
    names = {node.attr for tree in trees for node in own_attributes(tree)}
    texts = [node.value for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Constant)]
    names |= {text for text in texts if str(text).startswith("_")}  # of vars(self)
    for file in (ROOT / "hpt").rglob("*.py"):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        names |= {node.attr for node in own_attributes(tree) if ast.unparse(node.value) != "self"}
    return names & TRAINER.keys()


def test_all_that_hpt_overrides_is_listed_and_nothing_else():
    assert overridden() == OVERRIDDEN.keys()


def test_all_that_hpt_uses_is_listed_and_nothing_else():
    assert used() - overridden() == CALLED.keys() | ATTRIBUTES.keys()


def test_the_table_describes_the_bounds_of_the_dependency():
    (bounds,) = re.findall(r'"transformers(.*)"', (ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    major, minor = HIGHEST.split(".")
    assert bounds == f">={LOWEST},<{major}.{int(minor) + 1}"


# What is said of Trainers that transformers doesn't have, but might

CHANGED = {
    "new parameter": ("_save(self, output_dir=None, state_dict=None, shards: int = 1)", "shards is new"),
    "parameter gone": ("_save(self, output_dir=None)", "state_dict is gone"),
    "default": ("_save(self, output_dir='.', state_dict=None)", "the default of output_dir was None and is '.'"),
    "order": ("_save(self, state_dict=None, output_dir=None)", "its parameters stand in another order"),
    "kind": (
        "_save(self, output_dir=None, *, state_dict=None)",
        "has become (self, output_dir=None, *, state_dict=None)",
    ),
    "method gone": ("save(self)", "it was (self, output_dir=None, state_dict=None) and is absent"),
    "two forms": ("init_hf_repo(self, token=None, url=None)", "url is new"),
}


@pytest.mark.parametrize("kind", CHANGED)
def test_what_changed_of_a_method_is_said_in_words(kind):
    method, line = CHANGED[kind]
    name = "init_hf_repo" if "hf_repo" in method else "_save"
    users = "def save_model(self): self._save()\n def __init__(self): self.init_hf_repo()"
    explanation = explain(name, read_members(f"class Trainer:\n def {method}: pass\n {users}"))
    assert explanation.startswith(f"transformers {transformers.__version__} has changed Trainer.{name}: ")
    assert f"{line}. hpt relies on what it is in 5.17 and 5.24, " in explanation
    assert explanation.endswith(f": {MEMBERS[name].why}.")


def test_a_method_that_is_never_called_or_an_attribute_set_elsewhere_is_named():
    trainer = read_members(
        "class Trainer:\n def _save(self, output_dir: str = None, state_dict=None) -> None: pass\n"
        " def _run_epoch(self): self._tr_loss = 0"
    )
    assert "Trainer._save: save_model no longer calls it. hpt relies" in explain("_save", trainer)
    assert "Trainer._tr_loss: _inner_training_loop no longer sets it. hpt relies" in explain("_tr_loss", trainer)
    assert "Trainer.state: it was an attribute and is absent. hpt relies" in explain("state", trainer)
