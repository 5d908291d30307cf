"""`ModelFolder`: a folder with a model, and what hpt writes beside it. Only here are those files read and written.

training.json         what the run was, from which the card is written
run.yaml              settings that start it again, for `recipes/hpt_gpd.py --config`
evaluation.jsonl      a row for each accuracy that was measured on these weights, or on the vanilla model's
processor_check.json  how far the saved processor is from what was measured
interpolation.json    of a point between vanilla and trained weights, which it is, and why it was chosen
conversion.json       of a model that was converted, from what, and what was taken from where
README.md             the model card
figures/              training curves, accuracy over eps, and the dial that a point was chosen on
"""

import hashlib
import json
from collections.abc import Callable, Iterable
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from shlex import quote

import yaml

from hpt.errors import InputError, did_you_mean_path
from hpt.escaping import file_name
from hpt.evaluation.dial_report import parse_choice
from hpt.evaluation.processor_check import parse_agreement
from hpt.evaluation.results import parse_row
from hpt.evaluation.rows import Row
from hpt.files import as_text, read_blocks, refuse_large, write_file
from hpt.hub.run_check import parse_run
from hpt.json_files import DIGEST, as_line, check_kinds, parse_file, parse_json, parse_lines, sealed
from hpt.models.origin import CONVERSION_FILE, parse_conversion
from hpt.models.sources import BASE_FILE, OPEN_CLIP_CONFIG


TRAINING_FILE, RUN_FILE, EVALUATION_FILE = "training.json", "run.yaml", "evaluation.jsonl"
AGREEMENT_FILE, CHOICE_FILE, CARD_FILE = "processor_check.json", "interpolation.json", "README.md"
CONFIG_FILE, ADAPTER_FILE = "config.json", "adapter_config.json"
WEIGHTS = ("model.safetensors", "model-?????-of-?????.safetensors", "adapter_model.safetensors")
FIGURES, CURVES, DIAL = "figures", "training_curves.png", "dial.png"

# Fields of a recipe that name models and data, which `run.yaml` has without their local folders
MODELS = ("target", "proxy")
MAY_BE_LOCAL = (*MODELS, "proxies", "train_dataset", "train_datasets", "eval_datasets")


class ModelFolder:
    """A model's folder, of which each file is read once, when it is first asked for; what is written replaces it.

    Args:
        path (`str` or `Path`): Where model and processor are saved. The weights stay what they are from here on: of a
            folder that is saved into again, another `ModelFolder` is made.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self._contents: dict[str, bytes | None] = {}
        self._values: dict = {}

    def __str__(self) -> str:
        return str(self.path)

    @classmethod
    def of_run(cls, run: Path, *, merged: bool = False, evaluated: bool = False, unfinished: bool = False):
        """What is published of a run: its adapter or model, or the folder itself that a model was saved in.

        Args:
            run (`Path`): The output_dir of recipes/hpt_gpd.py, or the folder of a model.
            merged (`bool`): Of a LoRA run, the merged model instead of the adapter.
            evaluated (`bool`): Take a model that hpt didn't train too.
            unfinished (`bool`): Take a run that stopped before its last step too.

        Raises:
            InputError: if it isn't a finished run.
        """
        names = ["robust", "adapter"] if merged else ["adapter", "robust"]
        paths = [run, *(run / name for name in names)]
        described = (TRAINING_FILE, CHOICE_FILE, CONVERSION_FILE)
        paths = [path for path in paths if any((path / name).is_file() for name in described)]
        if not paths and evaluated and (run / CONFIG_FILE).is_file():
            return cls(run)
        if not paths and not run.is_dir():
            raise InputError(f"There is no folder {str(run)!r}{did_you_mean_path(str(run))}")
        if not paths and (run / OPEN_CLIP_CONFIG).is_file():
            raise InputError(
                f"{run} holds a model of open_clip, which isn't published by hpt: push it as it is, with its card, by "
                f"hf upload OWNER/NAME {quote(str(run))}."
            )
        if not paths:
            raise InputError(
                f"{run} isn't a finished run: neither it nor its robust/ has a {TRAINING_FILE}, which "
                "recipes/hpt_gpd.py and HPTTrainer write beside a model. A model that hpt only measured needs "
                "--evaluations."
            )
        folder = cls(paths[0])
        if folder.is_unfinished and not unfinished:
            raise InputError(
                f"{folder} isn't a finished run: it stopped after step {folder.run['step']} of {folder.run['steps']}. "
                "With --unfinished True it is published as what it is."
            )
        return folder

    # The model

    @property
    def is_adapter(self) -> bool:
        """Whether the weights are those of a PEFT adapter."""
        return self.text(ADAPTER_FILE) is not None

    @property
    def model(self) -> dict:
        """The model's `architecture` and `image_size`, and of a run all else that is recorded of its target."""
        return self.run["target"] if self.run else self._parsed(CONFIG_FILE, _parse_config)

    @cached_property
    def saved_weights(self) -> str:
        """16 hexadecimal digits that stand for the files that hold the weights."""
        state = hashlib.sha256()
        for file in self._weight_files:
            state.update(file.name.encode())
            for block in read_blocks(file):
                state.update(block)
        return state.hexdigest()[:16]

    @property
    def _weight_files(self) -> list[Path]:
        return sorted(file for pattern in WEIGHTS for file in self.path.glob(pattern))

    def weights_on_disk(self) -> dict[str, tuple[int, ...]]:
        """For each file of weights, what is another number once it is replaced or written to."""
        states = {file.name: file.lstat() for file in self._weight_files}
        return {name: (state.st_ino, state.st_size, state.st_ctime_ns) for name, state in states.items()}

    @property
    def evaluated_path(self) -> Path:
        """Where the model lies that an evaluation measures: of an adapter, the merged model beside it."""
        return self.path.parent / "robust" if self.is_adapter else self.path

    # The run

    @property
    def run(self) -> dict | None:
        """What the run was, as [`write_run`] wrote it, or `None` for a model that hpt didn't train.

        Raises:
            InputError: if it was damaged.
        """
        return self._parsed(TRAINING_FILE, _parse_run)

    @property
    def is_unfinished(self) -> bool:
        """Whether the model is of a run that hadn't come to its last step."""
        return self.run is not None and self.run["step"] < self.run["steps"]

    @property
    def has_weights_of_run(self) -> bool:
        """Whether the weights are those that the run is of; not if there is none, or it can't be read."""
        try:
            return self.run is not None and self.run["weights"] == self.saved_weights
        except InputError:
            return False

    def write_run(self, record: dict) -> None:
        """Write `training.json` and `run.yaml` beside the model that is saved here.

        What was measured on other weights that were here before is deleted. The adapters of a PEFT model name their
        base from here on as others may know it, and not by a local path, which is kept in a file of its own.
        """
        if self.is_adapter:
            self._name_base(record["target"])
        if not self.has_weights_of_run:
            self._delete_measurements()
        self._write(TRAINING_FILE, json.dumps(sealed(record | {"weights": self.saved_weights}), indent=1))
        settings = yaml.safe_dump(record["settings"], sort_keys=False, allow_unicode=True)
        note = "# PATH stands for folders of the machine that it ran on.\n" if "PATH/" in settings else ""
        self._write(RUN_FILE, note + settings)

    def _delete_measurements(self) -> None:
        """Delete what was measured on other weights that were here, and where those came from."""
        pictures = (f"{FIGURES}/{name}" for name in (*self.robustness_pictures, DIAL))
        for name in (EVALUATION_FILE, AGREEMENT_FILE, CHOICE_FILE, CONVERSION_FILE, *pictures):
            self._delete(name)

    def _name_base(self, target: dict) -> None:
        config = json.loads(self.text(ADAPTER_FILE))
        before = config["base_model_name_or_path"]
        if target["hub_id"] is not None:
            self._delete(BASE_FILE)
        elif before and before != target["name"]:
            self._write(BASE_FILE, str(Path(before).resolve()))
        config |= {"base_model_name_or_path": target["name"], "revision": target["revision"]}
        self._write(ADAPTER_FILE, json.dumps(config, indent=2, sort_keys=True))

    # What was measured

    @property
    def rows(self) -> list[Row]:
        """The rows that were added, of this model and of the vanilla one."""
        return self._parsed(EVALUATION_FILE, _parse_rows) or []

    def add_rows(self, rows: Iterable[Row], weights: set[str | None]) -> None:
        """Add rows from [`publish_rows`] to those that are here; one measured again replaces the old one.

        `weights` has the hashes of the model's weights and of its vanilla original: rows of others go.
        """
        kept = {row.identity: row for row in [*self.rows, *rows] if row.weights in weights}
        self._write(EVALUATION_FILE, "".join(as_line(asdict(row)) for row in kept.values()))

    @property
    def agreement(self) -> dict | None:
        """What [`compare_with_processor`] measured, or `None`."""
        return self._parsed(AGREEMENT_FILE, _parse_agreement)

    def write_agreement(self, agreement: dict) -> None:
        """Keep what [`compare_with_processor`] measured beside the model."""
        self._write(AGREEMENT_FILE, json.dumps(sealed(agreement), indent=1))

    @property
    def choice(self) -> dict | None:
        """Of a point between vanilla and trained weights, which it is and why, or `None` for any other model.

        Raises:
            InputError: if it was damaged.
        """
        return self._parsed(CHOICE_FILE, _parse_choice)

    @property
    def has_weights_of_choice(self) -> bool:
        """Whether the weights are those of the choice; not if there is none, or it can't be read."""
        try:
            return self.choice is not None and self.choice["saved_weights"] == self.saved_weights
        except InputError:
            return False

    def write_choice(self, choice: dict) -> None:
        """Keep beside a model that is saved here how it was chosen, as `hpt.evaluation.dial_report` describes it.

        What was measured on other weights that were here before is deleted.
        """
        if not self.has_weights_of_choice:
            self._delete_measurements()
        self._write(CHOICE_FILE, json.dumps(sealed(choice | {"saved_weights": self.saved_weights}), indent=1))

    # Where it comes from

    @property
    def conversion(self) -> dict | None:
        """Of a model that was converted, from what and how, or `None` for any other model.

        Raises:
            InputError: if it was damaged.
        """
        return self._parsed(CONVERSION_FILE, _parse_conversion)

    def write_conversion(self, conversion: dict) -> None:
        """Keep beside a model that is saved here what [`~hpt.models.converted.describe_conversion`] says of it."""
        self._write(CONVERSION_FILE, json.dumps(sealed(conversion | {"saved_weights": self.saved_weights}), indent=1))

    # Card and pictures

    @property
    def card(self) -> str | None:
        """The model card, or `None`."""
        return self.text(CARD_FILE)

    def replace_card(self, text: str) -> None:
        """Replace the model card."""
        self._write(CARD_FILE, text)

    @property
    def pictures(self) -> set[str]:
        """Names of the pictures that there are now."""
        return {file.name for file in (self.path / FIGURES).glob("*.png")}

    @property
    def robustness_pictures(self) -> list[str]:
        """Those that show accuracy over eps, sorted."""
        return sorted(name for name in self.pictures if name.startswith("robustness_"))

    def make_figures(self) -> Path:
        """Where pictures are drawn, made if it isn't there."""
        (self.path / FIGURES).mkdir(exist_ok=True)
        self._contents = {name: content for name, content in self._contents.items() if not name.startswith(FIGURES)}
        return self.path / FIGURES

    def robustness_picture(self, benchmark: str, norm: str) -> Path:
        """Where accuracy over eps is drawn."""
        return self.path / FIGURES / f"robustness_{file_name(benchmark)}_{norm}.png"

    # Files

    def names(self) -> list[str]:
        """Names of all files that there are now, those in subfolders with their path from here, sorted."""
        return sorted(file.relative_to(self.path).as_posix() for file in self.path.rglob("*") if file.is_file())

    def content(self, name: str) -> bytes | None:
        """The bytes that a file holds, or `None` if it isn't there."""
        if name not in self._contents:
            file = self.path / name
            self._contents[name] = file.read_bytes() if file.is_file() else None
        return self._contents[name]

    def text(self, name: str) -> str | None:
        """What a file of text holds, or `None` if it isn't there.

        Raises:
            InputError: if it isn't UTF-8, or too large for a text.
        """
        file = self.path / name
        if name not in self._contents and file.is_file():
            refuse_large(file.stat().st_size, file)
        content = self.content(name)
        return None if content is None else as_text(content, file)

    def _parsed(self, name: str, parse: Callable[[str, Path], object]):
        """What a file's text stands for, or `None` if it isn't there."""
        if name not in self._values and (text := self.text(name)) is not None:
            self._values[name] = parse(text, self.path / name)
        return self._values.get(name)

    def _write(self, name: str, text: str) -> None:
        write_file(self.path / name, text)
        self._contents[name] = text.encode()
        self._values.pop(name, None)

    def _delete(self, name: str) -> None:
        (self.path / name).unlink(missing_ok=True)
        self._contents[name] = None
        self._values.pop(name, None)


def _parse_run(text: str, file: Path) -> dict:
    try:
        return parse_run(parse_json(text))
    except ValueError as error:
        raise InputError(
            f"{file} isn't as this version of hpt writes it: save the model again ({error}). What you have changed in "
            f"it by hand is taken if you remove its {DIGEST}."
        ) from error


def _parse_rows(text: str, file: Path) -> list[Row]:
    return parse_lines(text.encode(), file, parse_row)


def _parse_agreement(text: str, file: Path) -> dict:
    return parse_file(text, file, parse_agreement, "remove it, and evaluate again")


def _parse_choice(text: str, file: Path) -> dict:
    return parse_file(text, file, parse_choice, "choose and save the point again")


def _parse_conversion(text: str, file: Path) -> dict:
    return parse_file(text, file, parse_conversion, "convert the checkpoint again")


def _parse_config(text: str, file: Path) -> dict:
    """Of a model that hpt didn't train, what a card needs of its configuration."""
    return parse_file(text, file, _shape, "save the model again")


def _shape(config: object) -> dict:
    try:
        size, tower = (config["vision_config"].get(*setting) for setting in (("image_size", 224), ("model_type", "")))
        shape = {"architecture": config["architectures"][0], "image_size": size, "vision_tower": tower}
    except (TypeError, KeyError, IndexError, AttributeError) as error:
        raise ValueError("it isn't the configuration of a dual encoder") from error
    check_kinds(shape, {"architecture": str, "image_size": int, "vision_tower": str})
    return shape
