"""Seconds and memory of training, attacks and loading at real size: ViT-B/32 and ViT-B/16, random weights, 224 pixels.

The published order of work encodes all prompts at every forward, padded to 77, calls `backward()` into all weights in
the attack, and runs the proxy with gradients. What is compared, both orders or several objectives, is timed in turn,
so that ratios hold on a noisy machine.
"""

import io
import resource
import statistics
import time
from collections import deque
from dataclasses import replace

import datasets
import numpy as np
import psutil
import torch
import torch.nn.functional as F
from PIL import Image
from torch.utils.data import DataLoader
from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, CLIPProcessor, TrainerCallback

from hpt.attacks import PGD
from hpt.data.benchmark import Benchmark
from hpt.data.images import collate, to_unit_range
from hpt.models.classifier import ZeroShotClassifier
from hpt.training.config import HPTConfig
from hpt.training.gpd import TRANSFER
from hpt.training.pretraining import byte_tokenizer
from hpt.training.sums import make_objective, parse_terms
from hpt.training.trainer import HPTTrainer


class StepTimes(TrainerCallback):
    """Seconds of each step, and the memory in use after it, in GiB."""

    def __init__(self):
        self.seconds, self.memory = [], []

    def on_step_begin(self, args, state, control, **kwargs):
        self.start = time.perf_counter()

    def on_step_end(self, args, state, control, **kwargs):
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.seconds.append(time.perf_counter() - self.start)
        self.memory.append(memory_in_use())


def memory_in_use() -> float:
    """GiB of GPU memory that tensors take, or of the process's memory without a GPU."""
    if torch.cuda.is_available():
        return torch.cuda.memory_allocated() / 2**30
    return psutil.Process().memory_info().rss / 2**30


def peak_memory() -> float:
    """The most GiB that were taken at once, of the GPU or of the process's memory."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def make_model(patch_size: int):
    """CLIP ViT-B with random weights, and its processor with a tokenizer that needs no download."""
    torch.manual_seed(patch_size)
    tokenizer = byte_tokenizer()
    text = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    model = CLIPModel(CLIPConfig(vision_config={"patch_size": patch_size}, text_config=text))
    return model, CLIPProcessor(CLIPImageProcessorPil(), tokenizer)


def make_trainer(
    train: Benchmark,
    *callbacks,
    batch_size: int,
    steps: int,
    precision: str = "float32",
    compiled: bool = False,
    **objective,
) -> HPTTrainer:
    """A trainer of the real size over a training set; `precision` is `"float32"`, `"bf16"` or `"fp16"`.

    What is said of the `objective` are fields of [`HPTConfig`].
    """
    target, processor = make_model(32)
    args = HPTConfig(
        output_dir="outputs/benchmark",
        **objective,
        per_device_train_batch_size=batch_size,
        max_steps=steps,
        warmup_steps=1,
        save_strategy="no",
        logging_strategy="no",
        bf16=precision == "bf16",
        fp16=precision == "fp16",
        torch_compile=compiled,
        use_cpu=not torch.cuda.is_available(),
    )
    return HPTTrainer(target, args, ZeroShotClassifier(*make_model(16)), processor, train, callbacks=[*callbacks])


def published_step(target, proxy, tokens, images, labels, args: HPTConfig) -> None:
    """HPT's step in the published order of work."""

    def logits(model, images):
        return model(pixel_values=images, **tokens).logits_per_image

    delta = torch.empty_like(images).uniform_(-args.attack_eps, args.attack_eps)
    for _ in range(args.attack_steps):
        delta.requires_grad_()
        F.cross_entropy(logits(target, images + delta), labels).backward()
        delta = (delta.detach() + args.attack_step_size * delta.grad.sign()).clamp(-args.attack_eps, args.attack_eps)
        delta = (images + delta).clamp(0, 1) - images
    teacher = logits(proxy, images + delta)
    student = logits(target, images + delta)
    F.kl_div(student.log_softmax(-1), teacher.softmax(-1), reduction="batchmean").backward()
    target.zero_grad()
    proxy.zero_grad()


def published_evaluation(target, tokens, images, labels, eps: float) -> torch.Tensor:
    """Verdicts under PGD-10 in the published order of work."""

    def logits(images):
        return target(pixel_values=images, **tokens).logits_per_image

    delta = torch.empty_like(images).uniform_(-eps, eps)
    for _ in range(10):
        delta.requires_grad_()
        F.cross_entropy(logits(images + delta), labels).backward()
        delta = (delta.detach() + eps / 4 * delta.grad.sign()).clamp(-eps, eps)
        delta = (images + delta).clamp(0, 1) - images
    target.zero_grad()
    with torch.no_grad():
        return logits(images + delta).argmax(-1) == labels


def our_evaluation(classifier, images, labels, eps: float) -> torch.Tensor:
    """The same as the evaluator computes it."""
    adversarial = PGD(eps=eps, steps=10)(classifier, images, labels)
    with torch.no_grad():
        return classifier(adversarial).argmax(-1) == labels


def few_classes(train: Benchmark, number: int, images: int) -> Benchmark:
    """So many images of the first classes."""
    rows = [row for row in range(len(train)) if train.dataset[row]["label"] < number][:images]
    names = train.class_names[:number]
    dataset = train.dataset.select(rows).cast_column("label", train.dataset.features["label"].__class__(names=names))
    return replace(train, dataset=dataset, class_names=names)


def timed(function, *inputs) -> float:
    """Seconds that a call takes."""
    start = time.perf_counter()
    function(*inputs)
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def compare_with_published(train: Benchmark, *, images: int, classes: int, rounds: int, **settings) -> None:
    """Print the ratio of the published time to ours, of a training step and of PGD-10, timed in turn.

    Args:
        train ([`Benchmark`]): Where images come from.
        images, classes (`int`): In a step.
        rounds (`int`): How often both are timed.
        settings: `precision` and `compiled`, as of [`make_trainer`].
    """
    few = few_classes(train, classes, 4 * images)
    trainer = make_trainer(few, batch_size=images, steps=2, **settings)
    trainer.train()  # warms up, and prepares the model
    batch = next(iter(DataLoader(trainer.train_dataset, images, collate_fn=collate)))
    batch = {name: values.to(trainer.args.device) for name, values in batch.items()}
    pixels, labels = to_unit_range(batch["pixel_values"]), batch["labels"]
    proxy, whole = (make_model(patch_size)[0].to(trainer.args.device) for patch_size in (16, 32))
    prompts = [f"This is a photo of a {name}" for name in few.class_names]
    tokens = trainer.processing_class.tokenizer(prompts, padding="max_length", return_tensors="pt").to(whole.device)
    model, processor = make_model(32)
    classifier = ZeroShotClassifier(model.to(trainer.args.device).eval(), processor, few.class_names)
    times = {"training step": [], "PGD-10 evaluation": []}
    for _ in range(rounds):
        ours = timed(trainer.training_step, trainer.model_wrapped, batch)
        published = timed(published_step, whole, proxy, tokens, pixels, labels, trainer.args)
        times["training step"].append((ours, published))
        attacked = (pixels, labels, trainer.args.attack_eps)
        ours = timed(our_evaluation, classifier, *attacked)
        times["PGD-10 evaluation"].append((ours, timed(published_evaluation, whole, tokens, *attacked)))
    for what, pairs in times.items():
        ratios = [published / ours for ours, published in pairs]
        speed = images / statistics.median(ours for ours, _ in pairs)
        print(
            f"{what}, {images} images and {len(prompts)} prompts: {speed:.2f} images/s; published "
            f"order of work / ours {statistics.median(ratios):.2f} [{min(ratios):.2f}-{max(ratios):.2f}] over "
            f"{len(ratios)} rounds"
        )


def compare_objectives(train: Benchmark, texts: list[str], *, images: int, classes: int, rounds: int, **settings):
    """Print steps per second of objectives, and their ratio to the first's, all timed in turn in one run.

    A step is the attack, the forward pass and the backward pass, without the optimizer's.

    Args:
        train ([`Benchmark`]): Where images come from.
        texts (`list[str]`): The objectives, as [`make_objective`] takes them.
        images, classes (`int`): In a step.
        rounds (`int`): How often each is timed.
        settings: `precision` and `compiled`, as of [`make_trainer`].
    """
    objectives = {text: make_objective(text) for text in texts}
    terms = dict.fromkeys(term for text in texts for term in parse_terms("objectives", text))
    whole = {"objective": " + ".join(terms), "anchor_epochs": 0}  # so that the trainer has what any of them needs
    trainer = make_trainer(few_classes(train, classes, 4 * images), batch_size=images, steps=2, **whole, **settings)
    trainer.train()  # warms up, and prepares the model
    batch = next(iter(DataLoader(trainer.train_dataset, images, collate_fn=collate)))
    batch = {name: values.to(trainer.args.device) for name, values in batch.items()}
    seconds = {text: [] for text in texts}
    for _ in range(rounds):
        for text, objective in objectives.items():
            trainer.objectives[TRANSFER] = objective
            seconds[text].append(timed(trainer.training_step, trainer.model_wrapped, batch))
    print(f"Steps per second, {images} images and {classes} classes, and their ratio to {texts[0]}, {rounds} rounds:")
    for text in texts:
        ratios = [first / took for first, took in zip(seconds[texts[0]], seconds[text], strict=True)]
        spread = f"{statistics.median(ratios):.2f} [{min(ratios):.2f}-{max(ratios):.2f}]"
        print(f"{text}: {1 / statistics.median(seconds[text]):.3f} steps/s, {spread}")


def decode_all(encoded: list[bytes], transform) -> None:
    """What loading can't do without: decode each image and turn it into a tensor."""
    for content in encoded:
        transform(Image.open(io.BytesIO(content)))


def time_steps(train: Benchmark, *, batch_size: int, steps: int, precision: str, compiled: bool) -> None:
    """Print seconds of the first and last training steps, peak memory, and the memory in use as the steps go on."""
    times = StepTimes()
    images = train.rows(np.arange(min(len(train), batch_size * (steps + 2))))
    settings = {"batch_size": batch_size, "steps": steps, "precision": precision, "compiled": compiled}
    trainer = make_trainer(images, times, **settings)
    trainer.train()
    first, last = ", ".join(f"{seconds:.2f}" for seconds in times.seconds[:3]), statistics.median(times.seconds[-10:])
    print(
        f"batch {batch_size}, {len(train.class_names)} classes, {trainer.args.device}, {precision}"
        f"{', compiled' if compiled else ''}, {torch.get_num_threads()} threads: {first} s for the first steps, "
        f"{last:.2f} s in the end; peak memory {peak_memory():.2f} GiB"
    )
    marks = sorted({min(mark, steps) for mark in (1, 10, 100, 200, 300, steps)})
    print("memory in use after step " + ", ".join(f"{mark}: {times.memory[mark - 1]:.3f} GiB" for mark in marks))


def time_loading(benchmark: Benchmark, batch_size: int, rounds: int) -> None:
    """Print images per second of a `DataLoader` over a benchmark, beside decoding and transforming alone."""
    benchmark = benchmark.for_model(CLIPImageProcessorPil())
    encoded = benchmark.dataset.cast_column("image", datasets.Image(decode=False))["image"]
    encoded = [image["bytes"] for image in encoded]
    speeds, number = {}, len(benchmark)
    settings = {"batch_size": batch_size, "collate_fn": collate}
    loaders = {"in the main process": DataLoader(benchmark, **settings)}
    for workers in (1, 2):
        loader = DataLoader(benchmark, **settings, num_workers=workers, persistent_workers=True)
        deque(loader, 0)  # starts the workers
        loaders[f"num_workers={workers}"] = loader
    for _ in range(rounds):
        seconds = timed(decode_all, encoded, benchmark.transform)
        speeds.setdefault("decoding and transforming alone", []).append((number / seconds, 1.0))
        for name, loader in loaders.items():
            took = timed(deque, loader, 0) * max(1, loader.num_workers)
            speeds.setdefault(f"DataLoader, {name}", []).append((number / took, seconds / took))
    print(f"{number} images of {benchmark.name} ({benchmark.split}), batches of {batch_size}, {rounds} rounds:")
    for what, pairs in speeds.items():
        speed, ratios = statistics.median(pair[0] for pair in pairs), [pair[1] for pair in pairs]
        print(
            f"{what}: {speed:.0f} images/s per process, {statistics.median(ratios):.2f} "
            f"[{min(ratios):.2f}-{max(ratios):.2f}] of the first"
        )
