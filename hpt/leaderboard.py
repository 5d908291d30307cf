"""Several checkpoints side by side, from the `model-index` of their cards, and never two different things in a column.

boards = [read_board("robust=outputs/quickstart/robust"), read_board("me/another-clip@v2")]
print(format_boards(boards, common_columns(boards)))
"""

from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import EvalResult, HfApi, ModelCard

from hpt.card_sections import attack_with_step
from hpt.errors import InputError, explain_hub_error
from hpt.model_card import CARD_FILE
from hpt.model_index import as_row
from hpt.planning import describe_radius
from hpt.proxies import name_and_source
from hpt.published_rows import THIS, shown_rows
from hpt.publishing import remote_card
from hpt.report import format_accuracy, markdown_table
from hpt.results import CLEAN, WORST_CASE, Row, digest


@dataclass(frozen=True)
class Column:
    """What has to be the same for two accuracies to be comparable: samples, attack and radius, with all settings.

    Args:
        benchmark, split, attack_space (`str`), n (`int`): The samples, at the resolution where they are attacked.
        samples (`str`, *optional*): Hash of their ids, images, labels and class names, where it was recorded.
        attack (`str`): With its step size, or with the attacks of a worst case; `"clean"`.
        eps (`float`), norm (`str`), *optional*: The radius.
        attacked (`str`, *optional*): Which model's gradients the images were made with, unless the scored one's.
        parameters (`str`): Hash of all settings of the attack, a proxy's weights among them.
    """

    benchmark: str
    split: str
    n: int
    attack_space: str
    samples: str | None
    attack: str
    eps: float | None
    norm: str | None
    attacked: str | None
    parameters: str

    @property
    def samples_title(self) -> str:
        return f"{self.benchmark} ({self.split}, n = {self.n})"

    @property
    def attack_title(self) -> str:
        return self.attack if self.eps is None else f"{self.attack} at {describe_radius(self.eps, self.norm)}"

    @property
    def title(self) -> str:
        return f"{self.samples_title}: {self.attack_title}"


def column_of(row: Row) -> Column:
    """The only column that a row may stand in."""
    attack = CLEAN if row.attack == CLEAN else attack_with_step(row)
    if row.attack == WORST_CASE:
        attack += f" over {', '.join(row.parameters['attacks'])}"
    attacked = None if row.attacked in (None, THIS) else row.attacked
    where = (row.benchmark, row.split, row.n, row.attack_space, row.samples)
    return Column(*where, attack, row.eps, row.norm, attacked, digest(row.parameters))


@dataclass(frozen=True)
class Board:
    """A checkpoint's name and its measured rows by column."""

    name: str
    rows: dict[Column, Row]


def read_board(text: str) -> Board:
    """The rows in the card of a checkpoint that is named as `NAME=PATH`, `PATH`, or `ID@REVISION` on the Hub.

    Raises:
        InputError: if there is no card, or it has no results that hpt has measured.
    """
    name, source = name_and_source(text)
    rows = []
    for result in read_results(source):
        try:
            rows.append(as_row(result, THIS))
        except TypeError:  # measured by another tool, or another version of this one
            continue
    if not rows:
        raise InputError(
            f"The card of {source} has no results of hpt in its model-index: evaluate and publish it first."
        )
    return Board(name, {column_of(row): row for row in shown_rows(rows)})


def read_results(source: str) -> list[EvalResult]:
    """The `model-index` of a local folder's card, or of one on the Hub."""
    path = Path(source)
    if path.exists():
        file = path / CARD_FILE if path.is_dir() else path
        if not file.is_file():
            raise InputError(
                f"{source} has no {CARD_FILE}: give a folder that recipes/publish.py has written a card in."
            )
        card = ModelCard(file.read_text(encoding="utf-8"))
    else:
        card = _load_from_hub(source)
    return card.data.eval_results or []


def _load_from_hub(source: str) -> ModelCard:
    repo_id, _, revision = source.partition("@")
    try:
        text = remote_card(HfApi(), repo_id, revision or None)
    except Exception as error:  # whatever huggingface_hub and its transport raise
        raise explain_hub_error("model card", repo_id, error) from error
    if text is None:
        raise InputError(f"{repo_id} has no card on the Hub.")
    return ModelCard(text)


def select_columns(
    boards: list[Board],
    benchmarks: list[str] | None = None,
    attacks: list[str] | None = None,
    eps: list[float] | None = None,
) -> list[Column]:
    """The columns that all boards have, of the benchmarks, attacks and radii that are asked for, clean ones first.

    Args:
        boards (`list[Board]`): What is compared.
        benchmarks, attacks (`list[str]`, *optional*): Names; of attacks without settings, such as `"worst case"`.
        eps (`list[float]`, *optional*): Radii.

    Raises:
        InputError: if no attack was measured on all in the same way, saying how they differ.
    """
    wanted = {}
    for board in boards:
        for column, row in board.rows.items():
            if (
                (benchmarks is None or column.benchmark in benchmarks)
                and (attacks is None or row.attack.partition(":")[0] in (CLEAN, *attacks))
                and (eps is None or column.eps is None or any(abs(column.eps - one) < 1e-6 for one in eps))
            ):
                wanted.setdefault(column, []).append(board.name)
    shared = [column for column, names in wanted.items() if len(names) == len(boards)]
    if not any(column.attack != CLEAN for column in shared):
        lines = [f"{', '.join(names)}: {column.title}" for column, names in wanted.items() if column.attack != CLEAN]
        raise InputError(
            "No attack was measured on all of them with the same settings, and different ones don't go into a column. "
            f"There is {'; '.join(lines) or 'no attack at all'}. Evaluate them together by recipes/evaluate.py."
        )
    return sorted(shared, key=lambda column: (column.benchmark, column.eps or 0, column.attack))


def left_out(boards: list[Board], columns: list[Column]) -> list[str]:
    """A line for each column that not all boards have, with those that have it."""
    others = dict.fromkeys(column for board in boards for column in board.rows if column not in columns)
    having = {column: ", ".join(board.name for board in boards if column in board.rows) for column in others}
    return [f"{column.title} (only {names})" for column, names in having.items()]


def format_boards(boards: list[Board], columns: list[Column]) -> str:
    """A Markdown table for each set of samples: a line per attack, checkpoints side by side, the most robust first."""
    hardest = max(columns, key=lambda column: (column.attack.startswith(WORST_CASE), column.eps or 0))
    boards = sorted(boards, key=lambda board: -board.rows[hardest].accuracy)
    tables = []
    for title in dict.fromkeys(column.samples_title for column in columns):
        own = [column for column in columns if column.samples_title == title]
        lines = [[one.attack_title, *(format_accuracy(board.rows[one]) for board in boards)] for one in own]
        tables.append(f"{title}\n\n{markdown_table([['attack', *(board.name for board in boards)], *lines])}")
    return "\n\n".join(tables)
