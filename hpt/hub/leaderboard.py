"""Several checkpoints side by side, from the `model-index` of their cards, and never two different things in a column.

boards = [read_board(parse_model(text)) for text in ("robust=outputs/quickstart/robust", "me/another-clip@v2")]
print(format_boards(boards, shared_columns(boards)))
"""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from textwrap import fill

from huggingface_hub import EvalResult, HfApi, ModelCardData
from matplotlib.figure import Figure

from hpt.errors import InputError, did_you_mean, explain_hub_error
from hpt.escaping import markdown, mathtext, one_line
from hpt.evaluation.figures import COLORS, error_bars, save_figure
from hpt.evaluation.report import attack_with_step, format_accuracy, markdown_table
from hpt.evaluation.rows import CLEAN, WORST_CASE, Row
from hpt.files import read_text
from hpt.hub.card_text import remote_card
from hpt.hub.folder import CARD_FILE, ModelFolder
from hpt.hub.index import as_row
from hpt.hub.rows import THIS, shown_rows
from hpt.json_files import digest
from hpt.radius import Radius, describe_length
from hpt.references import Reference
from hpt.yaml_files import split_card


@dataclass(frozen=True)
class Column:
    """What has to be the same for two accuracies to be comparable: samples, attack and radius, with all settings.

    Args:
        sample_set (`tuple`): The samples and where they are attacked, as [`Row.sample_set`] has them.
        n (`int`): How many there are.
        attack (`str`): With its step size, or with the attacks of a worst case; `"clean"`.
        eps (`float`), norm (`str`), *optional*: The radius.
        settings (`str`): Hash of all settings of the attack: a proxy's weights, what was left out, and whether images
            were attacked that are wrong already.
    """

    sample_set: tuple
    n: int
    attack: str
    eps: float | None
    norm: str | None
    settings: str

    @property
    def samples_title(self) -> str:
        benchmark, split, *_ = self.sample_set
        return one_line(f"{benchmark} ({split}, n = {self.n})")

    @property
    def attack_title(self) -> str:
        return one_line(self.attack if self.eps is None else f"{self.attack} at {Radius(self.eps, self.norm).title}")


def column_of(row: Row) -> Column:
    """The only column that a row may stand in."""
    attack = CLEAN if row.attack == CLEAN else attack_with_step(row)
    if row.is_worst_case:
        attack += f" over {', '.join(row.parameters['attacks'])}"
    settings = digest([row.strength, row.left_out, row.attacks_all_images])
    return Column(row.sample_set, row.n, attack, row.eps, row.norm, settings)


def title_columns(columns: Iterable[Column]) -> dict[Column, tuple[str, str]]:
    """Titles of the samples and of the attack of each column; what differs never has the same ones."""
    columns = list(columns)
    sets: dict[str, set[tuple]] = {}
    attacks: dict[tuple, list[Column]] = {}
    for column in columns:
        sets.setdefault(column.samples_title, set()).add(column.sample_set)
        attacks.setdefault((column.sample_set, column.attack_title), []).append(column)
    titles = {}
    for column in columns:
        samples, attack = column.samples_title, column.attack_title
        if len(sets[samples]) > 1:
            samples += one_line(f", attacked at {column.sample_set[2]}, samples {column.sample_set[3]}")
        if len(attacks[column.sample_set, attack]) > 1:
            attack += f", settings {column.settings}"
        titles[column] = (samples, attack)
    return titles


@dataclass(frozen=True)
class Board:
    """A checkpoint's name, its measured rows by column, and a line for each result that can't be compared."""

    name: str
    rows: dict[Column, Row]
    unusable: list[str]


def read_board(model: Reference) -> Board:
    """The rows in the card of a checkpoint, from a folder or from the Hub.

    Results of other tools can't be compared, nor those on images made against another model that isn't known by its
    weights.

    Raises:
        InputError: if there is no card, it can't be read, or it has no results that hpt has measured.
    """
    rows, unusable = [], []
    for result in read_results(model):
        try:
            rows.append(_comparable(as_row(result, THIS)))
        except ValueError as error:
            name = result.metric_name or result.metric_type
            unusable.append(one_line(f"{name} on {result.dataset_name} of {model.name}: {error}"))
    if not rows:
        raise InputError(
            f"The card of {model.place} has no results of hpt in its model-index: evaluate and publish it first."
        )
    return Board(model.name, {column_of(row): row for row in shown_rows(rows)}, unusable)


def _comparable(row: Row) -> Row:
    if row.attacked not in (None, THIS) and "proxy_weights" not in row.parameters:
        raise ValueError("its images were made against a model that isn't known by its weights")
    return row


def read_results(model: Reference) -> list[EvalResult]:
    """The `model-index` of a local folder's card, or of one on the Hub."""
    if not model.source:
        raise InputError("A model's path is empty: give a folder or a Hub id.")
    path = Path(model.place)
    text = _read_local(path) if path.exists() else _read_from_hub(model)
    metadata, _ = split_card(text, f"The metadata of the card of {model.place}")
    try:
        return ModelCardData(**metadata).eval_results or []
    except (ValueError, TypeError, KeyError, AttributeError) as error:  # huggingface_hub lets them through
        reason = " ".join(str(error).split())
        raise InputError(f"The metadata of the card of {model.place} can't be read ({reason}): repair it.") from error


def _read_local(path: Path) -> str:
    card = ModelFolder(path).card if path.is_dir() else read_text(path)
    if card is None:
        raise InputError(f"{path} has no {CARD_FILE}: give a folder that `hpt publish` has written a card in.")
    return card


def _read_from_hub(model: Reference) -> str:
    try:
        text = remote_card(HfApi(), model.source, model.revision)
    except InputError:
        raise
    except Exception as error:  # whatever huggingface_hub and its transport raise
        raise explain_hub_error("model card", model.source, error) from error
    if text is None:
        raise InputError(f"{model.source} has no card on the Hub.")
    return text


def shared_columns(
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
        InputError: for a benchmark, attack or radius that no board has; or if no attack was measured on all in the
            same way, saying in a line each how they differ.
    """
    _check_asked(boards, benchmarks, attacks, eps)
    wanted = {}
    for board in boards:
        for column, row in board.rows.items():
            if (
                (benchmarks is None or row.benchmark in benchmarks)
                and (attacks is None or row.attack.partition(":")[0] in (CLEAN, *attacks))
                and (eps is None or column.eps is None or any(abs(column.eps - radius) < 1e-6 for radius in eps))
            ):
                wanted.setdefault(column, []).append(board.name)
    shared = [column for column, names in wanted.items() if len(names) == len(boards)]
    if not any(column.attack != CLEAN for column in shared):
        raise InputError(_nothing_shared(boards, {column for column in wanted if column.attack != CLEAN}))
    return sorted(
        shared, key=lambda column: (str(column.sample_set), column.norm or "", column.eps or 0, column.attack)
    )


def _check_asked(boards: list[Board], benchmarks, attacks, eps) -> None:
    """Refuse to look for what no board has, naming what they have."""
    rows = [row for board in boards for row in board.rows.values()]
    there = {"benchmark": [row.benchmark for row in rows], "attack": [row.attack.partition(":")[0] for row in rows]}
    for what, names in (("benchmark", benchmarks), ("attack", attacks)):
        known = list(dict.fromkeys(there[what]))
        for name in names or []:
            if name not in known:
                hint = did_you_mean(name, known)
                raise InputError(f"No card has the {what} {name!r}{hint} They have {', '.join(known)}.")
    radii = list(dict.fromkeys(row.radius for row in rows if row.radius is not None))
    for radius in eps or []:
        if not any(abs(known - radius) < 1e-6 for known in radii):
            raise InputError(
                f"No card has an attack at eps {describe_length(radius)}. They have {', '.join(map(str, radii))}."
            )


def _nothing_shared(boards: list[Board], wanted: set[Column]) -> str:
    """Why no attack is left to compare, with those that were asked for, or else all, and who has them."""
    all_of_them = {column: None for board in boards for column in board.rows if column.attack != CLEAN}
    if not all_of_them:
        return "None of the cards has an attack: evaluate them together by `hpt evaluate`, and publish that."
    listed = [column for column in all_of_them if column in wanted] or list(all_of_them)
    titles = title_columns(listed)
    names = {column: ", ".join(board.name for board in boards if column in board.rows) for column in listed}
    lines = [f"  {': '.join(titles[column])} (of {names[column]})" for column in listed]
    why = "No attack was measured on all of them with the same settings: evaluate them together by `hpt evaluate`."
    return "\n".join([why if wanted else "No card has an attack of that kind at that eps. They have", *lines])


def left_out(boards: list[Board], columns: list[Column]) -> list[str]:
    """A line for each column that not all boards have, with those that have it, and for what can't be compared."""
    titles = title_columns(column for board in boards for column in board.rows)
    shared = set(columns)
    others = [column for column in titles if column not in shared]
    having = {column: ", ".join(board.name for board in boards if column in board.rows) for column in others}
    lines = [f"{': '.join(titles[column])} (only {names})" for column, names in having.items()]
    return lines + [line for board in boards for line in board.unusable]


def make_panels(columns: list[Column]) -> dict[str, dict[str, Column]]:
    """Columns by the titles of their samples and of their attacks."""
    panels: dict[str, dict[str, Column]] = {}
    for column, (samples, attack) in title_columns(columns).items():
        panels.setdefault(samples, {})[attack] = column
    return panels


def format_boards(boards: list[Board], columns: list[Column]) -> str:
    """A Markdown table for each set of samples: a line per attack, checkpoints side by side, the most robust first."""
    hardest = max(columns, key=_hardness)
    boards = sorted(boards, key=lambda board: -board.rows[hardest].accuracy)
    tables = []
    for title, own in make_panels(columns).items():
        lines = [
            [markdown(attack), *(format_accuracy(board.rows[column]) for board in boards)]
            for attack, column in own.items()
        ]
        header = ["attack", *(markdown(board.name) for board in boards)]
        tables.append(f"{markdown(title)}\n\n{markdown_table([header, *lines])}")
    return "\n\n".join(tables)


def _hardness(column: Column) -> tuple:
    """Sorts columns from the weakest attack to the strongest."""
    return column.attack.startswith(f"the {WORST_CASE}"), column.norm == "linf", column.eps or 0


def draw_leaderboard(boards: list[Board], panels: dict[str, dict[str, Column]], path: str | Path) -> None:
    """Accuracy of each checkpoint in each column of a leaderboard, as bars with 95 % intervals, a panel per benchmark.

    Args:
        boards (`list[Board]`): What is compared.
        panels (`dict[str, dict[str, Column]]`): From [`make_panels`]; all boards have all columns.
        path (`str` or `Path`): Of the picture.
    """
    heights = [len(own) * (0.12 + 0.16 * len(boards)) + 0.6 for own in panels.values()]
    figure = Figure(figsize=(8, sum(heights) + 0.5))
    axes_of = figure.subplots(len(panels), squeeze=False, height_ratios=heights).flatten()
    width = 0.8 / len(boards)
    for axes, (title, own) in zip(axes_of, panels.items(), strict=True):
        for number, (board, color) in enumerate(zip(boards, cycle(COLORS), strict=False)):
            rows = [board.rows[column] for column in own.values()]
            places = [place + (number - (len(boards) - 1) / 2) * width for place in range(len(own))]
            values = [100 * row.accuracy for row in rows]
            axes.barh(places, values, 0.9 * width, color=color, label=mathtext(board.name))
            axes.errorbar(values, places, xerr=error_bars(rows), fmt="none", ecolor="black", capsize=2)
        axes.set_yticks(range(len(own)), [mathtext(fill(attack, 52)) for attack in own], fontsize=8)
        axes.set(xlim=(0, 100), xlabel="accuracy (%)")
        axes.invert_yaxis()
        axes.set_title(mathtext(title), fontsize=10)
    figure.legend(*axes.get_legend_handles_labels(), frameon=False, fontsize=9, ncols=4, loc="lower left")
    save_figure(figure, path)
