"""Checkpoints of open_clip, of OpenAI's CLIP and of robust vision towers, read from the disk or the Hub."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch


@dataclass(frozen=True)
class Checkpoint:
    """The weights of a CLIP with a ViT, named as in OpenAI's code, and what lies beside them.

    Args:
        source (`str`): The folder, file or `hf-hub:` id that it was read from, as given.
        layout (`str`): In words, how its weights were named, such as `"open_clip's, its text tower below text."`.
        weights (`dict[str, torch.Tensor]`): By OpenAI's names, in the types that the file keeps them in.
        config (`dict[str, Any]`, *optional*): What `open_clip_config.json` says; `None` of a lone state dict.
        sha256 (`dict[str, str]`): By name, the SHA-256 of each file that was read: 64 hexadecimal digits. The first
            is that of the weights.
        folder (`Path`, *optional*): Where its tokenizer's files are, if it has some.
        licence (`str`, *optional*): What its card says, such as `"mit"`.
        commit (`str`, *optional*): Its commit on the Hub.
    """

    source: str
    layout: str
    weights: dict[str, torch.Tensor]
    config: dict[str, Any] | None
    sha256: dict[str, str]
    folder: Path | None = None
    licence: str | None = None
    commit: str | None = None

    @property
    def is_vision_only(self) -> bool:
        """Whether it lacks a text tower."""
        return "token_embedding.weight" not in self.weights


def read_checkpoint(source: str, revision: str | None = None) -> Checkpoint:
    """Read a checkpoint; little is read of its weights but their hash where the file can be mapped into memory.

    Args:
        source (`str`): `hf-hub:OWNER/NAME`, of which only the files that are needed are downloaded; a folder with
            `open_clip_config.json`, with or without `local-dir:` before it; or a file `.pt`, `.pth`, `.bin` or
            `.safetensors` with a state dict of a CLIP or of its vision tower, whatever its names begin with.
        revision (`str`, *optional*): Branch, tag or commit on the Hub.

    Returns:
        [`Checkpoint`]: its names and shapes are those of a ViT CLIP, all there, and as its configuration says.

    Raises:
        InputError: for a source that isn't there or can't be reached, a file that holds more than tensors or is a
            program, and weights of no known layout, with missing or further parts, or of another architecture.
    """
    raise NotImplementedError
