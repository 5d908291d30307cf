"""Fine-tune a vanilla CLIP by HPT-GPD against a frozen proxy, evaluate it, and save it.

    accelerate launch recipes/hpt_gpd.py                                        # quickstart, on embedded digits
    accelerate launch recipes/hpt_gpd.py --config recipes/cifar10.yaml --train_dataset cifar10=PATH \
        --eval_datasets cifar10=PATH
    accelerate launch recipes/hpt_gpd.py --config recipes/vit_b32_eps1.yaml     # the paper's setting, from the Hub

Fields of `Recipe` below and of `hpt.HPTConfig` stand in the YAML, or follow as `--field value`. A run that was cut
off continues from its last checkpoint in `output_dir`.
"""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch

from hpt import PGD, HPTConfig, HPTTrainer, InputError, load_benchmark, load_proxy
from hpt.cli import parse_config, run_recipe
from hpt.data.benchmark import StreamingBenchmark
from hpt.data.images import check_images
from hpt.data.loading import load_training_data
from hpt.data.names import expand_all
from hpt.data.streams import check_workers
from hpt.evaluation.comparison import compare_models, measure
from hpt.evaluation.figures import draw_accuracy_bars, draw_accuracy_over_eps
from hpt.evaluation.processor_check import compare_with_processor
from hpt.evaluation.report import format_table
from hpt.evaluation.rows import hash_benchmark
from hpt.evaluation.subject import Subject
from hpt.hub.card import add_evaluation
from hpt.hub.folder import write_agreement
from hpt.models.loading import load_dual_encoder, save_finished
from hpt.models.lora import add_lora, check_lora, merged
from hpt.radius import Fraction, Radius
from hpt.training.config import DTYPES
from hpt.training.pretraining import PretrainingConfig, is_finished, pretrain


HERE = Path(__file__).parent


@dataclass
class Recipe:
    """What is trained on what."""

    target: str = field(default="openai/clip-vit-base-patch32", metadata={"help": "Hub id or path of the target."})
    target_revision: str | None = field(default=None, metadata={"help": "Its branch, tag or commit."})
    proxy: str = field(default="openai/clip-vit-base-patch16", metadata={"help": "Hub id or path of the proxy."})
    proxy_revision: str | None = field(default=None, metadata={"help": "Its branch, tag or commit."})
    proxy_dtype: str = field(default="float32", metadata={"help": "What it runs in: float32, bfloat16 or float16."})
    lora_rank: int | None = field(default=None, metadata={"help": "Train LoRA adapters of this rank instead."})
    lora_alpha: float | None = field(default=None, metadata={"help": "Their scale; the rank unless given."})
    train_dataset: str = field(default="tiny_imagenet", metadata={"help": "Benchmark, NAME=PATH, or any other."})
    eval_datasets: list[str] = field(
        default_factory=lambda: ["tiny_imagenet"], metadata={"help": "Benchmarks whose test split is reported."}
    )
    protocol: str = field(default="hpt", metadata={"help": "hpt or pmg: the resolution at which images are attacked."})
    validation_size: int = field(
        default=0, metadata={"help": "Training images held out to choose by, if there is no validation split."}
    )
    streaming: bool = field(
        default=False, metadata={"help": "Read the training set as it is used; needs steps_per_epoch."}
    )
    max_train_samples: int | None = field(default=None, metadata={"help": "Train on so many images."})
    max_eval_samples: int | None = field(default=None, metadata={"help": "Report on so many images, stratified."})
    pretrain_target: str | None = field(
        default=None,
        metadata={"help": "YAML beside the config that makes the target, if its output_dir is the target."},
    )
    pretrain_proxy: str | None = field(default=None, metadata={"help": "The same for the proxy."})
    proxy_eps: list[Fraction] | None = field(
        default=None, metadata={"help": "Radii at which the models are compared and drawn."}
    )
    license: str | None = field(
        default=None, metadata={"help": "Of the trained weights, as the Hub spells it; the target's unless given."}
    )

    def __post_init__(self):
        self.proxy_eps = self.proxy_eps and [Radius(eps) for eps in self.proxy_eps]


def main():
    recipe, args, config = parse_config((Recipe, HPTConfig), HERE / "quickstart.yaml")
    output = Path(args.output_dir)

    # Data
    check_recipe(recipe)
    train, validation = load_training_data(
        recipe.train_dataset, recipe.validation_size, recipe.protocol, recipe.streaming
    )
    train = train if recipe.streaming else train.subset(recipe.max_train_samples)
    args.schedule(None if recipe.streaming else len(train))  # refuses what doesn't fit, before anything takes long
    tests = [
        load_benchmark(text, protocol=recipe.protocol).subset(recipe.max_eval_samples)
        for text in expand_all(recipe.eval_datasets)
    ]
    check_data(train, validation, tests, args)

    # Models
    made = pretrainings(recipe, args, Path(config).parent)
    for pretraining in made.values():
        if not is_finished(pretraining.output_dir):
            if args.process_index == 0:
                print(f"Pretraining {pretraining.output_dir}, kept for the next run")
            pretrain(pretraining)
    target, processor = load_dual_encoder(recipe.target, recipe.target_revision)
    if recipe.lora_rank is not None:
        target = add_lora(target, recipe.lora_rank, recipe.lora_alpha, args.trainable, args.seed)
    proxy = load_proxy(recipe.proxy, recipe.proxy_revision, getattr(torch, recipe.proxy_dtype))

    # Train
    trainer = HPTTrainer(
        model=target,
        args=args,
        proxy=proxy,
        processing_class=processor,
        train_dataset=train,
        eval_dataset=validation,
    )
    trainer.recipe = vars(recipe) | {name: None for name in ("pretrain_target", "pretrain_proxy") if name not in made}
    trainer.train(resume_from_checkpoint=args.resume_from_checkpoint or "last")
    if trainer.is_world_process_zero():
        finished = {"robust": trainer.model if recipe.lora_rank is None else merged(trainer.model)}
        finished |= {} if recipe.lora_rank is None else {"adapter": trainer.model}
        for name, model in finished.items():
            save_finished(model, processor, output / name)
            trainer.describe(output / name)
        trainer.state.save_to_json(output / "trainer_state.json")
        trainer.draw_figures(output)
        report(recipe, args, tests, [output / name for name in finished])
        if args.push_to_hub:
            info = trainer.push_to_hub(folder=output / list(finished)[-1])
            print(f"Pushed to {info.repo_url}")


def check_recipe(recipe: Recipe) -> None:
    """Refuse what can't be meant, before anything is loaded."""
    if recipe.proxy_dtype not in DTYPES:
        raise InputError(f"Unknown proxy_dtype {recipe.proxy_dtype!r}; known: {', '.join(DTYPES)}.")
    if recipe.lora_rank is not None:
        check_lora(recipe.lora_rank, recipe.lora_alpha)
    elif recipe.lora_alpha is not None:
        raise InputError("lora_alpha is given without lora_rank, which makes the adapters: give both, or neither.")
    if recipe.streaming and recipe.max_train_samples is not None:
        raise InputError("A stream isn't cut by max_train_samples: steps_per_epoch says how much an epoch reads.")


def check_data(train, validation, tests: list, args: HPTConfig) -> None:
    """Refuse images that can't be used, tests on training images, and evaluations in training without images."""
    for test in tests:
        if (test.name, test.split) == (train.name, train.split):
            raise InputError(f"{test.name} would be tested on its training images ({test.split}): give another split.")
        check_images(test.dataset, test.name, same_size=test.attack_space == "native")
    if isinstance(train, StreamingBenchmark):
        check_workers(train, args.dataloader_num_workers)
    if validation is None and args.eval_strategy != "no":
        hint = "" if isinstance(train, StreamingBenchmark) else "--validation_size N, or "
        raise InputError(
            f"{train.name} has no validation images to evaluate on in training: give {hint}--eval_strategy no."
        )


def pretrainings(recipe: Recipe, args: HPTConfig, folder: Path) -> dict[str, PretrainingConfig]:
    """How the target and the proxy are pretrained, by the recipe's field, as far as their YAML files make them."""
    overrides = ["--train_dataset", recipe.train_dataset, "--validation_size", str(recipe.validation_size)]
    for name in ("use_cpu", "bf16", "fp16"):  # one process has one device and one precision
        overrides += [f"--{name}", str(getattr(args, name))]
    made = {}
    for field_name, model in (("pretrain_target", recipe.target), ("pretrain_proxy", recipe.proxy)):
        if file := getattr(recipe, field_name):
            how = parse_config((PretrainingConfig,), folder / file, overrides)[0]
            made |= {field_name: how} if model == how.output_dir else {}
    return made


def report(recipe: Recipe, args: HPTConfig, tests: list, finished: list[Path]):
    """Measure the models as they lie on disk; write `results.json`, cards and pictures, and print the table."""
    output, robust, rows = Path(args.output_dir), finished[0], []
    vanilla, proxy = load_proxy(recipe.target, recipe.target_revision), load_proxy(recipe.proxy, recipe.proxy_revision)
    models = {"vanilla target": vanilla, "proxy": proxy, "robust target": load_proxy(str(robust))}
    models = {name: Subject(model.to(args.device), name) for name, model in models.items()}
    vanilla, proxy, robust_target = models.values()
    pgd = {"steps": args.eval_attack_steps, "seed": args.seed}
    attack = PGD(eps=args.attack_eps, step_size=args.attack_step_size, **pgd)
    loader = {"batch_size": args.per_device_eval_batch_size, "num_workers": args.dataloader_num_workers}
    for test in tests:
        settings = loader | {"samples": hash_benchmark(test)}
        table = compare_models(models.values(), test, attack, **settings)
        title = f"{test.name} {test.split}, n = {len(test)}, l_inf eps = {attack.radius}"
        print(f"\n{title}: accuracy in %, with its 95 % interval\n\n{format_table(table)}\n")
        curve, own = [], []
        for eps in recipe.proxy_eps or []:
            weaker = PGD(eps=eps, **pgd)
            curve += measure([vanilla, proxy], test, weaker, vanilla.name, **settings)
            own += measure([robust_target], test, weaker, robust_target.name, **settings)
        rows += table + curve + own
        (output / "results.json").write_text(json.dumps([asdict(row) for row in rows], indent=1), encoding="utf-8")
        draw_accuracy_bars(table, title, output / f"accuracy_{test.name}.png")
        if curve:
            curve += [row for row in table if row.attacked is None and row.model != robust_target.name]
            where = f"{test.name} {test.split}, n = {len(test)}, {attack.label}"
            title = f"Images made against the vanilla target ({where})"
            draw_accuracy_over_eps(curve, title, output / f"proxy_robustness_{test.name}.png")
    agreement = compare_with_processor(robust_target.classifier, tests[0])
    for folder in finished:
        write_agreement(folder, agreement)
        add_evaluation(folder, rows, robust_target.weights)
    print(f"Robust model: {robust}, with a model card, loaded by CLIPModel.from_pretrained({str(robust)!r})")
    print(
        f"Results and pictures: {output}/results.json, {', '.join(sorted(file.name for file in output.glob('*.png')))}"
    )
    print("Stronger attacks than PGD: accelerate launch recipes/evaluate.py (--help for other models and benchmarks)")
    print("The real thing: accelerate launch recipes/hpt_gpd.py --config recipes/vit_b32_eps1.yaml")


if __name__ == "__main__":
    run_recipe(main)
