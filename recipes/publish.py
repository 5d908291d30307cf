"""Push a finished run to the Hub, with its evaluations on its model card.

    hpt publish --run outputs/quickstart --hub_model_id me/robust-digits --dry_run     # what would go
    hpt publish --run outputs/quickstart --hub_model_id my-org/robust-digits --hub_private_repo True
    hpt publish --run outputs/robust --evaluations outputs/evaluation another/results.jsonl

`--run` is the output_dir of recipes/hpt_gpd.py, or any folder that HPTTrainer saved its finished model in; with
evaluations, also that of a model which hpt didn't train. Started again, a push that was cut off goes on; after another
evaluation, the card is brought up to date.
"""

from dataclasses import dataclass, field
from pathlib import Path

from hpt.cli import parse_config, run_recipe
from hpt.errors import PushFailed
from hpt.escaping import one_line
from hpt.hub.card import write_card
from hpt.hub.contents import published_endpoints, published_files, refuse_links, refuse_token
from hpt.hub.evaluations import add_saved_evaluations
from hpt.hub.folder import ModelFolder
from hpt.hub.push import check_repository_id, publish
from hpt.locks import hold_folder


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
    with_endpoints: bool = field(
        default=False, metadata={"help": "Publish RUN/endpoints, which --save_endpoints keeps, too."}
    )
    message: str = field(default="Upload by hpt", metadata={"help": "Of the commit."})
    dry_run: bool = field(default=False, metadata={"help": "Write the card, say what would go, and push nothing."})


def main():
    publication, _ = parse_config((Publication,))
    run = Path(publication.run)
    evaluated, repo_id = bool(publication.evaluations), publication.hub_model_id or run.resolve().name
    check_repository_id(repo_id)
    refuse_token(publication.message, "The message of the commit")
    folder = ModelFolder.of_run(run, merged=publication.merged, evaluated=evaluated, unfinished=publication.unfinished)
    refuse_links(folder)
    with hold_folder(folder.path):
        describe_and_push(publication, run, folder, repo_id)


def describe_and_push(publication: Publication, run: Path, folder: ModelFolder, repo_id: str) -> None:
    """Bring the card up to date and push, while nobody else does either."""
    # The model's evaluations and card
    for path in add_saved_evaluations(folder, run, publication.evaluations):
        print(f"Left out: {path} has no results of the weights in {folder.evaluated_path}.")
    write_card(folder, repo_id, license=publication.license)

    # What goes
    endpoints = run if publication.with_endpoints else None
    names = published_files(folder) | (published_endpoints(run, folder) if endpoints else {})
    print(f"{folder} -> {repo_id}{f' ({publication.hub_revision})' if publication.hub_revision else ''}")
    for name, content in names.items():
        size = content.stat().st_size if isinstance(content, Path) else len(content)
        print(f"{size:>13,}  {one_line(name)}")
    if publication.dry_run:
        print("Nothing was pushed: leave out --dry_run.")
        return

    # The Hub
    options = {"private": publication.hub_private_repo, "revision": publication.hub_revision, "endpoints": endpoints}
    try:
        info = publish(folder, repo_id, message=publication.message, license=publication.license, **options)
    except PushFailed as error:
        raise PushFailed(f"{error} All of it lies in {folder}: give the same command again.") from error
    print(f"Pushed to {info.repo_url}")


if __name__ == "__main__":
    run_recipe(main)
