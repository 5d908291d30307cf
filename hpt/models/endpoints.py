"""What a run keeps of the ends of its stages, in `OUTPUT_DIR/endpoints/`, for the dial of `hpt.models.interpolation`.

average.safetensors  the anchor stage's average, to which the transfer stage is pulled
anchor.safetensors   the anchor stage's last weights, before the restart
final.safetensors    the weights that the run ends with
endpoints.json       what they are of, with the hash of the vanilla weights and of what is in each file
base_path.txt        where the vanilla model lies on this machine, if it isn't on the Hub

Only what training changes is in them, named as in a plain model, with adapters merged: the rest is the vanilla
model's. A run without an anchor stage has only the final weights.
"""

import copy
import json
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import nn

from hpt.errors import InputError, did_you_mean_path
from hpt.files import write_file
from hpt.json_files import check_whole, parse_file, sealed, unsealed
from hpt.models.families import plain_model
from hpt.models.interpolation import Endpoints
from hpt.models.sources import BASE_FILE
from hpt.models.weights import BELOW_ADAPTER, hash_weights, without_adapters


ENDPOINTS, INDEX = "endpoints", "endpoints.json"
AVERAGE, ANCHOR_END, FINAL = "average", "anchor", "final"
KINDS = {
    "vanilla_weights": str,
    "target": dict,
    "schedule": dict,
    "objective": str | None,
    "anchor_objective": str | None,
    "run": str,
    "names": list[str],
    "weights": dict[str, str],
}
REMEDY = "train again with save_endpoints, or give --vanilla and --final"


# Collecting


@torch.no_grad()
def collect_endpoint(model: nn.Module, weights: dict[str, torch.Tensor] | None = None) -> dict[str, torch.Tensor]:
    """What training changes of a model, on the CPU: weights that train, with adapters merged, and buffers.

    Args:
        model (`PreTrainedModel` or `PeftModel`): The target.
        weights (`dict[str, torch.Tensor]`, *optional*): Trained parameters that stand in for its own, such as an
            average of them.
    """
    names, model = _changed_names(model), copy.deepcopy(model)
    parameters = dict(model.named_parameters())
    for name, weight in (weights or {}).items():
        parameters[name].copy_(weight)
    state = (model.merge_and_unload() if hasattr(model, "peft_config") else model).state_dict()
    return {name: state[name].to("cpu", copy=True).contiguous() for name in names}


def _changed_names(model: nn.Module) -> list[str]:
    """The names in a plain model of weights that train or have an adapter, and of buffers, sorted."""
    tensors = plain_model(model).state_dict(keep_vars=True)
    adapted = {BELOW_ADAPTER.sub("", name) for name in tensors if BELOW_ADAPTER.search(name)}
    return sorted(
        name
        for name, tensor in without_adapters(tensors).items()
        if name in adapted or tensor.requires_grad or not isinstance(tensor, nn.Parameter)
    )


# Files


def write_endpoints(run: Path, endpoints: dict[str, dict[str, torch.Tensor]], about: dict, vanilla: str) -> set[str]:
    """Write endpoints of a run, one or several; those that are there of the same run stay.

    Each file is whole or as it was before, and the index is written after all of them.

    Args:
        run (`Path`): The run's `output_dir`.
        endpoints (`dict[str, dict[str, torch.Tensor]]`): From [`collect_endpoint`], by name.
        about (`dict`): What they are of, as [`KINDS`] has it, but for their names and hashes.
        vanilla (`str`): Path of the vanilla model, or an empty text for one on the Hub.

    Returns:
        `set[str]`: the names of all endpoints that are there now.

    Raises:
        WriteFailed: if they can't be written.
    """
    folder = run / ENDPOINTS
    kept = _hashes_of_run(folder / INDEX, about["run"])
    for name, tensors in endpoints.items():
        write_file(folder / f"{name}.safetensors", save(tensors))
    if vanilla:
        write_file(folder / BASE_FILE, str(Path(vanilla).resolve()))
    hashes = kept | {name: hash_weights(tensors) for name, tensors in endpoints.items()}
    index = about | {"names": sorted(next(iter(endpoints.values()))), "weights": hashes}
    write_file(folder / INDEX, json.dumps(sealed(index), indent=1))
    return set(hashes)


def _hashes_of_run(index: Path, run: str) -> dict[str, str]:
    """The hashes in an index, if it is there and of this run."""
    try:
        there = read_index(index.parent.parent)
    except InputError:
        return {}
    return there["weights"] if there["run"] == run else {}


def read_index(run: Path) -> dict:
    """What `endpoints.json` of a run says, without its digest.

    Raises:
        InputError: if there is none, or it was damaged.
    """
    index = run / ENDPOINTS / INDEX
    if not run.is_dir():
        raise InputError(f"There is no folder {str(run)!r}{did_you_mean_path(str(run))}")
    if not index.is_file():
        raise InputError(f"{run} has no endpoints ({ENDPOINTS}/{INDEX}): {REMEDY}.")
    return parse_file(index.read_bytes(), index, _parse_index, REMEDY)


def _parse_index(value: object) -> dict:
    index = unsealed(value)
    check_whole(index, KINDS)
    return index


def find_path_of_vanilla(run: Path) -> str | None:
    """Where the vanilla model of a run lay on this machine; `None` for one on the Hub, or that was in memory."""
    noted = run / ENDPOINTS / BASE_FILE
    return noted.read_text(encoding="utf-8") if noted.is_file() else None


def read_endpoints(run: Path, vanilla: dict[str, torch.Tensor]) -> Endpoints:
    """The final weights and the anchor stage's average that a run has kept, for points between them and vanilla.

    Args:
        run (`Path`): The run's `output_dir`.
        vanilla (`dict[str, torch.Tensor]`): All weights of the model that training began with.

    Raises:
        InputError: if there are none, the run didn't come to its end, they were damaged, or training began with other
            weights.
    """
    index = read_index(run)
    if FINAL not in index["weights"]:
        raise InputError(f"The run in {run} has no final weights yet: let it come to its end.")
    if (here := hash_weights(vanilla)) != index["vanilla_weights"]:
        raise InputError(
            f"The run in {run} began with other weights (hash {index['vanilla_weights']}) than those of the vanilla "
            f"model that is given ({here}): give the one that it was trained from, as --vanilla."
        )
    average = _read(run, AVERAGE, index) if AVERAGE in index["weights"] else None
    return Endpoints(vanilla, _read(run, FINAL, index), average)


def _read(run: Path, name: str, index: dict) -> dict[str, torch.Tensor]:
    file = run / ENDPOINTS / f"{name}.safetensors"
    if not file.is_file():
        raise InputError(f"{file} is missing: {REMEDY}.")
    try:
        tensors = load_file(file)
    except SafetensorError as error:
        raise InputError(f"{file} is damaged ({error}): {REMEDY}.") from error
    if hash_weights(tensors) != index["weights"][name]:
        raise InputError(f"{file} isn't what {INDEX} is of: it was altered, or is of another run: {REMEDY}.")
    return tensors
