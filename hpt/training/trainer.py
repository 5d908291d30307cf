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
from concurrent.futures import Future
from functools import partial
from pathlib import Path

import torch
from accelerate.utils import DynamoBackend
from huggingface_hub import CommitInfo
from torch.optim.lr_scheduler import LambdaLR
from transformers import TrainerCallback
from transformers.trainer_utils import IntervalStrategy

from hpt.attacks import PGD, AttackResult
from hpt.classifiers import Classifier
from hpt.data.benchmark import Benchmark
from hpt.data.epochs import EpochMixture
from hpt.data.images import collate, to_unit_range
from hpt.data.streams import EpochStream
from hpt.errors import InputError
from hpt.evaluation.figures import draw_training_curves
from hpt.evaluation.scoring import score_batch
from hpt.hub.folder import CURVES, ModelFolder
from hpt.hub.publisher import Publisher
from hpt.json_files import digest
from hpt.models.endpoints import ANCHOR_END, AVERAGE, ENDPOINTS, FINAL, collect_endpoint, write_endpoints
from hpt.models.families import plain_model
from hpt.models.proxies import try_out, zero_shot_parts
from hpt.models.weights import find_non_finite, forward_redirected, normalizers
from hpt.processes import dead_workers_explained
from hpt.prompts import list_templates
from hpt.training.callbacks import AugmentationCallback, LogitScaleCallback
from hpt.training.checkpoints import checkpoint_folder
from hpt.training.config import MATHEMATICS, HPTConfig
from hpt.training.diagnostics import Diagnostics
from hpt.training.gpd import ANCHOR, GPDCallback, get_gpd_schedule
from hpt.training.identity import (
    describe_given_optimizer,
    describe_proxy,
    describe_target,
    describe_training,
    identify_proxy,
    images_per_epoch,
)
from hpt.training.inputs import TrainingInputs, check_config, check_launch, check_metrics, prepare_inputs
from hpt.training.objectives import Objective
from hpt.training.record import describe_method, describe_run
from hpt.training.resumable import NonFiniteError
from hpt.training.search import SearchableTrainer, check_model_init, make_model
from hpt.training.step import TrainingStep
from hpt.training.unsupported import refuse_arguments


logger = logging.getLogger(__name__)

STEP = ("training_step", "compute_loss", "_make_step", "_attack")  # the methods by which a step is computed


class NonFiniteLossError(NonFiniteError):
    """The loss or a gradient became NaN or infinite; the state before that step was finite, and has been saved."""


class HPTTrainer(SearchableTrainer):
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
            **{"compute_metrics": _accuracies, "preprocess_logits_for_metrics": _predictions} | kwargs,
        )
        self.model_init = model_init
        self.model_accepts_loss_kwargs = False  # CLIPModel takes **kwargs, but the loss is ours and a mean per batch
        self._callbacks_of_run = []
        self._set_up(inputs)

    def _prepare_inputs_of_run(self, model, args: HPTConfig) -> TrainingInputs:
        inputs = prepare_inputs(model, args, *self._given)
        if not self.has_own_metrics:
            check_metrics(args, inputs.evaluation)
        return inputs

    def _make_publisher(self, args: HPTConfig) -> None:
        self.publisher = Publisher(
            args,
            describe_run=self.describe_run,
            draw_figures=self.draw_figures,
            interrupted=lambda: self._signal != 0,
        )
        self.push_in_progress = self.publisher.in_progress  # for which Trainer waits at its end

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
        self.classifier = self.eval_classifier = inputs.classifier.to(args.device)
        self.proxy = inputs.proxy and inputs.proxy.to(args.device)
        self.original = inputs.original and inputs.original.to(args.device)
        self._over_sets = self._models_over_sets()
        for target, proxy, _ in [(self.classifier, self.proxy, self.original), *self._over_sets]:
            if proxy is not None:
                try_out(proxy, inputs.one_image().to(args.device), len(target.class_names))
        self.objectives, self.schedule = args.make_objectives(), inputs.schedule
        self._diagnostics = Diagnostics(self.accelerator, self.classifier, self.proxy is not None)
        self._make_attacks(args)
        self._compile_towers()
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

    def _models_over_sets(self) -> list[tuple]:
        """Of a mixture with batches of one set, target, proxy and original over the classes of each; else nothing.

        They share weights, and each keeps its class embeddings, so that no set's are computed twice.
        """
        if not isinstance(self.train_dataset, EpochMixture) or self.train_dataset.over_union:
            return []
        models = (self.classifier, self.proxy, self.original)
        return [
            tuple(model and model.with_classes(part.class_names, part.template) for model in models)
            for part in self.train_dataset.sets.values()
        ]

    def _models_for(self, inputs) -> tuple:
        """Target, proxy and original over the classes that the labels of a batch number."""
        if not self._over_sets:
            return self.classifier, self.proxy, self.original
        return self._over_sets[self.train_dataset.set_of(inputs["sample_ids"][0].item())]

    def _make_attacks(self, args: HPTConfig) -> None:
        """PGD for training, on what the stage's objective says, and for `evaluate()`, on cross-entropy."""
        pgd = {"eps": args.attack_eps, "step_size": args.attack_step_size, "seed": args.seed}
        self.attack = PGD(
            **pgd, steps=args.attack_steps, random_start=args.attack_random_start, loss=lambda losses, labels: losses
        )
        self.eval_attack = PGD(**pgd, steps=args.eval_attack_steps)
        if args.eval_attack_steps * args.attack_step_size < args.attack_eps:
            logger.warning("PGD in evaluate() takes too few steps to reach the edge of the eps-ball from its centre.")

    def _compile_towers(self) -> None:
        """Compile what `torch_compile` would: not the whole model, since attacks go past its wrapper, but its towers.

        Dynamic shapes are left to torch, which compiles anew for the second batch size that it sees.
        """
        plugin = self.accelerator.state.dynamo_plugin
        if plugin.backend == DynamoBackend.NO:
            return
        towers = self.classifier.family.towers(self.model)
        for frozen in zero_shot_parts(self.proxy, self.original):
            towers += frozen.family.towers(frozen.model)[:1]  # texts are encoded once
        for tower in dict.fromkeys(towers):
            tower.compile(**plugin.to_kwargs())
        plugin.backend = DynamoBackend.NO  # accelerate would compile the whole model as well

    # Training

    def train(self, *args, **kwargs):
        """See [`~transformers.Trainer.train`]; one call goes through both stages."""
        if self.args.push_to_hub:
            self.publisher.refuse_private_run()
        self._micro_batches = 0
        self._diagnostics.clear()
        try:
            output = super().train(*args, **kwargs)
        finally:
            if isinstance(self.train_dataset, EpochStream):
                self.train_dataset.close()
        if self._trains_text:
            self.classifier.forget_text_embeds()
        return output

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
        self._stop_unless_finite(losses, "loss")
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
        target, proxy, original = self._models_for(inputs)
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
        )

    def _attack(self, objective: Objective, step: TrainingStep) -> AttackResult:
        """PGD on the objective's attack loss, with noise that belongs to the images' places in the run."""
        attack_loss = partial(objective.attack_losses, step)
        noise_ids = self._noise_ids(len(step.images))
        labels = torch.zeros_like(noise_ids) if step.labels is None else step.labels  # which the loss doesn't look at
        with self._attack_precision():
            return self.attack.perturb(attack_loss, step.images, labels, noise_ids)

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

    def _stop_unless_finite(self, value: torch.Tensor, what: str) -> None:
        """On every rank alike, save the last good state and raise [`NonFiniteLossError`] if `value` isn't finite."""
        finite = torch.isfinite(value.detach()).all().float()
        if self.accelerator.reduce(finite, "mean").item() == 1:
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

    def _state_tensors(self) -> dict[str, torch.Tensor]:
        return super()._state_tensors() | self.gpd.tensors()

    def _get_grad_norm(self, model, grad_norm=None):
        grad_norm = super()._get_grad_norm(model, grad_norm)
        if not self.args.fp16:  # its gradient scaler skips such steps and lowers its scale
            self._stop_unless_finite(torch.as_tensor(grad_norm, device=self.args.device), "gradient")
        return grad_norm

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
        self._classify_as(benchmark)
        return super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)

    def get_test_dataloader(self, test_dataset):
        benchmark = self._inputs.as_benchmark(test_dataset, "the test set")
        self._classify_as(benchmark)
        return super().get_test_dataloader(benchmark)

    def _get_dataloader(self, dataset, *args, is_training=False, **kwargs):
        """Trainer's, which evaluates on all images, whatever `dataloader_drop_last` says of training."""
        drop_last = self.args.dataloader_drop_last
        self.args.dataloader_drop_last = drop_last and is_training
        try:
            return super()._get_dataloader(dataset, *args, is_training=is_training, **kwargs)
        finally:
            self.args.dataloader_drop_last = drop_last

    def _classify_as(self, benchmark: Benchmark) -> None:
        """Predict the classes of a benchmark from here on."""
        template, own = benchmark.template, self.classifier.templates
        if template is None and isinstance(own, dict):  # each class of a mixture has the prompts of its sets
            default = list_templates(self.args.prompt_template)
            template = {name: own.get(name, default) for name in benchmark.class_names}
        self.eval_classifier = self.classifier.with_classes(benchmark.class_names, template)

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        """Logits of the clean and of the adversarial images; an image that is already wrong stays as it is.

        The classifier attacked is the one scored: unwrapped, not compiled, and outside autocast, so in float32.
        """
        with torch.compiler.set_stance("force_eager"):
            return None, *self._attack_and_score(self._prepare_inputs(inputs))

    def _attack_and_score(self, inputs) -> tuple:
        clean_logits = score_batch(self.eval_classifier, None, inputs).logits
        robust_logits, right = clean_logits.clone(), clean_logits.argmax(-1) == inputs["labels"]
        if right.any():
            robust_logits[right] = score_batch(self.eval_classifier, self.eval_attack, inputs, only=right).logits
        return (clean_logits, robust_logits), inputs["labels"]

    # Checkpoints

    def _determine_best_metric(self, metrics, trial) -> bool:
        """Only checkpoints of the transfer stage can be the best: the anchor stage's weights are thrown away."""
        if self.schedule.stage(self.state.global_step - 1) == ANCHOR:
            return False
        return super()._determine_best_metric(metrics, trial)

    def mathematics(self) -> dict:
        """See [`~hpt.training.resumable.ResumableTrainer`]."""
        described = describe_training(self.args, MATHEMATICS, self.train_dataset)
        described |= describe_target(self.classifier, self._inputs.vanilla_weights) | self._given_optimizer
        if self.args.kl_reduction == "mean" and self._has_uneven_micro_batches():
            described["micro-batches weigh"] = "by their images"
        if self.args.needs_proxy:
            described |= {"proxy": describe_proxy(self.proxy), "proxy_models": identify_proxy(self.proxy)}
        if self.original is not None:
            described["original"] = self._inputs.vanilla_weights
        return described

    def _has_uneven_micro_batches(self) -> bool:
        """Whether an epoch's last optimizer step has a micro-batch that is smaller than the step's others."""
        batches, rest = divmod(images_per_epoch(self.args, len(self.train_dataset)), self.args.train_batch_size)
        return rest > 0 and batches % self.args.gradient_accumulation_steps > 0

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

    def draw_figures(self, folder: Path) -> None:
        """Draw training curves into a folder, once there is something to see."""
        if any("loss" in entry for entry in self.state.log_history):
            draw_training_curves(self.state.log_history, self.schedule.boundary, folder / CURVES)

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

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        if self.args.should_save:
            self.gpd.save(output_dir)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None:
            self.gpd.load(checkpoint, self.args.device)


def _predictions(logits, labels):
    """What is kept of each batch's logits: the predicted classes, clean and adversarial."""
    return tuple(scores.argmax(-1) for scores in logits)


def _accuracies(prediction) -> dict[str, float]:
    clean, robust = ((classes == prediction.label_ids).mean().item() for classes in prediction.predictions)
    return {"clean_accuracy": clean, "robust_accuracy": robust}
