"""CLIPs of other formats as models of transformers, and back: what a checkpoint doesn't say is asked for, not guessed.

    checkpoint = read_checkpoint("hf-hub:OWNER/NAME")  # a folder of open_clip or a state dict, .pt or .safetensors
    converted = convert(checkpoint, base=Base("openai/clip-vit-large-patch14", model, processor))
    converted.model, converted.processor, converted.facts, converted.parity
    write_open_clip(converted.model, converted.processor, "outputs/for_open_clip")

Each conversion ends with a comparison of the logits of the same images and prompts, through the source's own
arithmetic (`parity`) and through the model of transformers. It can't find a wrong activation, number of heads or pixel
statistic, which both sides take from the same place: so each of these facts says where it comes from.
"""

from hpt.models.conversion.facts import Base, Fact, Stated
from hpt.models.conversion.knowledge import NOT_COMPARED
from hpt.models.conversion.open_clip_folder import write_open_clip
from hpt.models.conversion.parity import Parity
from hpt.models.conversion.sources import Checkpoint, read_checkpoint
from hpt.models.conversion.to_transformers import Converted, convert


__all__ = [
    "NOT_COMPARED",
    "Base",
    "Checkpoint",
    "Converted",
    "Fact",
    "Parity",
    "Stated",
    "convert",
    "read_checkpoint",
    "write_open_clip",
]
