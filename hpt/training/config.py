"""`HPTConfig`: the settings of a run, beside those of transformers, with their checks."""

import math
from dataclasses import dataclass, field
from pathlib import Path

from transformers import TrainingArguments
from transformers.trainer_utils import HubStrategy, SchedulerType

from hpt.data.augmentation import AUGMENTATIONS
from hpt.errors import InputError, check_at_least, check_known
from hpt.files import check_folder
from hpt.models.proxies import COMBINATIONS, MOST_CONFIDENT, PROBABILITIES, check_weights
from hpt.models.weights import TRAINABLE
from hpt.processes import check_trains_together
from hpt.prompts import DEFAULT_TEMPLATE, check_templates
from hpt.radius import Fraction, Radius, check_step_size
from hpt.training.gpd import ANCHOR, TRANSFER, GPDSchedule, check_epochs
from hpt.training.keeping import check_cache, refuse_keeping, why_not_kept
from hpt.training.objectives import OBJECTIVES, Objective, RobustTransfer
from hpt.training.sums import check_attack_loss, check_needs, make_objective
from hpt.training.trackers import check_trackers
from hpt.training.unsupported import ROBUST_TRAINING, check_run, refuse_sharding, refuse_unsupported


DTYPES = ("float32", "bfloat16", "float16")
KL_REDUCTIONS = ("mean", "sum")
FRACTIONS = ("attack_eps", "attack_step_size", "temperature", "anchor_learning_rate", "learning_rate", "warmup_steps")
FRACTIONS += ("ema_decay", "pull_ratio", "proxy_temperature")
OF_THE_ANCHOR = ("anchor_objective", "anchor_objective_args", "anchor_learning_rate")
OF_THE_PULL = ("ema_decay", "pull_ratio")
SWITCHES = ("only_where_right", "restart", "attack_random_start", "save_endpoints")  # where "no" would mean yes
COUNTS = ("attack_steps", "eval_attack_steps", "steps_per_epoch", "shuffle_buffer_size")
AUTO, ALWAYS, NEVER = CACHE_CLEAN = ("auto", "true", "false")
# Fields that can't change between a checkpoint and the run that resumes from it.
MATHEMATICS = (
    "objective objective_args anchor_objective anchor_objective_args attack_loss kl_direction kl_reduction "
    "temperature proxy_temperature only_where_right proxy_combination proxy_weights restart "
    "anchor_epochs transfer_epochs anchor_learning_rate learning_rate "
    "warmup_steps ema_decay pull_ratio attack_eps attack_steps attack_step_size attack_random_start trainable "
    "prompt_template optim optim_args adam_beta1 adam_beta2 adam_epsilon optim_target_modules max_grad_norm "
    "weight_decay seed train_sampling_strategy mixed_precision tf32 attack_dtype steps_per_epoch augmentation"
).split()


@dataclass
class HPTConfig(TrainingArguments):
    r"""Settings of [`HPTTrainer`], beside those of [`~transformers.TrainingArguments`].

    Defaults are the paper's (arXiv 2601.12865), but for a warm-up that fits stages of any length: the paper's, of 1000
    steps, stands in `recipes/vit_b32_eps1.yaml`. Floats may be written as fractions in text, such as `"1/255"`.
    Defaults of `TrainingArguments` that change: `num_train_epochs` (derived from the stages), `learning_rate`,
    `warmup_steps`, `lr_scheduler_type`, `optim`, `optim_args`, `max_grad_norm`, `weight_decay`,
    `per_device_train_batch_size`, `logging_steps`, `save_steps`, `remove_unused_columns`, `label_names`,
    `logging_nan_inf_filter` (a non-finite loss stops the run instead), `ddp_find_unused_parameters`, and, unless it is
    given, `accelerator_config`, whose `non_blocking` lets pinned batches be copied to a GPU while that computes, which
    hasn't been tried on one.

    Args:
        objective, anchor_objective (`str`, *optional*, default to `"hpt"` and `"anchor"`):
            What the transfer and the anchor stage minimise, by their keys in [`OBJECTIVES`]: `"hpt"` is Eq. 5,
            `"anchor"` Eq. 8. Or a weighted sum of them, such as `"0.5*hpt + 1.0*tecoa"`.
        objective_args, anchor_objective_args (`str`, *optional*):
            Settings of the two objectives, such as `"temperature=2,kl_direction=target_to_proxy"`; of a sum, with the
            names of its terms: `"hpt.temperature=2,pmg_aft.a=0.5"`.
        attack_loss (`str`, *optional*):
            The term of a sum whose attack loss alone the attack maximises. By default it maximises the weighted sum of
            the terms' attack losses.
        kl_direction (`str`, *optional*, defaults to `"proxy_to_target"`):
            `"proxy_to_target"` is KL(P || T), which the paper's code computes; `"target_to_proxy"` is KL(T || P),
            which the paper writes.
        kl_reduction (`str`, *optional*, defaults to `"mean"`):
            Of any objective: `"mean"` over the batch as the paper writes, or `"sum"` as its code has it, which makes
            the effective learning rate grow with the batch.
        temperature (`float`, *optional*, defaults to 1.0):
            Divides both logits; the loss is multiplied by its square.
        proxy_temperature (`float`, *optional*, defaults to 1.0):
            Divides the proxy's logits alone, beside `temperature`, and doesn't multiply the loss.
        only_where_right (`bool`, *optional*, defaults to `False`):
            Learn from the proxy only on images that it gets right as it sees them; the others count as a loss of 0.
        proxy_combination (`str`, *optional*, defaults to `"probabilities"`):
            How several proxies teach together: `"probabilities"` or `"logits"`, averaged, or `"most_confident"`, for
            each image; see [`ProxyOutputs`](models/proxies.py).
        proxy_weights (`list[float]`, *optional*):
            One for each proxy, divided by their sum; equal ones by default.
        anchor_epochs, transfer_epochs (`int`, *optional*, default to 5 and 5):
            Length of the two stages. `anchor_epochs=0` is plain HPT, without EMA and pull. So is `transfer_epochs=1`,
            after a restart: the pull comes before each later epoch.
        anchor_learning_rate, learning_rate (`float`, *optional*, default to 5e-5 and 5e-2):
            Peak rates of the two stages.
        warmup_steps (`float`, *optional*, defaults to 0.1):
            Linear warm-up in each stage; below 1, a share of the stage.
        logging_steps, save_steps (`float`, *optional*, default to 0.02 and 0.1):
            Steps between entries of the log and between checkpoints; below 1, a share of the run.
        ema_decay (`float`, *optional*, defaults to 0.9):
            g of Eq. 9.
        pull_ratio (`float`, *optional*, defaults to 0.5):
            b of Eq. 10, the share that the current weights keep.
        restart (`bool`, *optional*, defaults to `True`):
            Whether the transfer stage begins at the vanilla weights. If not, it goes on from the anchor stage's last;
            the optimizer forgets its state either way.
        attack_eps, attack_step_size (`float`, *optional*, default to 1/255 and 1/255):
            l_inf radius and step of PGD, in [0, 1] pixels.
        attack_steps (`int`, *optional*, defaults to 2):
            PGD steps in training.
        attack_random_start (`bool`, *optional*, defaults to `True`):
            Whether PGD starts at a random point of the ball.
        eval_attack_steps (`int`, *optional*, defaults to 10):
            PGD steps in `evaluate()`, which always attacks in float32.
        attack_dtype (`str`, *optional*):
            Precision of the vision tower in training's PGD: `"float32"`, `"bfloat16"` or `"float16"`, the latter two
            by autocast. By default that of the training.
        augmentation (`str`, *optional*, defaults to `"none"`):
            Of the training images: `"crop_flip"` takes a random part of each, resized to the size that it has without
            augmentation, and mirrors half of them; see [`CropFlip`]. Evaluation never augments.
        cache_clean (`str` or `bool`, *optional*, defaults to `"auto"`):
            Whether what the proxy, or the target's vanilla copy, makes of clean images is computed once and kept on
            disk, in place of once in each epoch: `"auto"` where a stage's objective asks for it in two epochs or more,
            `"true"` and `"false"`. Not of augmented images, streams, mixtures, proxies that are functions, and
            patches; see [`CleanFeatures`](training/clean_features.py).
        steps_per_epoch (`int`, *optional*):
            Optimizer steps in an epoch of a streaming training set, which has no length of its own. Each epoch goes on
            where the one before it ended.
        shuffle_buffer_size (`int`, *optional*, defaults to 1000):
            Encoded images among which the next of a streaming training set is drawn; its files come in random order.
        trainable (`str`, *optional*, defaults to `"vision"`):
            `"vision"` trains `vision_model` and `visual_projection`, `"all"` everything. A PEFT model trains its
            adapters.
        prompt_template (`str` or `list[str]`, *optional*, defaults to `"This is a photo of a {}"`):
            Template of the class prompts in training. The embeddings of several are averaged on the unit sphere.
        save_endpoints (`bool`, *optional*, defaults to `False`):
            Whether the run keeps in `output_dir/endpoints/`, for `hpt interpolate`, what training has changed of the
            weights: the anchor stage's average and last weights, and those that the run ends with. They are never
            published unless that is asked for.

    Raises:
        InputError: for values out of range, unknown names, or settings that contradict each other.
    """

    # Objective
    objective: str = field(
        default="hpt",
        metadata={"help": f"Of the transfer stage: {', '.join(OBJECTIVES)}, or a sum: '0.5*hpt + tecoa'."},
    )
    objective_args: str | None = field(default=None, metadata={"help": "Its settings, such as temperature=2."})
    anchor_objective: str = field(default="anchor", metadata={"help": "Of the anchor stage, likewise."})
    anchor_objective_args: str | None = field(default=None, metadata={"help": "Its settings, likewise."})
    attack_loss: str | None = field(
        default=None, metadata={"help": "Term of a sum that the attack maximises; the weighted sum unless given."}
    )
    kl_direction: str = field(
        default="proxy_to_target", metadata={"help": "proxy_to_target is KL(P||T), target_to_proxy KL(T||P)."}
    )
    kl_reduction: str = field(default="mean", metadata={"help": "Over the batch: mean or sum."})
    temperature: Fraction = field(default=1.0, metadata={"help": "Divides both logits."})
    proxy_temperature: Fraction = field(default=1.0, metadata={"help": "Divides the proxy's logits too."})
    only_where_right: bool = field(
        default=False, metadata={"help": "Learn from the proxy only on images that it gets right."}
    )

    # Several proxies
    proxy_combination: str = field(
        default=PROBABILITIES, metadata={"help": f"How they teach together: {', '.join(COMBINATIONS)}."}
    )
    proxy_weights: list[Fraction] | None = field(
        default=None, metadata={"help": "One for each of several proxies; equal ones unless given."}
    )

    # Stages
    anchor_epochs: int = field(default=5, metadata={"help": "Epochs of stage 1; 0 is plain HPT."})
    transfer_epochs: int = field(default=5, metadata={"help": "Epochs of stage 2."})
    anchor_learning_rate: Fraction = field(default=5e-5, metadata={"help": "Peak learning rate of stage 1."})
    learning_rate: Fraction = field(default=5e-2, metadata={"help": "Peak learning rate of stage 2."})
    warmup_steps: Fraction = field(default=0.1, metadata={"help": "Warm-up of each stage; below 1, a share of it."})
    ema_decay: Fraction = field(default=0.9, metadata={"help": "g of Eq. 9."})
    pull_ratio: Fraction = field(default=0.5, metadata={"help": "b of Eq. 10, the share the current weights keep."})
    restart: bool = field(default=True, metadata={"help": "Begin stage 2 at the vanilla weights."})
    num_train_epochs: float | None = field(
        default=None, metadata={"help": "Derived: anchor_epochs + transfer_epochs; refused if given and different."}
    )

    # Attack
    attack_eps: Fraction = field(default=Fraction("1/255"), metadata={"help": "l_inf radius in [0, 1] pixels."})
    attack_steps: int = field(default=2, metadata={"help": "PGD steps in training."})
    attack_step_size: Fraction = field(default=Fraction("1/255"), metadata={"help": "PGD step in [0, 1] pixels."})
    attack_random_start: bool = field(default=True, metadata={"help": "Start PGD at a random point of the ball."})
    eval_attack_steps: int = field(default=10, metadata={"help": "PGD steps in evaluate()."})

    attack_dtype: str | None = field(
        default=None, metadata={"help": "float32, bfloat16 or float16; the training's own unless given."}
    )

    # Images
    augmentation: str = field(default="none", metadata={"help": "Of training images: none or crop_flip."})

    cache_clean: str = field(
        default=AUTO,
        metadata={"help": "Compute what frozen models make of clean images once, and keep it: auto, true or false."},
    )

    # Streams
    steps_per_epoch: int | None = field(default=None, metadata={"help": "For a streaming training set: its epochs."})
    shuffle_buffer_size: int = field(
        default=1000, metadata={"help": "For a streaming training set: images drawn among."}
    )

    # Model
    trainable: str = field(default="vision", metadata={"help": "vision or all."})
    prompt_template: list[str] | str = field(
        default_factory=lambda: DEFAULT_TEMPLATE,  # the one kind of default that HfArgumentParser has for lists
        metadata={"help": "One or several templates of the class prompts."},
    )
    save_endpoints: bool = field(
        default=False, metadata={"help": "Keep the weights at each stage's end, for hpt interpolate."}
    )

    # Changed defaults
    lr_scheduler_type: SchedulerType | str = field(
        default="cosine", metadata={"help": "Each stage's decay after its warm-up; only cosine."}
    )
    optim: str = field(default="sgd", metadata={"help": "The optimizer to use."})
    optim_args: str | None = field(default="momentum=0.9", metadata={"help": "Optional arguments of the optimizer."})
    max_grad_norm: float = field(default=0.0, metadata={"help": "Gradient clipping; 0 for none."})
    per_device_train_batch_size: int = field(default=64, metadata={"help": "Batch size per device in training."})
    per_device_eval_batch_size: int = field(default=64, metadata={"help": "Batch size per device in evaluation."})
    logging_steps: float = field(default=0.02, metadata={"help": "Between logs; below 1, a share of the run."})
    save_steps: float = field(default=0.1, metadata={"help": "Between checkpoints; below 1, a share of the run."})
    remove_unused_columns: bool = field(default=False, metadata={"help": "Kept False: the transform needs them."})
    label_names: list[str] | None = field(
        default_factory=lambda: ["labels"], metadata={"help": "The keys of the labels in a batch."}
    )
    logging_nan_inf_filter: bool = field(default=False, metadata={"help": "Kept False: a NaN stops the run."})
    ddp_find_unused_parameters: bool | None = field(
        default=False, metadata={"help": "False: every parameter that isn't frozen is used in each step."}
    )

    help_groups = {  # by their first fields
        "objective": "Objective",
        "proxy_combination": "Several proxies",
        "anchor_epochs": "Stages",
        "attack_eps": "Attack",
        "augmentation": "Images",
        "steps_per_epoch": "Streams",
        "trainable": "Model",
        "lr_scheduler_type": "Defaults that differ from transformers'",
    }

    def __post_init__(self):
        refuse_sharding(self)
        self._parse_numbers()
        self.cache_clean = str(self.cache_clean).lower()  # which Python and YAML may give as a truth value
        templates = check_templates(self.prompt_template)
        self.prompt_template = templates[0] if len(templates) == 1 else templates  # the command line gives a list
        if self.load_best_model_at_end and self.metric_for_best_model is None:
            self.metric_for_best_model = "robust_accuracy"
        self._check()
        if self.steps_per_epoch is not None and self.dataloader_num_workers > 0:
            self.dataloader_persistent_workers = True  # they keep their place in the stream from epoch to epoch
        self.num_train_epochs = float(self.anchor_epochs + self.transfer_epochs)
        if self.optim_args == "momentum=0.9" and not str(getattr(self.optim, "value", self.optim)) == "sgd":
            self.optim_args = None  # SGD's default, meaningless to another optimizer
        check_run(self)
        accelerator_config = self.accelerator_config  # as it is given
        super().__post_init__()
        check_trains_together(self.world_size)
        refuse_unsupported(self, ROBUST_TRAINING)
        self.dataloader_pin_memory &= self.device.type != "cpu"  # which torch would warn of
        if accelerator_config is None:
            self.accelerator_config.non_blocking = self.dataloader_pin_memory and self.device.type == "cuda"
        check_trackers(self.report_to)

    def schedule(self, num_examples: int | None) -> GPDSchedule:
        """The run's stages over a training set of `num_examples`, or over a stream for `None`.

        Raises:
            InputError: if a warm-up outlasts its stage, or `steps_per_epoch` is missing, or given without a stream.
        """
        if num_examples is None and self.steps_per_epoch is None:
            raise InputError("A streaming training set has no epochs of its own: give steps_per_epoch.")
        if num_examples is not None and self.steps_per_epoch is not None:
            raise InputError(
                "steps_per_epoch is for streaming training sets; this one has epochs of its own: leave it out."
            )
        return GPDSchedule(
            steps_per_epoch=self.steps_per_epoch or steps_over(num_examples, self),
            anchor_epochs=self.anchor_epochs,
            transfer_epochs=self.transfer_epochs,
            anchor_learning_rate=self.anchor_learning_rate,
            learning_rate=self.learning_rate,
            warmup_steps=self.warmup_steps,
        )

    def make_objectives(self) -> dict[str, Objective]:
        """The objective of each stage that has epochs.

        Raises:
            InputError: for unknown names or settings, or values out of range.
        """
        stages = {ANCHOR: "anchor_objective", TRANSFER: "objective"} if self.anchor_epochs else {TRANSFER: "objective"}
        return {stage: self._make_objective(field_name) for stage, field_name in stages.items()}

    @property
    def needs_proxy(self) -> bool:
        """Whether an objective of the run learns from a proxy."""
        return self._any_objective("needs_proxy")

    @property
    def needs_original(self) -> bool:
        """Whether an objective of the run compares with the target's vanilla copy."""
        return self._any_objective("needs_original")

    @property
    def needs_patches(self) -> bool:
        """Whether an objective of the run looks at patch tokens."""
        return self._any_objective("needs_patches")

    @property
    def without_effect(self) -> frozenset[str]:
        """GPD's settings that change nothing in this run.

        All of them without an anchor stage. With one transfer epoch, the average and the pull, which comes before each
        later epoch; and then nothing of the anchor stage is left after a restart.
        """
        if self.anchor_epochs == 0:
            return frozenset((*OF_THE_ANCHOR, *OF_THE_PULL, "restart"))
        if self.transfer_epochs > 1:
            return frozenset()
        return frozenset((*OF_THE_ANCHOR, *OF_THE_PULL) if self.restart else OF_THE_PULL)

    def _any_objective(self, need: str) -> bool:
        return any(getattr(objective, need) for objective in self.make_objectives().values())

    def _make_objective(self, field_name: str) -> Objective:
        text, settings = getattr(self, field_name), getattr(self, f"{field_name}_args")
        return make_objective(text, vars(self), field_name, settings, self.attack_loss)

    def _check_objectives(self) -> None:
        """Refuse objectives that can't be made, and settings in fields of their own that neither objective has."""
        check_known("kl_reduction", self.kl_reduction, KL_REDUCTIONS)
        objectives = self.make_objectives().values()
        check_attack_loss(self.attack_loss, objectives)
        for objective in objectives:
            check_needs(objective, self.attack_random_start, self.trainable)
        used = {setting for objective in objectives for setting in objective.fields}
        for setting in RobustTransfer.fields:
            if setting not in used and getattr(self, setting) != getattr(HPTConfig, setting):
                raise InputError(f"{setting} is {getattr(self, setting)!r}, but no objective of this run has it.")

    def _parse_numbers(self):
        """Python and YAML callers may give text where a number is meant, as the command line always does."""
        for name in FRACTIONS:
            try:
                setattr(self, name, float(Fraction(getattr(self, name))))
            except (ValueError, ZeroDivisionError):
                raise InputError(
                    f"{name} is {getattr(self, name)!r}, but must be a number or a fraction such as 1/255."
                ) from None
        self.proxy_weights = self._parse_weights()

    def _parse_weights(self) -> list[float] | None:
        """The proxies' weights as numbers, which a command line and YAML give as text."""
        weights = self.proxy_weights
        if weights is None:
            return None
        try:
            return [float(Fraction(weight)) for weight in ([weights] if isinstance(weights, str) else weights)]
        except (ValueError, TypeError, ZeroDivisionError):
            raise InputError(
                f"proxy_weights is {weights!r}, but must be a list of numbers, one for each proxy."
            ) from None

    def _check_proxies(self) -> None:
        """Refuse what no proxies can be combined by, however many there will be."""
        check_known("proxy_combination", self.proxy_combination, COMBINATIONS)
        if self.proxy_weights is None:
            return
        check_weights(self.proxy_weights)
        if self.proxy_combination == MOST_CONFIDENT:
            raise InputError(
                "proxy_weights are of averages, but proxy_combination is most_confident, which takes one proxy's "
                "answer: leave one of the two out."
            )

    def _check(self):
        for name in SWITCHES:
            if not isinstance(getattr(self, name), bool):
                raise InputError(f"{name} is {getattr(self, name)!r}, but must be True or False.")
        check_epochs(self.anchor_epochs, self.transfer_epochs)
        self._check_objectives()
        self._check_proxies()
        Radius(self.attack_eps)  # refuses one that can't be meant
        check_step_size(self.attack_step_size, self.attack_eps)
        epochs = self.anchor_epochs + self.transfer_epochs
        if self.num_train_epochs is not None and float(self.num_train_epochs) != epochs:
            raise InputError(
                f"num_train_epochs is {self.num_train_epochs}, but the stages have {self.anchor_epochs} + "
                f"{self.transfer_epochs} = {epochs} epochs: leave it out, or change anchor_epochs and transfer_epochs."
            )
        counts = {name: getattr(self, name) for name in COUNTS}
        check_at_least(1, **{name: count for name, count in counts.items() if count is not None})
        for name in ("ema_decay", "pull_ratio"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"{name} is {getattr(self, name):g}, but must be between 0 and 1.")
        check_known("trainable", self.trainable, TRAINABLE)
        check_known("augmentation", self.augmentation, AUGMENTATIONS)
        check_known("cache_clean", self.cache_clean, CACHE_CLEAN)
        if self.cache_clean == ALWAYS:
            refuse_keeping(why_not_kept(self))
            check_cache()
        if self.attack_dtype is not None:
            check_known("attack_dtype", self.attack_dtype, DTYPES)
        if SchedulerType(self.lr_scheduler_type) != SchedulerType.COSINE:
            raise InputError(f"lr_scheduler_type is {self.lr_scheduler_type!r}, but GPD's stages are cosine.")
        if self.warmup_steps < 0:
            raise InputError(f"warmup_steps is {self.warmup_steps:g}, but must be at least 0.")
        if Path(self.output_dir or ".").is_file():
            raise InputError(f"output_dir is {self.output_dir!r}, which is a file: give a folder.")
        check_folder(Path(self.output_dir or "."))
        if "checkpoint" in (strategy := HubStrategy(self.hub_strategy).value):
            raise InputError(
                f"hub_strategy is {strategy!r}, which would push optimizer states: give every_save or end."
            )


def steps_over(num_examples: int, args: TrainingArguments) -> int:
    """Optimizer steps in an epoch of a dataset."""
    batch_size, world_size = args.per_device_train_batch_size, args.world_size
    if args.dataloader_drop_last:
        batches = num_examples // batch_size // world_size
    else:
        batches = math.ceil(math.ceil(num_examples / batch_size) / world_size)
    return max(1, math.ceil(batches / args.gradient_accumulation_steps))
