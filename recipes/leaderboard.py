"""Compare checkpoints by what their model cards say was measured: one table and one picture.

    hpt leaderboard --models vanilla=outputs/quickstart/target robust=outputs/quickstart/robust
    hpt leaderboard --models me/robust-clip my-org/another@v2 --attacks "worst case" --eps 4/255

A column holds one attack with one eps, on the same samples: what wasn't measured on all of them in the same way is
listed below the table, and if nothing was, that is an error. No model is loaded. The card of a model that hpt didn't
train, such as the first, has to be written before:

    hpt publish --run outputs/quickstart/target --evaluations outputs/quickstart/evaluation --dry_run
"""

from dataclasses import dataclass, field
from pathlib import Path

from hpt.cli import parse_config, run_recipe
from hpt.escaping import markdown
from hpt.files import check_folder, write_file
from hpt.hub.leaderboard import draw_leaderboard, format_boards, left_out, make_panels, read_board, shared_columns
from hpt.radius import Fraction
from hpt.references import check_names, parse_model


@dataclass
class Selection:
    """What is compared."""

    models: list[str] = field(metadata={"help": "Folders or Hub ids with a model card; NAME=PATH names one."})
    benchmarks: list[str] | None = field(default=None, metadata={"help": "Only these."})
    attacks: list[str] | None = field(default=None, metadata={"help": "Only these, such as pgd or 'worst case'."})
    eps: list[Fraction] | None = field(default=None, metadata={"help": "Only these radii."})
    output_dir: str = field(default="outputs/leaderboard", metadata={"help": "Folder for table and picture."})


def main():
    selection, _ = parse_config((Selection,))
    models = [parse_model(text) for text in selection.models]
    check_names(model.name for model in models)
    output = check_folder(Path(selection.output_dir))
    boards = [read_board(model) for model in models]
    columns = shared_columns(boards, selection.benchmarks, selection.attacks, selection.eps)

    page = f"Accuracy in %, with its 95 % interval\n\n{format_boards(boards, columns)}\n"
    page += "".join(f"\n- Left out: {markdown(line)}" for line in left_out(boards, columns))
    print(f"{page}\n")
    write_file(output / "leaderboard.md", f"{page}\n")
    draw_leaderboard(boards, make_panels(columns), output / "leaderboard.png")
    print(f"Table and picture: {output}")


if __name__ == "__main__":
    run_recipe(main)
