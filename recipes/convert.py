"""Convert checkpoints of open_clip and OpenAI's format to transformers, with the same logits, or write for open_clip.

    hpt convert hf-hub:laion/CLIP-ViT-B-32-laion2B-s34B-b79K --output_dir outputs/laion
    hpt convert fare_eps_4.pt --base openai/clip-vit-large-patch14 --output_dir outputs/fare4 --benchmark cifar10
    hpt convert outputs/quickstart/robust --to openclip --output_dir outputs/for_open_clip

The first is the source: `hf-hub:OWNER/NAME`, a folder with open_clip_config.json, or a file with a state dict (`.pt`,
`.safetensors`). What its files don't say is taken from `--base`, or from the options that say it, and never guessed.
Nothing is written unless the logits of the two agree, and nothing into a folder that holds anything.
"""

import sys
from dataclasses import dataclass, field, fields
from pathlib import Path

from hpt import InputError
from hpt.cli import parse_config, run_recipe
from hpt.data.benchmark import Benchmark
from hpt.data.loading import load_benchmark
from hpt.data.names import parse_benchmark
from hpt.errors import check_at_least, check_known
from hpt.evaluation.activation_check import compare_activations
from hpt.files import INCOMPLETE, check_folder
from hpt.hub.conversion import save_conversion, save_for_open_clip
from hpt.hub.origin import describe_unknown, write_value
from hpt.locks import LOCK_FILE, hold_folder
from hpt.models.conversion import convert
from hpt.models.conversion.options import ConversionOptions
from hpt.models.converted import check_options, describe_conversion, read_parts
from hpt.models.files import find_license
from hpt.models.loading import load_dual_encoder
from hpt.models.origin import describe_parity, name_source
from hpt.models.sources import check_source, is_checkpoint
from hpt.processes import join_processes
from hpt.references import Reference


TRANSFORMERS, OPEN_CLIP = FORMATS = ("transformers", "openclip")


@dataclass
class Conversion:
    """What is converted, and what is said of it."""

    source: str = field(
        metadata={"help": "hf-hub:OWNER/NAME[@REVISION], a folder or a file; stands without --source."}
    )
    output_dir: str = field(metadata={"help": "Folder for the model, its processor and its card, empty or new."})
    to: str = field(default=TRANSFORMERS, metadata={"help": "transformers or openclip."})
    base: str | None = field(
        default=None, metadata={"help": "Hub id or path of a CLIP that says the rest, and has the text tower."}
    )
    activation: str | None = field(default=None, metadata={"help": "gelu or quick_gelu."})
    heads: int | None = field(default=None, metadata={"help": "Attention heads of the vision tower."})
    text_heads: int | None = field(default=None, metadata={"help": "Attention heads of the text tower."})
    image_mean: list[float] | None = field(default=None, metadata={"help": "Of [0, 1] pixels: three numbers."})
    image_std: list[float] | None = field(default=None, metadata={"help": "Of [0, 1] pixels: three numbers."})
    tokenizer: str | None = field(default=None, metadata={"help": "Hub id or path of the text tower's tokenizer."})
    benchmark: str | None = field(
        default=None, metadata={"help": "Measure clean accuracy on it, which a wrong activation costs."}
    )
    max_samples: int | None = field(default=None, metadata={"help": "On so many of its samples, stratified."})
    batch_size: int = field(default=64, metadata={"help": "Samples per batch."})
    num_workers: int = field(default=0, metadata={"help": "Processes that decode images."})
    use_cpu: bool = field(default=False, metadata={"help": "Leave a GPU alone."})
    license: str | None = field(
        default=None, metadata={"help": "Of the weights, as the Hub spells it; the source's unless given."}
    )

    def __post_init__(self):
        check_known("format (--to)", self.to, FORMATS)
        check_at_least(1, batch_size=self.batch_size, max_samples=1 if self.max_samples is None else self.max_samples)
        check_at_least(0, num_workers=self.num_workers)
        if self.max_samples is not None and self.benchmark is None:
            raise InputError("--max_samples says how many samples of --benchmark are measured: give one.")
        said = {option.name: getattr(self, option.name) for option in fields(ConversionOptions)}
        self.options = ConversionOptions(
            **{name: tuple(value) if isinstance(value, list) else value for name, value in said.items()}
        )


def main():
    sys.argv[0] += " SOURCE"  # for the usage line
    (settings, _) = parse_config((Conversion,), argv=with_option(sys.argv[1:]))
    source, output = Reference.parse(settings.source), Path(settings.output_dir)
    check(settings, source)
    with hold_folder(output):
        refuse_filled(output)
        if is_checkpoint(source.source):
            convert_checkpoint(settings, source, output)
        else:
            write_for_open_clip(settings, source, output)


def with_option(arguments: list[str]) -> list[str]:
    """The arguments with `--source` before the source, where it stands first without."""
    return ["--source", *arguments] if arguments and not arguments[0].startswith("-") else arguments


def check(settings: Conversion, source: Reference) -> None:
    """Refuse what can't be meant, before anything is read."""
    check_folder(Path(settings.output_dir))
    if source.settings:
        raise InputError(
            f"{settings.source!r} sets {next(iter(source.settings))}: give it as an option, such as --base ID."
        )
    check_source(source.source)
    source.check_revision()
    if not is_checkpoint(source.source) and settings.to == TRANSFORMERS:
        raise InputError(
            f"{source.source} is in the format of transformers already, which every command takes: there is nothing "
            "to convert. --to openclip writes it for open_clip; of a folder that holds both formats, local-dir:FOLDER "
            "stands for what is open_clip's."
        )
    if not is_checkpoint(source.source) and settings.benchmark is not None:
        raise InputError(
            f"--benchmark measures what is converted to transformers: of {source.source}, `hpt evaluate`."
        )
    check_options(source.source, settings.options)


def refuse_filled(folder: Path) -> None:
    """Refuse a folder that holds anything but what a killed conversion may have left."""
    if there := sorted({file.name for file in folder.glob("*")} - {LOCK_FILE, INCOMPLETE}):
        listed = ", ".join(there[:3]) + ", ..." * (len(there) > 3)
        raise InputError(f"{folder} isn't empty, but has {listed}: give another output_dir.")


def convert_checkpoint(settings: Conversion, source: Reference, output: Path) -> None:
    """Convert a checkpoint of another format, compare both, and save what came out."""
    # Read and convert
    benchmark = load(settings)
    parts = read_parts(source.source, source.revision, settings.options, load_dual_encoder)
    converted = convert(parts.checkpoint, parts.base, parts.stated)
    record = describe_conversion(parts, converted)
    record["license"] = settings.license or record["license"]
    print_conversion(record)

    # Measure
    rows = []
    if benchmark is not None:
        converted.model.to(join_processes(settings.use_cpu).device)
        loader = {"batch_size": settings.batch_size, "num_workers": settings.num_workers}
        row, record["accuracy"] = compare_activations(
            converted.model, converted.processor, benchmark, parts.checkpoint.is_vision_only, **loader
        )
        rows.append(row)
        converted.model.cpu()
    print(describe_unknown(record))

    # Save
    if settings.to == OPEN_CLIP:
        model, processor = converted.model, converted.processor
        parity = save_for_open_clip(output, model, processor, record["source"], record["license"], record)
        return print_saved_for_open_clip(output, parity)
    save_conversion(output, converted, record, rows)
    print(f"Saved in {output}, with a model card\nLoaded by CLIPModel.from_pretrained({str(output)!r})")


def load(settings: Conversion) -> Benchmark | None:
    """The images on which accuracy is measured, if it is."""
    if settings.benchmark is None:
        return None
    return load_benchmark(parse_benchmark(settings.benchmark)).subset(settings.max_samples)


def print_conversion(record: dict) -> None:
    """What was read, what was taken from where, and how the logits compare."""
    print(f"{name_source(record)}, names of weights: {record['layout']}")
    for name, sha256 in record["sha256"].items():
        print(f"  {name}, SHA-256 {sha256}")
    for fact in record["facts"]:
        print(f"  {fact['name']:<20}{write_value(fact['value'])} ({fact['source']})")
    print(f"Compared: {describe_parity(record['parity'])}.")


def write_for_open_clip(settings: Conversion, source: Reference, output: Path) -> None:
    """Write a CLIP of transformers as open_clip loads it."""
    model, processor = load_dual_encoder(source.source, source.revision)
    license = settings.license or find_license(source.source, source.revision)
    origin = Path(source.source).resolve().name if Path(source.source).is_dir() else source.place
    print_saved_for_open_clip(output, save_for_open_clip(output, model, processor, origin, license))


def print_saved_for_open_clip(output: Path, parity: str) -> None:
    print(f"Compared: {parity}.\nSaved in {output}, with a model card")
    print(f"Loaded by open_clip.create_model_from_pretrained({f'local-dir:{output}'!r})")


if __name__ == "__main__":
    run_recipe(main)
