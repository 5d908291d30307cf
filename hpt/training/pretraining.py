"""Contrastive pretraining of small dual encoders, for those who have no pretrained ones at hand.

Images and captions of one class are all positives of each other. The captions come from templates over class names,
the tokenizer works on bytes, and every shape is a setting, so that targets and proxies of different architecture, a
CLIP, a SigLIP, or a ResNet beside a BERT, come out of an image-classification dataset alone.
"""

import math
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers.pre_tokenizers import ByteLevel
from transformers import (
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPProcessor,
    CLIPTokenizer,
    SiglipConfig,
    SiglipImageProcessorPil,
    SiglipModel,
    SiglipProcessor,
    TrainingArguments,
    VisionTextDualEncoderConfig,
    VisionTextDualEncoderModel,
    VisionTextDualEncoderProcessor,
)

from hpt.cli import parse_config
from hpt.data.augmentation import AUGMENTATIONS
from hpt.data.benchmark import Benchmark
from hpt.data.epochs import EpochMixture
from hpt.data.images import check_images, collate, to_unit_range
from hpt.data.loading import load_training_data
from hpt.data.mixtures import OF_THE_SETS, Mixture, choose_sets, load_mixture
from hpt.errors import InputError, check_at_least, check_known
from hpt.models.attention import choose_attention
from hpt.models.classifier import ZeroShotClassifier
from hpt.models.loading import save_finished
from hpt.models.weights import forward_redirected
from hpt.processes import check_trains_together, hold_together, on_main_process, signals_held
from hpt.prompts import DEFAULT_TEMPLATE, check_templates, make_prompts
from hpt.training.callbacks import AugmentationCallback, LogitScaleCallback
from hpt.training.config import steps_over
from hpt.training.data_inputs import check_batches
from hpt.training.identity import describe_training
from hpt.training.inputs import check_launch, make_augmentation
from hpt.training.mixed_sets import as_epochs
from hpt.training.resumable import ResumableTrainer
from hpt.training.trackers import check_trackers
from hpt.training.unsupported import check_run, refuse_unsupported


# Fields of TrainingArguments that can't change between a checkpoint and the run that resumes from it
OPTIMIZATION = (
    "learning_rate lr_scheduler_type warmup_steps num_train_epochs optim adam_beta1 adam_beta2 adam_epsilon "
    "max_grad_norm weight_decay seed mixed_precision"
).split()


@dataclass
class PretrainingConfig(TrainingArguments):
    """Settings of a small dual encoder's data, architecture and pretraining.

    They stand beside those of [`~transformers.TrainingArguments`].
    """

    train_dataset: str | None = field(
        default=None, metadata={"help": "Benchmark to train on, or NAME=PATH; digits unless any is given."}
    )
    train_datasets: list[str] = field(
        default_factory=list, metadata={"help": "Several instead, over the classes of all of them."}
    )
    dataset_weights: list[float] | None = field(
        default=None, metadata={"help": "Their shares of an epoch's images; by size unless given."}
    )
    batches: str | None = field(default=None, metadata={"help": "Of several sets: one_set (the default) or mixed."})
    validation_size: int = field(default=0, metadata={"help": "Training images held out, the same in every recipe."})
    max_train_samples: int | None = field(default=None, metadata={"help": "Use so many training images, of each set."})

    family: str = field(
        default="clip",
        metadata={
            "help": "clip (softmax loss), siglip (sigmoid loss, attention pooling) or vision_text_dual_encoder."
        },
    )
    vision_tower: str | None = field(
        default=None, metadata={"help": "Of a vision_text_dual_encoder: convnext, resnet or vit, beside a BERT."}
    )
    image_size: int = field(default=32, metadata={"help": "Side of the vision tower's input in pixels."})
    patch_size: int = field(default=8, metadata={"help": "Side of a patch in pixels."})
    vision_hidden_size: int = field(default=64, metadata={"help": "Width of the vision tower, at its end."})
    vision_layers: int = field(default=2, metadata={"help": "Depth of the vision tower, or of each of its stages."})
    vision_heads: int = field(default=2, metadata={"help": "Attention heads of the vision tower."})
    text_hidden_size: int = field(default=64, metadata={"help": "Width of the text tower."})
    text_layers: int = field(default=1, metadata={"help": "Depth of the text tower."})
    text_heads: int = field(default=2, metadata={"help": "Attention heads of the text tower."})
    projection_dim: int = field(
        default=64, metadata={"help": "Dimension of the common embedding; SigLIP's is as wide as its vision tower."}
    )
    caption_templates: list[str] = field(
        default_factory=lambda: [DEFAULT_TEMPLATE, "a picture of a {}", "{}"],
        metadata={"help": "Captions: templates that take a class name."},
    )
    augmentation: str = field(default="none", metadata={"help": "Of training images: none or crop_flip."})
    random_flip: bool = field(default=False, metadata={"help": "Mirror half of the training images."})
    random_shift: int = field(default=0, metadata={"help": "Shift training images by up to so many pixels."})
    overwrite: bool = field(
        default=False, metadata={"help": "Start anew: delete the model and checkpoints in output_dir."}
    )

    # Changed defaults
    learning_rate: float = field(default=1e-3, metadata={"help": "Peak learning rate of AdamW."})
    lr_scheduler_type: str = field(default="cosine", metadata={"help": "Learning-rate schedule."})
    warmup_steps: float = field(default=0.1, metadata={"help": "Warm-up steps, or below 1 their share."})
    weight_decay: float = field(default=0.05, metadata={"help": "Weight decay of AdamW."})
    per_device_train_batch_size: int = field(default=64, metadata={"help": "Batch size per device."})
    logging_steps: float = field(default=0.02, metadata={"help": "Between logs; below 1, a share of the run."})
    save_strategy: str = field(default="no", metadata={"help": "When to write checkpoints to resume from."})
    remove_unused_columns: bool = field(default=False, metadata={"help": "Kept False: batches are made here."})
    label_names: list[str] | None = field(
        default_factory=lambda: ["labels"], metadata={"help": "The keys of the labels in a batch."}
    )
    ddp_find_unused_parameters: bool | None = field(
        default=False, metadata={"help": "False: every parameter is used in each step."}
    )

    help_groups = {  # by their first fields
        "train_dataset": "Data",
        "family": "Architecture",
        "caption_templates": "Captions and images",
        "learning_rate": "Defaults that differ from transformers'",
    }

    def __post_init__(self):
        if self.push_to_hub:
            raise InputError("push_to_hub is for robust models: push a pretrained one by model.push_to_hub(name).")
        self.train_dataset = choose_sets(self.train_dataset, self.train_datasets, vars(self), "digits")
        check_known("family", self.family, PRETRAINED)
        check_templates(self.caption_templates)
        check_known("augmentation", self.augmentation, AUGMENTATIONS)
        if not 0 < self.learning_rate < math.inf:
            raise InputError(f"learning_rate is {self.learning_rate:g}, but must be above 0 and finite.")
        if self.image_size % self.patch_size:
            raise InputError(f"patch_size {self.patch_size} doesn't divide image_size {self.image_size}.")
        for tower in ("vision", "text"):
            size, heads = getattr(self, f"{tower}_hidden_size"), getattr(self, f"{tower}_heads")
            if size % heads:
                raise InputError(f"{tower}_heads {heads} doesn't divide {tower}_hidden_size {size}.")
        check_vision_tower(self)
        check_at_least(0, random_shift=self.random_shift)
        check_run(self)
        super().__post_init__()
        check_trackers(self.report_to)
        check_trains_together(self.world_size)
        refuse_unsupported(self)
        self.dataloader_pin_memory &= self.device.type != "cpu"  # which torch would warn of


def byte_tokenizer(max_length: int = 77, **settings) -> CLIPTokenizer:
    """CLIP's tokenizer with bytes for tokens: any text, no merges, 514 entries, nothing to download."""
    characters = sorted(ByteLevel.alphabet())
    entries = [*characters, *(f"{character}</w>" for character in characters), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(
        vocab={entry: index for index, entry in enumerate(entries)}, merges=[], model_max_length=max_length, **settings
    )


def build_clip(args: PretrainingConfig) -> tuple[CLIPModel, CLIPProcessor]:
    """A CLIP of the given architecture with random weights, and its processor."""
    tokenizer = byte_tokenizer()
    projection = {"projection_dim": args.projection_dim}
    vision, text = _tower_shapes(args, tokenizer)
    config = CLIPConfig(vision_config=vision | projection, text_config=text | projection, **projection)
    return CLIPModel(config), CLIPProcessor(_image_processor(args.image_size), tokenizer)


def _image_processor(side: int) -> CLIPImageProcessorPil:
    return CLIPImageProcessorPil(size={"shortest_edge": side}, crop_size={"height": side, "width": side})


def build_siglip(args: PretrainingConfig) -> tuple[SiglipModel, SiglipProcessor]:
    """A SigLIP of the given architecture with random weights, and its processor.

    Its common embedding is as wide as its vision tower. The scale starts at 10; the bias is set by
    [`ContrastiveTrainer`], which knows the data.
    """
    tokenizer = byte_tokenizer(64, model_input_names=["input_ids"])
    vision, text = _tower_shapes(args, tokenizer)
    text["projection_size"] = args.vision_hidden_size
    model = SiglipModel(SiglipConfig(vision_config=vision, text_config=text))
    with torch.no_grad():
        model.logit_scale.fill_(math.log(10))
    side = {"height": args.image_size, "width": args.image_size}
    return model, SiglipProcessor(SiglipImageProcessorPil(size=side), tokenizer)


def build_two_towers(args: PretrainingConfig) -> tuple[VisionTextDualEncoderModel, VisionTextDualEncoderProcessor]:
    """One of [`VISION_TOWERS`] and a BERT with random weights, and a processor that prepares both as CLIP's does."""
    tokenizer = byte_tokenizer()
    shape, text = _tower_shapes(args, tokenizer)
    text |= {"model_type": "bert", "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    vision = {"model_type": args.vision_tower} | VISION_TOWERS[args.vision_tower](shape)
    config = VisionTextDualEncoderConfig(vision_config=vision, text_config=text, projection_dim=args.projection_dim)
    processor = VisionTextDualEncoderProcessor(_image_processor(args.image_size), tokenizer)
    return VisionTextDualEncoderModel(config), processor


def _three_stages(shape: dict) -> dict:
    """The shape of a convolutional network whose stages have 1/4, 1/2 and all of the width at the end."""
    width, depth = shape["hidden_size"], shape["num_hidden_layers"]
    # `VisionTextDualEncoderModel` asks for `hidden_size`
    return {"hidden_size": width, "hidden_sizes": [width // 4, width // 2, width], "depths": [depth] * 3}


# By model type, vision towers that can stand beside a BERT: their configurations, from the shape of a transformer
VISION_TOWERS = {
    "convnext": lambda shape: _three_stages(shape) | {"num_stages": 3, "patch_size": shape["patch_size"]},
    "resnet": lambda shape: (
        _three_stages(shape) | {"layer_type": "basic", "embedding_size": shape["hidden_size"] // 4}
    ),
    "vit": lambda shape: shape,
}


def check_vision_tower(args: PretrainingConfig) -> None:
    """Refuse a tower that isn't known, one that the family doesn't choose, and stages that aren't whole."""
    if args.family != TWO_TOWERS:
        if args.vision_tower is not None:
            raise InputError(f"vision_tower is given, but only the family {TWO_TOWERS} has a choice of them.")
        return
    check_known("vision_tower", str(args.vision_tower), VISION_TOWERS)  # also none
    if args.vision_tower != "vit" and args.vision_hidden_size % 4:
        raise InputError(
            f"vision_hidden_size is {args.vision_hidden_size}, but must be a multiple of 4 for a {args.vision_tower}, "
            "whose first stage has a quarter of it."
        )


def _tower_shapes(args: PretrainingConfig, tokenizer: CLIPTokenizer) -> tuple[dict, dict]:
    """What the configurations of the vision and the text tower have in common over the families."""
    vision, text = (
        {
            "hidden_size": getattr(args, f"{tower}_hidden_size"),
            "intermediate_size": 4 * getattr(args, f"{tower}_hidden_size"),
            "num_hidden_layers": getattr(args, f"{tower}_layers"),
            "num_attention_heads": getattr(args, f"{tower}_heads"),
        }
        for tower in ("vision", "text")
    )
    vision |= {"image_size": args.image_size, "patch_size": args.patch_size}
    text |= {"vocab_size": len(tokenizer), "max_position_embeddings": tokenizer.model_max_length}
    text |= {"bos_token_id": tokenizer.bos_token_id, "pad_token_id": tokenizer.pad_token_id}
    text["eos_token_id"] = tokenizer.eos_token_id  # CLIP's default, 2, would pool at the largest token id
    return vision, text


def contrastive_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Symmetric contrastive loss in which all pairs of one class are positives (UniCL: Yang et al., 2022, Eq. 4-6).

    Args:
        logits (`torch.Tensor` of shape `(batch, batch)`): Scaled cosine of image `i` and caption `j`.
        labels (`torch.Tensor` of shape `(batch,)`): Class of each pair.
    """
    positives = (labels[:, None] == labels).to(logits.dtype)
    positives = positives / positives.sum(1, keepdim=True)
    return (F.cross_entropy(logits, positives) + F.cross_entropy(logits.T, positives)) / 2


def sigmoid_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Sigmoid loss (Zhai et al., 2023, Eq. 1) in which all pairs of one class are positives; arguments as above."""
    signs = 2 * (labels[:, None] == labels).to(logits.dtype) - 1
    return -F.logsigmoid(signs * logits).sum(1).mean()


def share_of_positives(labels: np.ndarray, batch_size: int) -> float:
    """Of all pairs of an image and a caption in batches, the share of one class; `labels` are those of an epoch."""
    batches = np.split(labels, range(batch_size, len(labels), batch_size))
    positives = sum(int(np.sum(batch[:, None] == batch)) for batch in batches)
    return positives / sum(len(batch) ** 2 for batch in batches)


@dataclass(frozen=True)
class Pretraining:
    """How a family is pretrained: what builds a model with random weights and its processor, and the loss."""

    build: Callable[[PretrainingConfig], tuple]
    loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


TWO_TOWERS = "vision_text_dual_encoder"
PRETRAINED = {
    "clip": Pretraining(build_clip, contrastive_loss),
    "siglip": Pretraining(build_siglip, sigmoid_loss),
    TWO_TOWERS: Pretraining(build_two_towers, contrastive_loss),
}


class ContrastiveTrainer(ResumableTrainer):
    """Trainer of a dual encoder on (image, caption) pairs, the captions drawn anew from templates in each step.

    A model with a bias, a SigLIP, begins at the log-odds of a positive pair in these data, as Zhai et al., 2023
    (section 3.2) begin at -10 for batches of many captions. With a larger bias, nearly all of the first gradients turn
    images and captions away from each other.

    Args:
        model, processor: as [`PRETRAINED`] builds them.
        args ([`PretrainingConfig`]): Settings.
        train_dataset ([`Benchmark`] or [`Mixture`]): Images and labels, or several sets of them.
    """

    loss_is_scaled_for_ga = False

    def __init__(self, model, processor, args: PretrainingConfig, train_dataset: Benchmark | Mixture):
        check_launch(args)
        augmentation, image_processor = make_augmentation(args), processor.image_processor
        if isinstance(train_dataset, Mixture):
            train_dataset = as_epochs(train_dataset, args, image_processor, augmentation=augmentation, over_union=True)
        else:
            train_dataset = replace(train_dataset.for_model(image_processor), augmentation=augmentation)
            check_images(train_dataset.dataset, train_dataset.name, same_size=train_dataset.is_native)
        check_batches(len(train_dataset), args)
        classifier = ZeroShotClassifier(model, processor, train_dataset.class_names, args.caption_templates)
        super().__init__(model, args, collate, train_dataset, callbacks=[LogitScaleCallback()])
        if augmentation is not None:
            self.add_callback(AugmentationCallback(augmentation, steps_over(len(train_dataset), args)))
        self.model_accepts_loss_kwargs = False
        self.classifier = classifier.to(args.device)
        if classifier.family.has_bias:
            share = share_of_positives(_labels_of_epoch(train_dataset), args.per_device_train_batch_size)
            torch.nn.init.constant_(model.logit_bias, torch.logit(torch.tensor(share), eps=1e-6))
        choose_attention(model, args.mixed_precision)
        self.captions = make_prompts(args.caption_templates, train_dataset.class_names)
        self.tokens = {name: ids.to(args.device) for name, ids in classifier.tokenize(self.captions).items()}

    def mathematics(self) -> dict:
        """See [`ResumableTrainer`]."""
        theirs = {setting.name for setting in fields(TrainingArguments)} | {*OF_THE_SETS, "overwrite"}
        own = [setting.name for setting in fields(PretrainingConfig) if setting.name not in theirs]
        return describe_training(self.args, own + OPTIMIZATION, self.train_dataset)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        images, labels = self.augment(to_unit_range(inputs["pixel_values"])), inputs["labels"]
        templates = torch.randint(len(self.args.caption_templates), labels.shape, device=labels.device)
        captions = templates * len(self.classifier.class_names) + labels
        with self.accelerator.autocast(), forward_redirected(self.model, self._logits):
            loss = PRETRAINED[self.args.family].loss(model(images, captions), labels)
        return (loss, {}) if return_outputs else loss

    def _logits(self, images: torch.Tensor, captions: torch.Tensor) -> torch.Tensor:
        """Logits `(batch, batch)` of images against captions, each different caption encoded once."""
        different, place = captions.unique(return_inverse=True)
        features = self.model.get_text_features(**{name: values[different] for name, values in self.tokens.items()})
        text_embeds = F.normalize(features.pooler_output.float(), dim=-1)[place]
        scaled = self.classifier.logit_scale() * self.classifier.image_embeds(images)
        return scaled @ text_embeds.T + self.classifier.logit_bias()

    def augment(self, images: torch.Tensor) -> torch.Tensor:
        """Mirror and shift a batch `(batch, 3, height, width)` at random, each image by itself."""
        if self.args.random_flip:
            mirrored = torch.rand(len(images), device=images.device) < 0.5
            images = torch.where(mirrored[:, None, None, None], images.flip(-1), images)
        if self.args.random_shift:
            pad, (height, width) = self.args.random_shift, images.shape[-2:]
            padded = F.pad(images, [pad] * 4)
            top, left = torch.randint(2 * pad + 1, (2, len(images), 1), device=images.device)
            rows, columns = (
                start + torch.arange(size, device=images.device) for start, size in ((top, height), (left, width))
            )
            image = torch.arange(len(images), device=images.device)
            images = padded[image[:, None, None], :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
        return images


def _labels_of_epoch(train_dataset: Benchmark | EpochMixture) -> np.ndarray:
    """The labels of an epoch's images, in an order that batches are cut from."""
    if isinstance(train_dataset, EpochMixture):
        return train_dataset.labels()
    return np.random.default_rng(0).permutation(train_dataset.dataset["label"][:])


def pretrain_missing(files: dict[str, str | None], recipe: dict, args: TrainingArguments, folder: Path) -> set[str]:
    """Pretrain the models of a recipe that YAML files make, unless they are there.

    Args:
        files (`dict[str, str]`): Of each field of the recipe that names a model, its YAML file, if it has one, with
            fields of [`PretrainingConfig`]. It makes the model if that is its `output_dir`.
        recipe (`dict`): The recipe's fields; its data are pretrained on.
        args ([`~transformers.TrainingArguments`]): Whose device and precision are taken: a process has but one.
        folder (`Path`): Where the files are.

    Returns:
        `set[str]`: the fields whose models the files make.
    """
    settings = {name: recipe[name] for name in (*OF_THE_SETS, "validation_size")}
    settings |= {name: getattr(args, name) for name in ("use_cpu", "bf16", "fp16")}
    settings |= {"train_dataset": recipe["train_dataset"] or ""}  # several sets take the place of the file's
    given = {name: value for name, value in settings.items() if value not in (None, [])}
    texts = {name: list(map(str, value if isinstance(value, list) else [value])) for name, value in given.items()}
    overrides = [part for name, values in texts.items() for part in (f"--{name}", *values)]
    made_by_files = set()
    for name, file in files.items():
        pretraining = parse_config((PretrainingConfig,), folder / file, overrides)[0] if file else None
        if pretraining is None or pretraining.output_dir != recipe[name]:
            continue
        made_by_files.add(name)
        if not is_finished(pretraining.output_dir):
            if args.process_index == 0:
                print(f"Pretraining {pretraining.output_dir}, kept for the next run")
            pretrain(pretraining)
    return made_by_files


def pretrain(args: PretrainingConfig) -> None:
    """Pretrain a small dual encoder into `args.output_dir`, from its last checkpoint there if it was cut off.

    The folder then loads with `AutoModel.from_pretrained` and `AutoProcessor.from_pretrained`. SIGTERM in training
    leaves a checkpoint, and after the last step the finished model.

    Raises:
        InputError: for data that can't be trained on, an optimizer or schedule that can't be made, or a folder that
            holds a finished model, unless `overwrite`, which deletes it only after all of these.
        NonFiniteError: when the weights become NaN or infinite.
    """
    with hold_together(args.output_dir):
        refuse_finished(args)
        if args.train_datasets:
            sets = (args.train_datasets, args.dataset_weights, args.batches)
            train_dataset, _ = load_mixture(*sets, args.validation_size, rows=args.max_train_samples)
        else:
            train_dataset, _ = load_training_data(args.train_dataset, args.validation_size)
            train_dataset = train_dataset.subset(args.max_train_samples)
        torch.manual_seed(args.seed)
        model, processor = PRETRAINED[args.family].build(args)
        trainer = ContrastiveTrainer(model, processor, args, train_dataset)
        trainer.try_optimizer(num_training_steps=1)  # as good as any to see that it can be made
        if args.overwrite:  # now that all else is known to be right
            on_main_process(lambda: delete_pretrained(args.output_dir))
        with signals_held():  # once the last step is done, there may be no checkpoint until the model is saved
            trainer.train(resume_from_checkpoint="last")
            if trainer.is_world_process_zero():
                save_finished(trainer.model, processor, args.output_dir)
            trainer.accelerator.wait_for_everyone()


def refuse_finished(args: PretrainingConfig) -> None:
    """Refuse to write over a model that is finished, unless that is meant."""
    if is_finished(args.output_dir) and not args.overwrite:
        raise InputError(
            f"{args.output_dir} has a finished model: give another output_dir, or --overwrite, which deletes what is "
            "there."
        )


def delete_pretrained(folder: str | Path) -> None:
    """Delete the checkpoints in a folder, and the mark by which its model is finished, whose files are replaced."""
    for checkpoint in Path(folder).glob("checkpoint-*"):
        shutil.rmtree(checkpoint, ignore_errors=True)
    (Path(folder) / "config.json").unlink(missing_ok=True)


def is_finished(folder: str | Path) -> bool:
    """Whether a folder holds a model that [`~hpt.models.loading.save_finished`] completed."""
    return (Path(folder) / "config.json").is_file()
