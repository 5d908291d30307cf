"""`HPTTrainer`: HPT-GPD fine-tuning of a dual encoder against a frozen, vanilla proxy, in one `train()` call.

trainer = HPTTrainer(
    model=clip, args=HPTConfig("outputs/robust"), proxy=load_proxy("openai/clip-vit-base-patch16"),
    processing_class=processor, train_dataset=load_benchmark("tiny_imagenet", "train"),
    eval_dataset={"cifar10": load_benchmark("cifar10")},
)
trainer.train()
"""

import logging
from collections.abc import Callable
from functools import partial

import torch
from torch import nn
from torch.nn.utils import get_total_norm
from torch.optim.lr_scheduler import LambdaLR
from transformers import TrainerCallback
from transformers.trainer_utils import IntervalStrategy

from hpt.attacks import PGD, AttackResult
from hpt.classifiers import Classifier
from hpt.data.images import collate, to_unit_range
from hpt.data.streams import EpochStream
from hpt.errors import InputError
from hpt.models.classifier import ZeroShotClassifier
from hpt.models.weights import forward_redirected, normalizers
from hpt.processes import dead_workers_explained
from hpt.training.callbacks import AugmentationCallback, LogitScaleCallback
from hpt.training.clean_features import CleanFeatures, choose_models
from hpt.training.config import HPTConfig
from hpt.training.diagnostics import Diagnostics
from hpt.training.gpd import ANCHOR, TRANSFER, GPDCallback, get_gpd_schedule
from hpt.training.identity import describe_given_optimizer, describe_robust_training
from hpt.training.inputs import TrainingInputs, check_config, check_launch, check_metrics, prepare_inputs
from hpt.training.objectives import Objective
from hpt.training.record import describe_method, describe_run
from hpt.training.resumable import NonFiniteError
from hpt.training.robust_evaluation import RobustEvaluation, keep_predictions, measure_accuracies
from hpt.training.run_models import RunModels
from hpt.training.saving import SavingTrainer
from hpt.training.search import check_model_init, make_model
from hpt.training.step import TrainingStep
from hpt.training.unsupported import refuse_arguments


logger = logging.getLogger(__name__)

STEP = ("training_step", "compute_loss", "_make_step", "_attack")  # the methods by which a step is computed


class NonFiniteLossError(NonFiniteError):
    """The loss or a gradient became NaN or infinite; the state before that step was finite, and has been saved."""


class HPTTrainer(SavingTrainer):
    """Trainer for HPT-GPD (arXiv 2601.12865). `trainer.model` stays the plain model that was given.

    In each step PGD attacks the target, the target learns by the stage's objective, in HPT-GPD from the proxy, and
    [`GPDCallback`] keeps the EMA, restarts and pulls. The log has, beside Trainer's entries, `stage` (1 anchor,
    2 transfer) and, of the images of the logged step, `train_clean_accuracy`, `train_robust_accuracy`,
    `proxy_robust_accuracy` (a proxy on the images that attack the target), `zero_gradient_share`; with
    `only_where_right`, `proxy_right_share`; and, of a sum of objectives, each term's mean loss as `loss_NAME`. Without
    an attack, it has none of those that speak of one.

    Every save has a model card. With `push_to_hub`, the repository is made before anything long begins, and saves are
    pushed in the background. One that comes while the last is still on its way isn't, unless `hub_always_push`: then
    training waits for that one. A push that fails is said in a line, and training goes on.

    Args:
        model (`PreTrainedModel` or `PeftModel`): The target `T`, a dual encoder with float32 weights.
        args ([`HPTConfig`]): Settings.
        proxy ([`Classifier`], `str`, a list of them, or `None`): The proxy `P`, or several, which teach together as
            `proxy_combination` and `proxy_weights` in `args` say. Each is frozen and stays in its own dtype: a
            [`ZeroShotClassifier`] from [`load_proxy`], or another model with a text side of its own, which teaches the
            training classes, whatever classes it has; a module or function of images to logits over the training
            classes; or `"original"`, the target's own vanilla copy. Objectives that don't learn from a proxy, such as
            `"tecoa"`, do without.
        processing_class (`ProcessorMixin`): The target's processor. If it doesn't resize bicubically, as is done in
            training, it does so from then on, with a warning.
        train_dataset (dataset, *optional*): A [`Benchmark`], or a `datasets.Dataset` with columns `image` and `label`
            or a set of pairs (image, label) such as torchvision's, as of [`as_dataset`], whose images are brought to
            the target's input size as its processor does it; or a [`StreamingBenchmark`] or
            `datasets.IterableDataset` likewise, with `steps_per_epoch` in `args`. For objectives that need no labels,
            such as `"fare"`, images alone are enough: a column `image`, whatever other columns there are, or
            `load_benchmark(..., labelled=False)`. Or several sets, as a [`Mixture`] or a dict, name -> set.
        eval_dataset (dataset or dict of them, *optional*): Not streaming. `evaluate()` reports `clean_accuracy` and
            `robust_accuracy` (under PGD in float32), in [0, 1], of each. A benchmark has classes of its own; a plain
            dataset has some or all of the training classes, by their names if it has any, or else by their numbers.
        class_names (`list[str]`, *optional*): Names of the training classes, needed where the training set has none
            and an objective compares images with prompts. Where it has some, they are looked up among these, and
            labels follow this order.
        model_init (`Callable`, *optional*): Loads the target, in place of `model`, at each `train()`, which makes all
            else that depends on `args` anew too; for [`hyperparameter_search`]. It takes no argument, or the trial.
        kwargs: Passed on to [`~transformers.Trainer`], but for `data_collator` and `compute_loss_func`, which are
            refused. `compute_metrics` of your own is given the predicted classes of clean and adversarial images, and
            the labels.

    Raises:
        InputError: for a model, proxy, dataset or setting that can't be meant, before anything is trained; and with
            `push_to_hub`, without a token or permission, for a repository that holds another model, or, by `train()`,
            for settings that would publish a local path or a token.
        NonFiniteLossError: by `train()`, when the loss or a gradient isn't finite; the last good state is saved.
        NonFiniteError: by `train()`, when weights, averages or the optimizer's state aren't finite.
    """

    loss_is_scaled_for_ga = False
    _micro_batches = 0  # of the current optimizer step, seen so far
    recipe: dict = {}  # fields of a recipe, which the `run.yaml` of every save has beside the trainer's settings

    def __init__(
        self,
        model=None,
        args: HPTConfig | None = None,
        proxy: Classifier | str | list[Classifier | str] | None = None,
        processing_class=None,
        train_dataset=None,
        eval_dataset=None,
        class_names: list[str] | None = None,
        model_init: Callable | None = None,
        **kwargs,
    ):
        refuse_arguments(kwargs)
        check_config(args)
        check_launch(args)
        check_model_init(model_init, model, kwargs.get("optimizers", ()))
        model = model if model_init is None else make_model(model_init, args)
        self._given = (proxy, processing_class, train_dataset, eval_dataset, class_names)
        self._given_optimizer, self.has_own_metrics = describe_given_optimizer(kwargs), "compute_metrics" in kwargs
        inputs = self._prepare_inputs_of_run(model, args)
        self._make_publisher(args)
        super().__init__(
            model=model,
            args=args,
            processing_class=processing_class,
            data_collator=collate,
            train_dataset=inputs.train,
            eval_dataset=inputs.evaluation,
            **{"compute_metrics": measure_accuracies, "preprocess_logits_for_metrics": keep_predictions} | kwargs,
        )
        self.model_init = model_init
        self.model_accepts_loss_kwargs = False  # CLIPModel takes **kwargs, but the loss is ours and a mean per batch
        self._callbacks_of_run = []
        self._set_up(inputs)

    @property
    def classifier(self) -> ZeroShotClassifier:
        """The target `T` over the training classes, a view of `model`."""
        return self._models.target

    @property
    def proxy(self) -> nn.Module | None:
        """The proxy `P` over the training classes; of several, a [`CombinedProxy`]."""
        return self._models.proxy

    @property
    def original(self) -> ZeroShotClassifier | None:
        """The target's frozen vanilla copy `O`, where an objective compares with it or it is a proxy."""
        return self._models.original

    def _prepare_inputs_of_run(self, model, args: HPTConfig) -> TrainingInputs:
        inputs = prepare_inputs(model, args, *self._given)
        if not self.has_own_metrics:
            check_metrics(args, inputs.evaluation)
        return inputs

    def _start_over(self, model, args: HPTConfig) -> None:
        inputs = self._prepare_inputs_of_run(model, args)
        if args.output_dir == self.args.output_dir:
            self.publisher.args = args
        else:
            self._make_publisher(args)
        self.args, self.model, self.train_dataset, self.eval_dataset = args, model, inputs.train, inputs.evaluation
        vars(self).pop("_eval_dataloaders", None)  # of the sets before
        self._train_batch_size = args.train_batch_size
        self.create_accelerator_and_postprocess()
        while self._callbacks_of_run:
            self.remove_callback(self._callbacks_of_run.pop())
        self._set_up(inputs)

    def _set_up(self, inputs: TrainingInputs) -> None:
        """Make what a run consists of from its settings, its models and its data."""
        args = self.args
        self._inputs, self._described = inputs, None
        self._models = RunModels(inputs, args.device, args.mixed_precision)
        self._clean = CleanFeatures(choose_models(args, inputs), inputs.train, args)
        self.objectives, self.schedule = args.make_objectives(), inputs.schedule
        self._diagnostics = Diagnostics(self.accelerator, self.classifier, self.proxy is not None)
        self._evaluation = RobustEvaluation(self.classifier, args.prompt_template)
        self._make_attacks(args)
        self._models.compile(self.accelerator)
        if args.mixed_precision == "fp16" and args.device.type == "cpu":  # accelerate would train in float32, silently
            self.accelerator.native_amp, self.accelerator.scaler = True, torch.amp.GradScaler("cpu")
        self._normalizers = normalizers(self.model)
        self._trains_text = any(weight.requires_grad for weight in self.classifier.text_parameters)
        if inputs.train is not None:
            keep_anchor = self._keep_anchor if args.save_endpoints else None
            self.gpd = GPDCallback(self.schedule, args.ema_decay, args.pull_ratio, args.restart, keep_anchor)
            self._add_callback_of_run(self.gpd)
            if inputs.augmentation is not None:
                self._add_callback_of_run(AugmentationCallback(inputs.augmentation, self.schedule.steps_per_epoch))
        if "logit_scale" in inputs.trained and self.classifier.family.clamps_logit_scale:
            self._add_callback_of_run(LogitScaleCallback())

    def _add_callback_of_run(self, callback: TrainerCallback) -> None:
        """Add a callback that a run with other settings does without."""
        self.add_callback(callback)
        self._callbacks_of_run.append(callback)

    def _make_attacks(self, args: HPTConfig) -> None:
        """PGD for training, on what the stage's objective says, and for `evaluate()`, on cross-entropy."""
        pgd = {"eps": args.attack_eps, "step_size": args.attack_step_size, "seed": args.seed}
        self.attack = PGD(
            **pgd, steps=args.attack_steps, random_start=args.attack_random_start, loss=lambda losses, labels: losses
        )
        self.eval_attack = PGD(**pgd, steps=args.eval_attack_steps)
        if args.eval_attack_steps * args.attack_step_size < args.attack_eps:
            logger.warning("PGD in evaluate() takes too few steps to reach the edge of the eps-ball from its centre.")

    # Training

    def train(self, *args, **kwargs):
        """See [`~transformers.Trainer.train`]; one call goes through both stages."""
        self._micro_batches = 0
        self._diagnostics.clear()
        self._clean.forget()
        try:
            output = super().train(*args, **kwargs)
        finally:
            if isinstance(self.train_dataset, EpochStream):
                self.train_dataset.close()
        if self._trains_text:
            self.classifier.forget_text_embeds()
        return output

    def describe_launch(self) -> dict:
        """See [`~hpt.training.resumable.ResumableTrainer`]; with what stands for kept features of clean images."""
        return super().describe_launch() | {"clean_features": self._clean.fingerprint}

    def prepare(self, first_step: int = 0) -> None:
        """Have the features of clean images there, if a stage to come asks for them; see [`CleanFeatures`]."""
        to_come = {self.schedule.stage(first_step), TRANSFER}
        if any(self.objectives[stage].asks_about_clean for stage in to_come):
            self._clean.build()

    def create_scheduler(self, num_training_steps: int, optimizer=None) -> LambdaLR:
        """GPD's schedule, over the epochs of the stages; `max_steps` cuts it, and doesn't shorten the stages."""
        steps = self.schedule.num_epochs * self.schedule.steps_per_epoch
        if self.args.max_steps < 0 and num_training_steps != steps:
            raise InputError(
                f"The data loader has {num_training_steps} steps, GPD's schedule {steps}: leave get_train_dataloader "
                "as it is."
            )
        if self.lr_scheduler is None:
            self.lr_scheduler = get_gpd_schedule(
                optimizer or self.optimizer,
                self.schedule.steps_per_epoch,
                self.schedule.anchor_epochs,
                self.schedule.transfer_epochs,
                self.schedule.anchor_learning_rate,
                self.schedule.warmup_steps,
            )
            self._created_lr_scheduler = True
        return self.lr_scheduler

    def get_batch_samples(self, *args, **kwargs) -> tuple[list, int]:
        """The micro-batches of an optimizer step, and how many images they have on this rank, as on every other."""
        batches, _ = super().get_batch_samples(*args, **kwargs)
        return batches, sum(len(batch["pixel_values"]) for batch in batches)

    def training_step(self, model, inputs, num_items_in_batch=None) -> torch.Tensor:
        if self._micro_batches == 0:
            self._loss_before_step = self._tr_loss.clone()
        loss = super().training_step(model, inputs, num_items_in_batch)
        self._micro_batches = (self._micro_batches + 1) % self.current_gradient_accumulation_steps
        return loss

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """Attack the target on the batch, and take the stage's objective over it."""
        objective = self.objectives[self.schedule.stage(self.state.global_step)]
        for layer in self._normalizers:
            layer.eval()  # whatever mode Trainer put the model into: an image's outputs depend on no other image
        step = self._make_step(inputs, objective)
        if objective.needs_attack:
            step.attacked = self._attack(objective, step)
        # All of the objective runs in one forward of the wrapper, whose hooks average the gradients. Redirecting it
        # bypasses the autocast that accelerate puts around it.
        with self.accelerator.autocast(), forward_redirected(self.model, objective.losses):
            losses = model(step)
        if self._is_logged(self.state.global_step + 1):
            self._diagnostics.note(step)
        if self.args.kl_reduction == "sum":  # over the global batch: undo the averages over micro-batches and ranks
            loss = losses.sum() * self.current_gradient_accumulation_steps * self.args.world_size
        else:  # over the images of the step, also where Trainer averages over micro-batches of different sizes
            loss = losses.mean() * self._weight(len(losses), num_items_in_batch)
        seen = step.adversarial if objective.needs_attack else step.images
        return (loss, {"logits": step.target(seen).logits}) if return_outputs else loss

    def _weight(self, images: int, images_of_step: int | None) -> float:
        """How much a micro-batch counts in its optimizer step: exactly 1 if all are of one size."""
        return 1 if images_of_step is None else images * self.current_gradient_accumulation_steps / images_of_step

    def _make_step(self, inputs, objective: Objective) -> TrainingStep:
        target, proxy, original = self._models.of_batch(inputs)
        with self.accelerator.autocast():
            text_embeds = target.encode_prompts() if self._trains_text else None
        return TrainingStep(
            to_unit_range(inputs["pixel_values"], torch.promote_types(self.model.dtype, torch.float32)),
            inputs.get("labels"),
            target=target,
            proxy=proxy,
            original=original,
            text_embeds=text_embeds,
            patches=objective.needs_patches,
            attack=objective.needs_attack,
            features=self._clean.of_batch(inputs),
        )

    def _attack(self, objective: Objective, step: TrainingStep) -> AttackResult:
        """PGD on the objective's attack loss, with noise that belongs to the images' places in the run."""
        attack_loss = partial(objective.attack_losses, step)
        noise_ids, labels = self._noise_ids(len(step.images)), step.labels
        if labels is None:  # which the loss doesn't look at
            labels = torch.zeros(len(step.images), dtype=torch.long, device=step.images.device)
        with self._attack_precision(), self._models.under_attack():
            return self.attack.perturb(attack_loss, step.images, labels, noise_ids, checked=True)

    def _attack_precision(self):
        """The autocast that PGD runs in: that of the training, or what `attack_dtype` says."""
        dtype = self.args.attack_dtype
        if dtype is None:
            return self.accelerator.autocast()
        return torch.autocast(self.args.device.type, getattr(torch, dtype), enabled=dtype != "float32")

    def _noise_ids(self, batch_size: int) -> torch.Tensor:
        """Ids that fix an image's noise by its place in the run, for any number of ranks and micro-batches."""
        args = self.args
        micro_step = self.state.global_step * args.gradient_accumulation_steps + self._micro_batches
        first = (micro_step * args.world_size + args.process_index) * args.per_device_train_batch_size
        return first + torch.arange(batch_size)

    def _stop_unless_finite(self, **values: torch.Tensor) -> None:
        """On every rank alike, save the last good state and raise [`NonFiniteLossError`] if a value isn't finite.

        This is the one place in a step where the host waits for the device: once, for all values, which are scalars.
        """
        finite = torch.stack([value.isfinite() for value in values.values()]).float()
        shares = self.accelerator.reduce(finite, "mean").tolist()  # of the ranks
        what = next((name for name, share in zip(values, shares, strict=True) if share < 1), None)
        if what is None:
            return
        step = self.state.global_step
        self._tr_loss.copy_(self._loss_before_step)  # what is saved is the state before this step
        checkpoint = self._save_now() if step > 0 else None  # which raises if that isn't finite
        raise NonFiniteLossError(
            f"The {what} of step {step + 1} ({self.schedule.stage(step)} stage) isn't finite. {self._advise(step)} "
            + (f"The state before that step is in {checkpoint}." if checkpoint else "No step was taken yet.")
        )

    def _rate_of(self, step: int) -> str:
        name = "anchor_learning_rate" if self.schedule.stage(step) == ANCHOR else "learning_rate"
        return f"{name} (now {getattr(self.args, name):g})"

    def _advise(self, step: int) -> str:
        advice = super()._advise(step)
        return f"{advice[:-1]}, or kl_reduction='mean'." if self.args.kl_reduction == "sum" else advice

    def _get_grad_norm(self, model, grad_norm=None):
        """The norm of all gradients, after [`_stop_unless_finite`]: the last place before the optimizer's step."""
        if grad_norm is None:  # Trainer's own clips to an infinite norm, and so multiplies every gradient by 1
            self.accelerator.unscale_gradients()
            grad_norm = get_total_norm([weight.grad for weight in model.parameters() if weight.grad is not None])
        values = {"loss": self._tr_loss}  # to which Trainer has added those of the step's micro-batches
        if not self.args.fp16:  # its gradient scaler skips such steps and lowers its scale
            values["gradient"] = grad_norm
        self._stop_unless_finite(**values)
        return grad_norm

    # Logging

    def _is_logged(self, step: int) -> bool:
        """Whether Trainer logs after optimizer step `step`, counted from 1."""
        if self.args.logging_strategy == IntervalStrategy.EPOCH:
            return step % self.schedule.steps_per_epoch == 0
        if self.args.logging_strategy == IntervalStrategy.STEPS:
            return step % self.state.logging_steps == 0 or (step == 1 and self.args.logging_first_step)
        return False

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs and (noted := self._diagnostics.take()):
            logs |= {"stage": 1 if self.schedule.stage(self.state.global_step - 1) == ANCHOR else 2} | noted
        super().log(logs, start_time)

    # Evaluation

    @property
    def eval_classifier(self) -> ZeroShotClassifier:
        """The target over the classes of the set that was last evaluated."""
        return self._evaluation.classifier

    @dead_workers_explained()
    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix="eval") -> dict[str, float]:
        """`*_clean_accuracy` and `*_robust_accuracy` of each evaluation set, over its own classes."""
        if eval_dataset is None and isinstance(self.eval_dataset, dict):
            eval_dataset = {name: name for name in self.eval_dataset}
        if isinstance(eval_dataset, dict):
            metrics = {}
            for name, dataset in eval_dataset.items():
                metrics |= self.evaluate(dataset, ignore_keys, f"{metric_key_prefix}_{name}")
            return metrics
        if isinstance(eval_dataset, str):
            benchmark = self.eval_dataset[eval_dataset]
        elif eval_dataset is not None:
            benchmark = eval_dataset = self._inputs.as_benchmark(eval_dataset, "the evaluation set")
        elif self.eval_dataset is not None:
            benchmark = self.eval_dataset
        else:
            raise InputError("There is nothing to evaluate: give the trainer or evaluate() an eval_dataset.")
        loaders = vars(self).get("_eval_dataloaders", {})  # where Trainer keeps those whose workers persist
        if not isinstance(eval_dataset, str) and "eval" in loaders and loaders["eval"].dataset is not benchmark:
            del loaders["eval"]  # of another set
        self._evaluation.begin(benchmark)
        with torch.random.fork_rng(devices=()):  # data loaders draw a seed, and training goes on as if none were drawn
            return super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)

    def get_test_dataloader(self, test_dataset):
        benchmark = self._inputs.as_benchmark(test_dataset, "the test set")
        self._evaluation.begin(benchmark)
        return super().get_test_dataloader(benchmark)

    def _get_dataloader(self, dataset, *args, is_training=False, **kwargs):
        """Trainer's, which trains with features of clean images beside them, and evaluates on all images, whatever
        `dataloader_drop_last` says of training."""
        dataset = self._clean.beside(dataset) if is_training else dataset
        drop_last = self.args.dataloader_drop_last
        self.args.dataloader_drop_last = drop_last and is_training
        try:
            return super()._get_dataloader(dataset, *args, is_training=is_training, **kwargs)
        finally:
            self.args.dataloader_drop_last = drop_last

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        """Logits of the clean and of the adversarial images; see [`RobustEvaluation.score`]."""
        return None, *self._evaluation.score(self.eval_attack, self._prepare_inputs(inputs))

    # Checkpoints

    def _determine_best_metric(self, metrics, trial) -> bool:
        """Only checkpoints of the transfer stage can be the best: the anchor stage's weights are thrown away."""
        if self.schedule.stage(self.state.global_step - 1) == ANCHOR:
            return False
        return super()._determine_best_metric(metrics, trial)

    def mathematics(self) -> dict:
        """See [`~hpt.training.resumable.ResumableTrainer`]."""
        models = (self.classifier, self.proxy, self.original)
        described = describe_robust_training(self.args, self.train_dataset, *models, self._inputs.vanilla_weights)
        return described | self._given_optimizer

    def describe_run(self) -> dict:
        """What `training.json` and the card say of the run so far."""
        if self.train_dataset is None:
            raise InputError("There is no run to describe on a card: the trainer has no train_dataset.")
        if self._described is None:
            parts = (self.args, self.recipe, self.classifier, self.train_dataset, self.schedule)
            self._described = describe_run(*parts, self._inputs.vanilla_weights)
        objectives = None if self._has_own_step() else self.objectives
        method = describe_method(self.args, type(self).__name__, objectives, self.proxy, self.original)
        steps = self.schedule.num_epochs * self.schedule.steps_per_epoch
        steps = min(steps, self.args.max_steps) if self.args.max_steps > 0 else steps
        step = self.state.global_step
        progress = {"step": step, "steps": steps, "stage": self.schedule.stage(max(step - 1, 0))}
        progress |= {"seconds": round(self.train_seconds(), 1), "best_step": self.best_step}
        return self._described | method | progress

    def _has_own_step(self) -> bool:
        """Whether a subclass has replaced what a step computes, so that nobody knows what that is."""
        return any(getattr(type(self), name) is not getattr(HPTTrainer, name) for name in STEP)
