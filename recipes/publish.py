"""Push a finished run to the Hub, with its evaluations on its model card.

    python recipes/publish.py --run outputs/quickstart --hub_model_id me/robust-digits --dry_run     # what would go
    python recipes/publish.py --run outputs/quickstart --hub_model_id my-org/robust-digits --hub_private_repo True
    python recipes/publish.py --run outputs/robust --evaluations outputs/evaluation another/results.jsonl

`--run` is the output_dir of recipes/hpt_gpd.py, or any folder that HPTTrainer saved its finished model in; with
evaluations, also that of a model which hpt didn't train. Started again, a push that was cut off goes on; after another
evaluation, the card is brought up to date.
"""

from dataclasses import dataclass, field
from pathlib import Path

from hpt import InputError
from hpt.cli import parse_config, run_recipe
from hpt.errors import PushFailed
from hpt.evaluation.results import read_result_rows
from hpt.evaluation.rows import Row
from hpt.hub.card import add_evaluation, write_card
from hpt.hub.folder import TRAINING_FILE, read_run
from hpt.hub.push import publish, published_files
from hpt.models.loading import load_dual_encoder
from hpt.models.weights import hash_weights


@dataclass
class Publication:
    """What is published, and where."""

    run: str = field(metadata={"help": "The output_dir of a finished run, or the folder of its model."})
    hub_model_id: str | None = field(default=None, metadata={"help": "NAME, USER/NAME or ORGANISATION/NAME."})
    evaluations: list[str] | None = field(
        default=None,
        metadata={"help": "Folders of recipes/evaluate.py; RUN/evaluation, if it is there, unless given."},
    )
    merged: bool = field(default=False, metadata={"help": "Of a LoRA run, the merged model instead of the adapter."})
    hub_private_repo: bool | None = field(default=None, metadata={"help": "Whether a new repository is private."})
    hub_revision: str | None = field(default=None, metadata={"help": "Branch to push to, made if it isn't there."})
    license: str | None = field(default=None, metadata={"help": "Of the weights, as the Hub spells it."})
    unfinished: bool = field(default=False, metadata={"help": "Publish a run that stopped before its last step too."})
    message: str = field(default="Upload by hpt", metadata={"help": "Of the commit."})
    dry_run: bool = field(default=False, metadata={"help": "Write the card, say what would go, and push nothing."})


def main():
    publication, _ = parse_config((Publication,))
    run = Path(publication.run)
    folder = find_model(run, publication.merged, bool(publication.evaluations), publication.unfinished)
    repo_id = publication.hub_model_id or run.resolve().name

    evaluations = read_evaluations(run, publication.evaluations)
    add_evaluations(folder, evaluations, asked_for=publication.evaluations is not None)
    write_card(folder, repo_id, license=publication.license)
    files = published_files(folder)
    print(f"{folder} -> {repo_id}{f' ({publication.hub_revision})' if publication.hub_revision else ''}")
    for name in files:
        print(f"{(folder / name).stat().st_size:>13,}  {name}")
    if publication.dry_run:
        print("Nothing was pushed: leave out --dry_run.")
        return

    where = {"private": publication.hub_private_repo, "revision": publication.hub_revision}
    try:
        info = publish(folder, repo_id, message=publication.message, license=publication.license, **where)
    except PushFailed as error:
        raise PushFailed(f"{error} All of it lies in {folder}: give the same command again.") from error
    print(f"Pushed to {info.repo_url}")


def find_model(run: Path, merged: bool, evaluated: bool, unfinished: bool) -> Path:
    """The folder to publish of a run: its adapter or its model; [`InputError`] unless it is finished."""
    names = ["robust", "adapter"] if merged else ["adapter", "robust"]
    folder = next((one for one in (run, *(run / name for name in names)) if (one / TRAINING_FILE).is_file()), None)
    if folder is None and evaluated and (run / "config.json").is_file():
        return run
    if folder is None:
        raise InputError(
            f"{run} isn't a finished run: neither it nor its robust/ has a {TRAINING_FILE}, which recipes/hpt_gpd.py "
            "and HPTTrainer write beside a model. A model that hpt only measured needs --evaluations."
        )
    record = read_run(folder)
    if record["step"] < record["steps"] and not unfinished:
        raise InputError(
            f"{folder} isn't a finished run: it stopped after step {record['step']} of {record['steps']}. With "
            "--unfinished True it is published as what it is."
        )
    return folder


def read_evaluations(run: Path, given: list[str] | None) -> dict[str, list[Row]]:
    """The rows of each evaluation."""
    own = [str(run / "evaluation")] if (run / "evaluation" / "results.jsonl").is_file() else []
    return {one: read_result_rows(one) for one in (own if given is None else given)}


def add_evaluations(folder: Path, evaluations: dict[str, list[Row]], asked_for: bool) -> None:
    """Add rows to the card; one that has none of this model is refused if it was asked for, or else left out."""
    if not evaluations:
        return
    # Of an adapter, the merged model beside it is evaluated
    evaluated = folder.parent / "robust" if (folder / "adapter_config.json").is_file() else folder
    weights = hash_weights(load_dual_encoder(str(evaluated))[0].state_dict())
    others = [name for name, rows in evaluations.items() if not any(row.weights == weights for row in rows)]
    if others and asked_for:
        raise InputError(
            f"{others[0]} has no results of the weights in {evaluated}: evaluate this model, or leave it out."
        )
    for name, rows in evaluations.items():
        if name in others:
            print(f"Left out: {name} has no results of the weights in {evaluated}.")
        else:
            add_evaluation(folder, rows, weights)


if __name__ == "__main__":
    run_recipe(main)
