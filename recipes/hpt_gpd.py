"""Fine-tune a vanilla CLIP by HPT-GPD against a frozen proxy, evaluate it, and save it.

    hpt train                                        # quickstart, on embedded digits
    hpt train --config cifar10 --train_dataset cifar10=PATH \
        --eval_datasets cifar10=PATH
    hpt train --config vit_b32_eps1     # the paper's setting, from the Hub

Fields of `Recipe` below and of `hpt.HPTConfig` stand in the YAML, or follow as `--field value`. quickstart.yaml is
read where neither a config nor a target, proxy or dataset is given; what differs from the defaults is printed. A run
that was cut off continues from its last checkpoint in `output_dir`.
"""

import shutil
import sys
from dataclasses import dataclass, field
from os.path import expanduser
from pathlib import Path

from hpt import PGD, HPTConfig, InputError, load_benchmark
from hpt.cli import parse_config, run_recipe
from hpt.data.mixtures import choose_sets
from hpt.data.names import as_recorded, expand_all
from hpt.data.sample_subsets import with_all_samples
from hpt.errors import check_at_least, check_known
from hpt.escaping import shell
from hpt.evaluation.outputs import report_comparison
from hpt.evaluation.subject import Subject
from hpt.hub.evaluations import add_comparison
from hpt.models.converted import check_model
from hpt.models.endpoints import ENDPOINTS
from hpt.models.families import plain_model
from hpt.models.loading import load_named
from hpt.models.lora import check_lora
from hpt.models.positions import check_image_size
from hpt.models.proxies import check_original, parse_proxies
from hpt.processes import hold_together, on_main_process, set_cpu_threads
from hpt.radius import Fraction, Radius
from hpt.references import IMAGE_SIZE, Reference
from hpt.training.config import DTYPES
from hpt.training.data_inputs import check_sets
from hpt.training.pretraining import pretrain_missing
from hpt.training.record import refuse_other_run
from hpt.training.run import (
    advise_on_precision,
    load_data,
    make_trainer,
    named_models,
    refer_to,
    train_and_save,
    without_original,
)


HERE = Path(__file__).parent
QUICKSTART = "quickstart"
PROXY = "openai/clip-vit-base-patch16"
# With any of these, the quickstart isn't meant
OWN = ("target", "proxy", "proxies", "train_dataset", "train_datasets", "eval_datasets")


@dataclass
class Recipe:
    """What is trained on what."""

    target: str = field(default="openai/clip-vit-base-patch32", metadata={"help": "Hub id or path of the target."})
    target_revision: str | None = field(default=None, metadata={"help": "Its branch, tag or commit."})
    image_size: int | None = field(
        default=None,
        metadata={"help": "Side of the target's images in pixels, if not its own; positions are resized."},
    )
    proxy: str | None = field(
        default=None,
        metadata={"help": f"Hub id or path of the proxy, or original, the target's vanilla copy; else {PROXY}."},
    )
    proxy_revision: str | None = field(default=None, metadata={"help": "Its branch, tag or commit."})
    proxies: list[str] = field(
        default_factory=list,
        metadata={"help": "Several instead, such as ID@REVISION NAME=PATH:template=TEMPLATE original."},
    )
    proxy_dtype: str = field(
        default="float32", metadata={"help": "What it runs in, whatever bf16 says: float32, bfloat16 or float16."}
    )
    lora_rank: int | None = field(default=None, metadata={"help": "Train LoRA adapters of this rank instead."})
    lora_alpha: float | None = field(default=None, metadata={"help": "Their scale; the rank unless given."})
    train_dataset: str | None = field(
        default=None, metadata={"help": "Benchmark, NAME=PATH, or any other; tiny_imagenet unless any is given."}
    )
    train_datasets: list[str] = field(
        default_factory=list, metadata={"help": "Several instead, each with its classes."}
    )
    dataset_weights: list[float] | None = field(
        default=None, metadata={"help": "Their shares of an epoch's images; by size unless given."}
    )
    batches: str | None = field(
        default=None, metadata={"help": "Of several sets: one_set in each step (the default), or mixed."}
    )
    eval_datasets: list[str] = field(
        default_factory=list, metadata={"help": "Benchmarks whose test split is reported; the training sets' if none."}
    )
    protocol: str = field(default="hpt", metadata={"help": "hpt or pmg: the resolution at which images are attacked."})
    validation_size: int = field(
        default=0, metadata={"help": "Training images held out to choose by, if there is no validation split."}
    )
    streaming: bool = field(
        default=False, metadata={"help": "Read the training set as it is used; needs steps_per_epoch."}
    )
    max_train_samples: int | None = field(default=None, metadata={"help": "Train on so many images, of each set."})
    max_eval_samples: int | None = field(default=None, metadata={"help": "Report on so many images, stratified."})
    pretrain_target: str | None = field(
        default=None,
        metadata={"help": "YAML beside the config that makes the target, if its output_dir is the target."},
    )
    pretrain_proxy: str | None = field(default=None, metadata={"help": "The same for the proxy."})
    proxy_eps: list[Fraction] | None = field(
        default=None, metadata={"help": "Radii at which the models are compared and drawn."}
    )
    cpu_threads: int | None = field(
        default=None,
        metadata={"help": "CPU threads, on which last digits depend; torch's own unless given."},
    )
    license: str | None = field(
        default=None, metadata={"help": "Of the trained weights, as the Hub spells it; the target's unless given."}
    )
    overwrite: bool = field(
        default=False, metadata={"help": "Start anew: delete the models and checkpoints in output_dir."}
    )

    def __post_init__(self):
        self.train_dataset = choose_sets(self.train_dataset, self.train_datasets, vars(self), "tiny_imagenet")
        self.train_dataset = self.train_dataset and as_recorded(self.train_dataset)  # others can't read a file
        self.train_datasets = list(map(as_recorded, self.train_datasets))
        trained_on = self.train_datasets or [self.train_dataset]
        self.eval_datasets = list(map(as_recorded, self.eval_datasets or map(with_all_samples, trained_on)))
        self.target = expanduser(self.target)
        self._check_proxies()
        self.proxy_eps = [Radius(eps) for eps in self.proxy_eps or []]
        check_known("proxy_dtype", self.proxy_dtype, DTYPES)
        check_at_least(0, validation_size=self.validation_size)
        for name in ("max_train_samples", "max_eval_samples"):
            if vars(self)[name] is not None:
                check_at_least(1, **{name: vars(self)[name]})
        if self.image_size is not None:
            check_image_size(self.image_size)
        if self.lora_rank is not None and self.image_size is not None:
            raise InputError(
                "image_size is given with lora_rank: adapters would be saved for a base of another size. Save the "
                "target at that size first, by hpt.models.positions, and give that as the target."
            )
        if self.lora_rank is not None:
            check_lora(self.lora_rank, self.lora_alpha)
        elif self.lora_alpha is not None:
            raise InputError("lora_alpha is given without lora_rank, which makes the adapters: give both, or neither.")
        if self.streaming and self.train_datasets:
            raise InputError("A mixture doesn't stream: leave streaming out, or train on one set.")
        if self.streaming and self.max_train_samples is not None:
            raise InputError("A stream isn't cut by max_train_samples: steps_per_epoch says how much an epoch reads.")

    def _check_proxies(self):
        given = [name for name in ("proxy", "proxy_revision", "pretrain_proxy") if vars(self)[name]]
        if self.proxies and given:
            unset = " ".join(f'--{name} ""' for name in given)
            raise InputError(
                f"proxies are given, and {' and '.join(given)} too: write all proxies into proxies, as ID@REVISION. "
                f"What a config says is taken back by {unset}."
            )
        if not self.proxies:
            self.proxy = expanduser(PROXY if self.proxy is None else self.proxy)
        for reference in self.proxy_references():  # which refuses what can't be meant
            check_original(reference)

    def proxy_references(self) -> list[Reference]:
        """The proxies by name; the only one, which has none, is called proxy."""
        if self.proxies:
            return parse_proxies(self.proxies)
        return [refer_to(self.proxy, self.proxy_revision, "proxy")]

    def target_reference(self) -> Reference:
        """The vanilla target, at the size that it is trained at."""
        size = {} if self.image_size is None else {IMAGE_SIZE: str(self.image_size)}
        return refer_to(self.target, self.target_revision, "vanilla", **size)


def main():
    recipe, args, config = parse_config((Recipe, HPTConfig), default_config(), folder=HERE, announce=True)
    with hold_together(args.output_dir):
        run(recipe, args, config)


def run(recipe: Recipe, args: HPTConfig, config: Path | None) -> None:
    """Train, save, evaluate and publish, while no other run works in `output_dir`."""
    output = Path(args.output_dir)
    set_cpu_threads(recipe.cpu_threads)
    if args.process_index == 0 and (advice := advise_on_precision(recipe, args)):
        print(advice)
    files = {"target": recipe.pretrain_target, "proxy": recipe.pretrain_proxy}
    for name, models in named_models(recipe, args).items():
        for model in models if files[name] is None else []:
            check_model(model)
    if not recipe.overwrite:
        refuse_other_run(output / "robust", args, vars(recipe))

    # Data
    benchmarks = expand_all(recipe.eval_datasets)
    train, validation = load_data(recipe, args)
    tests = [load_benchmark(name, protocol=recipe.protocol).subset(recipe.max_eval_samples) for name in benchmarks]
    check_sets(train, validation, tests, args)

    # Train and save
    pretrained = pretrain_missing(files, vars(recipe), args, config.parent if config else HERE)
    trainer = make_trainer(recipe, args, train, validation)
    trainer.recipe |= {f"pretrain_{name}": None for name in files if name not in pretrained}
    trainer.try_optimizer(trainer.schedule.num_epochs * trainer.schedule.steps_per_epoch)
    if recipe.overwrite:  # now that all else is known to be right
        on_main_process(lambda: delete_run(output, recipe))
    folders = train_and_save(trainer)
    if not trainer.is_world_process_zero():
        return

    # Evaluate what lies on the disk
    subjects = load_subjects(recipe, args)
    attack = PGD(eps=args.attack_eps, step_size=args.attack_step_size, steps=args.eval_attack_steps, seed=args.seed)
    loader = {"batch_size": args.per_device_eval_batch_size, "num_workers": args.dataloader_num_workers}
    rows = report_comparison(subjects, tests, attack, recipe.proxy_eps, output, **loader)
    add_comparison(folders, rows, subjects[-1], tests[0])
    command = evaluate_command(recipe, args)
    architecture = type(plain_model(trainer.model)).__name__
    print_next_steps(output, architecture, command, config == HERE / f"{QUICKSTART}.yaml")

    # Publish
    if args.push_to_hub:
        info = trainer.push_to_hub(folder=folders[-1])
        print(f"Pushed to {info.repo_url}")


def default_config() -> str | None:
    """The quickstart, unless the command line names models or data of its own."""
    given = {argument[2:].partition("=")[0].replace("-", "_") for argument in sys.argv if argument.startswith("--")}
    return None if given & set(OWN) else QUICKSTART


def delete_run(output: Path, recipe: Recipe) -> None:
    """Delete the models and checkpoints that a run has left in a folder."""
    folders = [output / "robust", output / "adapter", output / ENDPOINTS, *output.glob("checkpoint-*")]
    for model in (recipe.target_reference(), *without_original(recipe.proxy_references())):
        if Path(model.source).resolve() in [folder.resolve() for folder in folders]:
            raise InputError(f"--overwrite would delete {model.source}, which the run needs: give another output_dir.")
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)


def load_subjects(recipe: Recipe, args: HPTConfig) -> list[Subject]:
    """The vanilla target, the proxies if the run had some, and the robust target, by what tables call them."""
    models = {"vanilla target": recipe.target_reference()}
    for reference in without_original(recipe.proxy_references()) if args.needs_proxy else []:
        models[f"proxy {reference.name}" if recipe.proxies else "proxy"] = reference
    models["robust target"] = Reference("robust", f"{args.output_dir}/robust")
    return [Subject(load_named(model, args.device)[1], name) for name, model in models.items()]


def evaluate_command(recipe: Recipe, args: HPTConfig) -> str:
    """What attacks this run's models by stronger attacks, on what it was tested on."""
    if args.output_dir == "outputs/quickstart":
        return "hpt evaluate"  # whose own settings those are
    command = ["hpt", "evaluate", "--models", str(recipe.target_reference()), f"robust={args.output_dir}/robust"]
    command += ["--benchmarks", *recipe.eval_datasets, "--attacks", "pgd:steps=50", "cw", "apgd"]
    command += ["--eps", str(Radius(args.attack_eps)), "--output_dir", f"{args.output_dir}/evaluation"]
    if recipe.max_eval_samples is not None:
        command += ["--max_samples", str(recipe.max_eval_samples)]
    if recipe.protocol != "hpt":
        command += ["--protocol", recipe.protocol]
    return " ".join(map(shell, command))


def print_next_steps(output: Path, architecture: str, command: str, is_quickstart: bool) -> None:
    """Where everything lies, and what to do with it."""
    robust, pictures = str(output / "robust"), sorted(file.name for file in output.glob("*.png"))
    print(f"Robust model: {robust}, with a model card")
    print(f"Loaded by {architecture}.from_pretrained({robust!r})")
    print(f"Results: {output}/results.json")
    print(f"Pictures: {', '.join(pictures)}")
    print(f"Stronger attacks than PGD: {command}")
    if is_quickstart:
        print("The real thing: hpt train --config vit_b32_eps1")


if __name__ == "__main__":
    run_recipe(main)
