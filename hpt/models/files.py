"""What the files of a model say and hold, read before transformers builds anything from them.

Nothing is believed: a configuration can ask for code of its own, or for more than any file holds.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook
from transformers import CONFIG_MAPPING
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, cached_file

from hpt.errors import InputError, did_you_mean
from hpt.files import read_text
from hpt.json_files import parse_file
from hpt.yaml_files import split_card


CONFIG, AUTO_MAP, CARD = "config.json", "auto_map", "README.md"
# What transformers reads to find out which classes to make
SETTINGS = (CONFIG, "processor_config.json", "preprocessor_config.json", "tokenizer_config.json")
MORE, MORE_NUMBERS = 1000, 10**8  # weights that a model may lack, and the numbers in them: 0.4 GB
FLOATS = ("F64", "F32", "F16", "BF16")  # what safetensors calls the types that weights are kept in


def find_file(name: str, file: str, revision: str | None) -> Path | None:
    """A model's file in a folder, or from the Hub; `None` if it has none of that name."""
    path = cached_file(name, file, revision=revision, _raise_exceptions_for_missing_entries=False)
    return path and Path(path)


def find_license(name: str, revision: str | None) -> str | None:
    """The license that a model's card states, in its folder or on the Hub; a card that can't be read states none."""
    try:
        card = find_file(name, CARD, revision)
        stated = card and split_card(read_text(card), str(card))[0].get("license")
    except (OSError, InputError):
        return None
    return stated if isinstance(stated, str) else None


def read_json(path: Path) -> dict:
    """The object that a file of JSON holds.

    Raises:
        InputError: if it isn't one.
    """
    return parse_file(path.read_bytes(), path, _as_object, "take a complete copy")


def _as_object(content: object) -> dict:
    if not isinstance(content, dict):
        raise ValueError("it must hold values by name, in {}")
    return content


def read_settings(name: str, revision: str | None) -> dict[str, dict]:
    """By file name, the settings of a model and its processor, as far as the files are there; see [`read_json`]."""
    paths = {file: find_file(name, file, revision) for file in SETTINGS}
    return {file: read_json(path) for file, path in paths.items() if path}


def own_code(settings: dict[str, dict]) -> str | None:
    """The first file that asks for Python code that comes with the model, with what it asks for, if one does."""
    return next((f"{file} ({asked})" for file, content in settings.items() for asked in _asked_code(content)), None)


def _asked_code(content) -> Iterator[str]:
    if isinstance(content, dict):
        if content.get(AUTO_MAP):
            yield f"{AUTO_MAP} {json.dumps(content[AUTO_MAP]):.150}"
        for value in content.values():
            yield from _asked_code(value)


def drop_own_code(folder: Path) -> None:
    """Let saved settings ask for no code: what a model was made from may, and whoever loads it could allow that."""
    for file in SETTINGS:
        if (folder / file).is_file():
            content = json.loads((folder / file).read_text(encoding="utf-8"))
            if any(_asked_code(content)):
                text = json.dumps(_without_code(content), indent=2, sort_keys=True)
                (folder / file).write_text(text + "\n", encoding="utf-8")


def _without_code(content):
    if not isinstance(content, dict):
        return content
    return {key: _without_code(value) for key, value in content.items() if key != AUTO_MAP}


def refuse_own_code(kind: str, name: str, code: str) -> InputError:
    """To be raised where a model can't be loaded without the code from [`own_code`]."""
    return InputError(
        f"Can't load the {kind} {name!r}: its {code} asks for Python code of its own, which hpt never runs. Take a "
        "model whose classes transformers has."
    )


def check_model_type(name: str, settings: dict[str, dict]) -> None:
    """Refuse the configuration of a model that transformers hasn't, that is quantised, or that needs a kernel."""
    model_type = settings[CONFIG].get("model_type")
    if not isinstance(model_type, str) or model_type not in CONFIG_MAPPING:
        if code := own_code(settings):
            raise refuse_own_code("model", name, code)
        near = did_you_mean(model_type[:100], CONFIG_MAPPING) if isinstance(model_type, str) else "."
        raise InputError(
            f"Can't load the model {name!r}: its config.json has the model_type {model_type!r:.100}, which "
            f"transformers doesn't have in this version{near}"
        )
    if settings[CONFIG].get("quantization_config"):
        raise InputError(f"Can't load the model {name!r}: it is quantised. Give one with plain weights.")
    if kernel := next(_kernels(settings[CONFIG]), None):
        raise InputError(
            f"Can't load the model {name!r}: its config.json asks for {kernel}, which can be code from the Hub and "
            "never runs. Remove that from it."
        )


def _kernels(config: dict) -> Iterator[str]:
    """What a configuration asks for as attention that isn't transformers' own."""
    for key, value in config.items():
        if key in ("attn_implementation", "_attn_implementation") and value not in (None, "eager", "sdpa"):
            yield f"{key} {value!r:.100}"
        elif isinstance(value, dict):
            yield from _kernels(value)


@dataclass
class WeightHeaders:
    """What a model's files of weights hold, by their headers: the type and the size of each tensor by its name."""

    dtypes: dict[str, str]
    sizes: dict[str, int]

    @classmethod
    def by(cls, files: list[Path]) -> "WeightHeaders":
        """What files hold together."""
        headers = cls({}, {})
        for path in files:
            with safe_open(path, framework="pt") as file:
                for key in file.keys():
                    tensor = file.get_slice(key)
                    headers.dtypes[key] = tensor.get_dtype()
                    headers.sizes[key] = torch.Size(tensor.get_shape()).numel()
        return headers

    @contextmanager
    def bounding(self, name: str):
        """Within, a model that would need far more weights than are held is refused while it is being built.

        It is built without memory for its weights at first. But a million layers take hours even so, and what no file
        holds would be made up, however much it is. Little more is left to [`~hpt.models.weights.check_complete`],
        which names what is missing.
        """
        most, built = (2 * len(self.sizes) + MORE, 2 * sum(self.sizes.values()) + MORE_NUMBERS), [0, 0]

        def count(module: nn.Module, parameter_name: str, parameter: nn.Parameter | None) -> None:
            if parameter is not None and parameter.is_meta:
                built[0] += 1
                built[1] += parameter.numel()
                if built[0] > most[0] or built[1] > most[1]:
                    raise InputError(
                        f"Can't load the model {name!r}: its config.json describes more weights than its files hold, "
                        f"which is {sum(self.sizes.values())} numbers in {len(self.sizes)} weights. Take a complete "
                        "copy."
                    )

        hook = register_module_parameter_registration_hook(count)
        try:
            yield
        finally:
            hook.remove()

    def check_types(self, name: str, weights: dict[str, torch.Tensor]) -> None:
        """Refuse weights that are kept as other than floating-point numbers."""
        floats = {key for key, weight in weights.items() if weight.is_floating_point()}
        if odd := sorted(key for key in floats & self.dtypes.keys() if self.dtypes[key] not in FLOATS):
            raise InputError(
                f"Can't load the model {name!r}: {odd[0]} is kept as {self.dtypes[odd[0]]}, but weights must be of "
                f"{', '.join(FLOATS)}."
            )


def read_weight_headers(name: str, revision: str | None) -> WeightHeaders | None:
    """What a model's files of weights hold; `None` where the Hub has to find or to make such files first."""
    if single := find_file(name, SAFE_WEIGHTS_NAME, revision):
        return WeightHeaders.by([single])
    index = find_file(name, SAFE_WEIGHTS_INDEX_NAME, revision)
    return index and WeightHeaders.by([find_shard(name, shard, revision) for shard in shard_names(index)])


def shard_names(index: Path) -> list[str]:
    """The files over which an index says that a model's weights are spread.

    Raises:
        InputError: if it says none, or one that isn't beside it.
    """
    places = read_json(index).get("weight_map")
    if not isinstance(places, dict) or not places:
        raise InputError(f"{index} is damaged: its weight_map must name the file of each weight.")
    for shard in places.values():
        if not isinstance(shard, str) or Path(shard).name != shard or not shard.endswith(".safetensors"):
            raise InputError(f"{index} is damaged: {shard!r:.100} is no file of weights beside it.")
    return sorted(set(places.values()))


def find_shard(name: str, shard: str, revision: str | None) -> Path:
    """A file of some of a model's weights; [`InputError`] if it isn't there."""
    if path := find_file(name, shard, revision):
        return path
    raise InputError(f"Can't load the model {name!r}: its file {shard} is missing. Take a complete copy.")
