"""A robust vision tower in a vision-language model, and a white-box attack on what that model says.

    python examples/robust_vlm.py                                  # the quickstart's models
    python examples/robust_vlm.py --vlm llava-hf/llava-1.5-7b-hf --robust robust=PATH --benchmark cifar10=PATH

Without `--vlm`, the model is a LLaVA of random weights around the vanilla CLIP's tower. PGD changes pixels in [0, 1],
and follows the loss of the language model through the processor's normalisation. Untargeted, it raises the loss of
what the model says of the clean image. Targeted, it lowers the loss of a text. The table has that loss in nats per
token, the share of these tokens that greedy decoding gives, and by how much of their length the image's features move.
"""

import copy
import time
from dataclasses import dataclass, field
from functools import partial

import torch
from tokenizers.pre_tokenizers import ByteLevel
from torch.utils.data import DataLoader
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    GPT2Tokenizer,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
)

from hpt import PGD, InputError, load_benchmark
from hpt.benchmarking.usage import peak_memory
from hpt.cli import check_quickstart, parse_config, run_recipe
from hpt.data.images import collate, to_unit_range
from hpt.errors import explain_hub_error
from hpt.evaluation.report import markdown_table
from hpt.models.loading import load_named
from hpt.models.vlm import NO_TOKEN, PromptedVLM, swap_vision_tower
from hpt.radius import Fraction
from hpt.references import Reference, parse_model


DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
HEADER = ["vision tower", "attack", "loss", "tokens said in %", "loss, attacked", "tokens said in %, attacked"]
HEADER += ["features move by", "seconds"]


@dataclass
class RobustVLM:
    vlm: str | None = field(default=None, metadata={"help": "LLaVA 1.5, a path or Hub id; of random weights if none."})
    vanilla: str = field(default="outputs/quickstart/target", metadata={"help": "CLIP of the random LLaVA's tower."})
    robust: str = field(default="outputs/quickstart/robust", metadata={"help": "Robust CLIP whose tower is put in."})
    benchmark: str = field(default="digits", metadata={"help": "Benchmark, NAME=PATH, or any other."})
    max_samples: int = field(default=20, metadata={"help": "Attack so many images, all at once."})
    eps: Fraction = field(default="16/255", metadata={"help": "l_inf radius in [0, 1] pixels."})
    steps: int = field(default=100, metadata={"help": "Steps of PGD."})
    prompt: str = field(default="USER: <image>\nWhat is this? ASSISTANT:", metadata={"help": "What is asked."})
    target: str = field(default="a dog", metadata={"help": "What the targeted attack wants as an answer."})

    def __post_init__(self):
        if not self.target.strip():
            raise InputError("target is empty, but must be a text that the targeted attack wants as an answer.")


def build_llava(vanilla: Reference) -> tuple[LlavaForConditionalGeneration, LlavaProcessor]:
    """A LLaVA of random weights around the tower of a CLIP, and its processor; its tokens are bytes."""
    _, clip = load_named(vanilla, "cpu")
    vision = clip.model.config.vision_config
    vocab = {entry: index for index, entry in enumerate([*sorted(ByteLevel.alphabet()), "<|endoftext|>", "<image>"])}
    tokenizer = GPT2Tokenizer(vocab=vocab, merges=[], extra_special_tokens={"image_token": "<image>"})
    text = {"model_type": "llama", "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 4}
    text |= {"num_attention_heads": 4, "initializer_range": 128**-0.5, "vocab_size": len(vocab)}
    text |= dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), tokenizer.eos_token_id)
    config = LlavaConfig(
        vision_config=vision.to_dict(),
        text_config=text,
        image_token_index=vocab["<image>"],
        image_seq_length=(vision.image_size // vision.patch_size) ** 2,
    )
    processor = LlavaProcessor(
        clip.processor.image_processor,
        tokenizer,
        patch_size=vision.patch_size,
        vision_feature_select_strategy=config.vision_feature_select_strategy,
        num_additional_image_tokens=1,  # the class token
    )
    torch.manual_seed(0)
    return swap_vision_tower(LlavaForConditionalGeneration(config), clip, processor=processor), processor


def load_llava(name: str) -> tuple[LlavaForConditionalGeneration, LlavaProcessor]:
    """A saved LLaVA and its processor; not in float16, in which small gradients of pixels would become 0."""
    dtype = torch.bfloat16 if DEVICE == "cuda" else torch.float32
    load = partial(AutoModelForImageTextToText.from_pretrained, use_safetensors=True, dtype=dtype)
    try:
        return [part(name, trust_remote_code=False) for part in (load, AutoProcessor.from_pretrained)]
    except (OSError, ValueError) as error:
        raise explain_hub_error("model", name, error) from error


def measure(attack: PGD, prompted: PromptedVLM, images: torch.Tensor, answers: torch.Tensor) -> list[str]:
    """The numbers of a line of the table, for answers `(batch, length)`."""
    start, samples = time.perf_counter(), torch.arange(len(images))
    attacked = attack(partial(prompted.losses, answers=answers), images, torch.zeros_like(samples), samples)
    numbers = []
    for seen in (images, attacked):
        with torch.no_grad():
            numbers.append(f"{prompted.losses(seen, answers).mean():.2f}")
        said = prompted.decode(seen, answers.shape[1]) == answers
        numbers.append(f"{100 * said[answers != NO_TOKEN].float().mean():.1f}")
    clean, moved = prompted.features(images), prompted.features(attacked)
    distance = (moved - clean).norm(dim=-1) / clean.norm(dim=-1)
    return [*numbers, f"{distance.mean():.2f}", f"{time.perf_counter() - start:.0f}"]


def main():
    settings, _ = parse_config((RobustVLM,))
    vanilla, robust = (parse_model(text, loaded=True) for text in (settings.vanilla, settings.robust))
    check_quickstart([vanilla, robust] if settings.vlm is None else [robust])
    raise_loss = PGD(eps=settings.eps, steps=settings.steps, loss=lambda losses, labels: losses)
    lower_loss = PGD(eps=settings.eps, steps=settings.steps, loss=lambda losses, labels: -losses)
    benchmark = load_benchmark(settings.benchmark).subset(settings.max_samples)
    batch = next(iter(DataLoader(benchmark, len(benchmark), collate_fn=collate)))
    images = to_unit_range(batch["pixel_values"].to(DEVICE))
    vlm, processor = build_llava(vanilla) if settings.vlm is None else load_llava(settings.vlm)
    prompted = PromptedVLM(vlm.to(DEVICE).eval().requires_grad_(False), processor, settings.prompt)
    target = processor.tokenizer(settings.target, add_special_tokens=False, return_tensors="pt")["input_ids"]
    target = target.to(DEVICE).expand(len(images), -1)

    towers = {"its own": copy.deepcopy(vlm.model.vision_tower), "robust": load_named(robust, DEVICE)[1]}
    features = []
    for tower in towers.values():  # before the attacks, which take long: what doesn't fit is refused here
        swap_vision_tower(vlm, tower, processor=processor)
        features.append(prompted.features(images).float())
    cosine = torch.cosine_similarity(*features, dim=-1).mean()
    print(f"Features of {len(images)} clean images before and after the swap: mean cosine {cosine:.3f}\n")

    lines = [HEADER]
    for name, tower in towers.items():
        swap_vision_tower(vlm, tower, processor=processor)
        said = prompted.decode(images, max_tokens=10)
        lines.append([name, "untargeted", *measure(raise_loss, prompted, images, said)])
        lines.append([name, "targeted", *measure(lower_loss, prompted, images, target)])
    print(markdown_table(lines))
    print(f"\n{raise_loss.label} at {raise_loss.radius} on {DEVICE}: peak memory {peak_memory(DEVICE):.2f} GiB")


if __name__ == "__main__":
    run_recipe(main)
