"""What is known of a comparison: its settings, and a record for each task that is done, sealed, in one folder.

comparison.json     the protocol and the settings of each method, which later calls have to share
records/TASK.json   what came out of a task, and what it cost
claims/TASK.N.json  who works on it; see `hpt.comparing.claims`
runs/RUN/           a run, as `hpt train` leaves it; dials/RUN/, tests/TASK/: as `hpt evaluate` leaves them
"""

import json
import logging
from pathlib import Path

from hpt.comparing.grid import Grid
from hpt.errors import InputError
from hpt.files import write_file
from hpt.json_files import parse_json, sealed, unsealed
from hpt.training.checkpoints import differences


logger = logging.getLogger(__name__)

SETTINGS = "comparison.json"
REMEDY = "use the same, or give another output_dir"


class Records:
    """The records of a comparison's folder."""

    def __init__(self, folder: Path):
        self.folder = folder / "records"

    def file(self, task: str) -> Path:
        return self.folder / f"{task}.json"

    def read(self, task: str) -> dict | None:
        """What came out of a task; `None` if it isn't done, or its record is damaged, with a warning."""
        file = self.file(task)
        try:
            return unsealed(parse_json(file.read_bytes()))
        except FileNotFoundError:
            return None
        except ValueError as error:
            logger.warning(f"{file} is damaged ({error}): what was there is done again.")
            return None

    def read_all(self) -> dict[str, dict]:
        """What came out of every task that is done, by its id."""
        read = {file.stem: self.read(file.stem) for file in sorted(self.folder.glob("*.json"))}
        return {task: record for task, record in read.items() if record is not None}

    def cpu_seconds(self) -> dict[str, list[float]]:
        """What the tasks of each phase have cost."""
        spent = {}
        for record in self.read_all().values():
            spent.setdefault(record["phase"], []).append(record["cpu_seconds"])
        return spent

    def write(self, task: str, record: dict) -> None:
        write_file(self.file(task), json.dumps(sealed(record)))


def keep_settings(grid: Grid) -> None:
    """Keep a comparison's settings in its folder, or refuse those that contradict what is kept there.

    Methods, rates, seeds and radii of tests may come to those that are there.

    Raises:
        InputError: naming each setting that differs.
    """
    file, here = grid.folder / SETTINGS, json.loads(json.dumps(grid.describe()))
    there = _read(file) if file.is_file() else {"protocol": here["protocol"], "methods": {}}
    if "attack_eps" not in there["protocol"]:  # of 0.7.0 and before, which compare that of the methods alone
        there["protocol"]["attack_eps"] = here["protocol"]["attack_eps"]
    if differing := differences(there["protocol"], here["protocol"]):
        raise InputError(f"{grid.folder} has another comparison ({differing}): {REMEDY}.")
    for name in here["methods"].keys() & there["methods"].keys():
        if differing := differences(there["methods"][name], here["methods"][name]):
            raise InputError(f"{grid.folder} has method {name!r} with other settings ({differing}): {REMEDY}.")
    kept = sealed({"protocol": there["protocol"], "methods": there["methods"] | here["methods"]})
    if not file.is_file() or here["methods"].keys() - there["methods"].keys():
        write_file(file, json.dumps(kept, indent=1))


def _read(file: Path) -> dict:
    try:
        kept = unsealed(parse_json(file.read_bytes()))
        if not {"protocol", "methods"} <= kept.keys():
            raise ValueError("it isn't of a comparison")
    except ValueError as error:
        raise InputError(f"{file} is damaged ({error}): give another output_dir.") from error
    return kept
