"""What of a trained model's folder goes to the Hub, and pushing it there so that an interrupted push goes on.

publish("outputs/quickstart/robust", "me/robust-digits", private=True)

Only files that are known to belong to a published model go: weights as safetensors, processor, card, pictures,
run.yaml, training.json and the evaluation. Optimizer, pickles, proxy and whatever else lies there stay.
"""

import re
from fnmatch import fnmatch
from pathlib import Path

from huggingface_hub import CommitInfo, HfApi, constants, get_token
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError, LocalTokenNotFoundError
from transformers import TrainingArguments

from hpt.errors import InputError, PushFailed
from hpt.model_card import CARD_FILE, hand_written, is_own_card, write_card
from hpt.processor_check import AGREEMENT_FILE
from hpt.provenance import RUN_FILE, TRAINING_FILE, read_run
from hpt.published_rows import EVALUATION_FILE


MODEL = ("config.json", "adapter_config.json")
WEIGHTS = ("model*.safetensors", "adapter_model.safetensors")
PUBLISHED = (
    *(*MODEL, *WEIGHTS, "model.safetensors.index.json", "processor_config.json", "preprocessor_config.json"),
    *("tokenizer*.json", "special_tokens_map.json", "added_tokens.json", "vocab.json", "vocab.txt", "merges.txt"),
    *("spiece.model", "sentencepiece.bpe.model", CARD_FILE, TRAINING_FILE, RUN_FILE, EVALUATION_FILE, AGREEMENT_FILE),
    "figures/*.png",
)
TEXTS = (".json", ".jsonl", ".yaml", ".md", ".txt")
PATH_AT_HOME = re.compile(r"(?<![\w:/.])(?:/(?:home|Users|root|tmp|mnt|data|scratch)/[\w.-]+|[A-Z]:\\\\?Users)")


def published_files(folder: str | Path) -> list[str]:
    """Names of the files in a folder that go to the Hub, sorted.

    Raises:
        InputError: if the folder has no trained model in it, or a file names a local path or holds a token.
    """
    folder = Path(folder)
    names = [file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()]
    names = sorted(name for name in names if any(_matches(name, pattern) for pattern in PUBLISHED))
    told = {TRAINING_FILE, EVALUATION_FILE} & set(names)
    if not told or not any(_matches(name, one) for name in names for one in WEIGHTS):
        raise InputError(
            f"{folder} isn't a finished run: it has no model with a {TRAINING_FILE} beside it, as HPTTrainer and "
            "recipes/hpt_gpd.py save, nor with an evaluation."
        )
    for name in names:
        if name.endswith(TEXTS):
            _refuse_private(folder / name)
    return names


def _matches(name: str, pattern: str) -> bool:
    return fnmatch(name, pattern) and name.count("/") == pattern.count("/")


def _refuse_private(file: Path) -> None:
    """Refuse to publish a text with the token that is used, anything like one, or a path of this machine."""
    text = file.read_text(encoding="utf-8")
    if re.search(r"\bhf_[A-Za-z0-9]{30,}", text) or (get_token() or "\0") in text:
        raise InputError(f"{file} holds a token of the Hub: remove it before it is pushed.")
    if file.name.startswith(("tokenizer", "vocab")):
        return  # whose entries may look like anything
    if found := PATH_AT_HOME.search(text):
        raise InputError(f"{file} names the local path {found[0]}: remove it before it is pushed.")


def prepare_repository(
    repo_id: str, *, private: bool | None = None, revision: str | None = None, token: str | None = None
) -> str:
    """Make the repository, and a branch for a revision, unless they are there; its full id, with the namespace.

    Args:
        repo_id (`str`): `NAME`, `USER/NAME` or `ORGANISATION/NAME`.
        private (`bool`, *optional*): Of a repository that is made; public unless the organisation says otherwise.
        revision (`str`, *optional*): Branch to push to, instead of main.
        token (`str`, *optional*): Instead of the one that is logged in.

    Raises:
        InputError: without a token or permission, or if the repository holds another model.
        PushFailed: if the Hub can't be reached.
    """
    api = HfApi(token=token)
    if not (token or get_token()):
        raise InputError(
            "There is no token for the Hub: run `hf auth login` or set HF_TOKEN, or leave push_to_hub out and push "
            "later by recipes/publish.py."
        )
    try:
        repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        api.auth_check(repo_id, write=True)
        if revision is not None:
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        _refuse_other_model(api, repo_id, revision)
    except InputError:
        raise
    except Exception as error:  # huggingface_hub lets through those of its transport, which has changed before
        raise explain_push_error(repo_id, error) from error
    return repo_id


def _refuse_other_model(api: HfApi, repo_id: str, revision: str | None) -> None:
    """Refuse to write over a model that hpt didn't push there."""
    if not set(MODEL) & set(api.list_repo_files(repo_id, revision=revision)):
        return
    card = remote_card(api, repo_id, revision)
    if card is None or not is_own_card(card):
        raise InputError(
            f"{repo_id} holds a model that hpt didn't push: give another hub_model_id, or delete that repository."
        )


def remote_card(api: HfApi, repo_id: str, revision: str | None = None) -> str | None:
    """The card that a repository has, or `None`."""
    try:
        file = api.hf_hub_download(repo_id, CARD_FILE, revision=revision)
    except EntryNotFoundError:
        return None
    return Path(file).read_text(encoding="utf-8")


def publish(
    folder: str | Path,
    repo_id: str,
    *,
    private: bool | None = None,
    revision: str | None = None,
    token: str | None = None,
    message: str = "Upload by hpt",
    license: str | None = None,
) -> CommitInfo:
    """Push a trained model's folder into a repository, which is made where there is none.

    What was written by hand on the repository's card is kept, and the folder's card then has it too. Large files that
    an interrupted push has brought to the Hub aren't sent again.

    Args:
        folder (`str` or `Path`): As [`HPTTrainer`] or its recipe saved it.
        repo_id, private, revision, token: see [`prepare_repository`].
        message (`str`, *optional*): Of the commit.
        license (`str`, *optional*): Of the weights, as the Hub spells it; otherwise what the run's recipe said, or
            the license of the target on the Hub.

    Raises:
        InputError: for a folder without a trained model, hand-written parts of both cards that differ, or what
            [`prepare_repository`] refuses.
        PushFailed: if the Hub can't be reached; the folder stays complete.
    """
    folder = Path(folder)
    published_files(folder)
    repo_id = prepare_repository(repo_id, private=private, revision=revision, token=token)
    api = HfApi(token=token)
    try:
        old = choose_card(folder, remote_card(api, repo_id, revision))
        write_card(folder, repo_id, old, license or _license_of_target(api, folder))
        return api.upload_folder(
            repo_id=repo_id,
            folder_path=folder,
            commit_message=message,
            revision=revision,
            allow_patterns=published_files(folder),
        )
    except InputError:
        raise
    except Exception as error:
        raise explain_push_error(repo_id, error) from error


def _license_of_target(api: HfApi, folder: Path) -> str | None:
    """What the target's own card says, if the run's recipe doesn't say another and the Hub has it."""
    record = read_run(folder)
    if record is None or record["license"] or record["target"]["hub_id"] is None:
        return None
    try:
        data = api.model_info(record["target"]["hub_id"]).card_data
    except HfHubHTTPError:
        return None
    return data and data.license


def push_later(folder: str | Path, args: TrainingArguments) -> str:
    """The command that pushes a folder as a trainer's arguments say, once the Hub can be reached."""
    repo_id = args.hub_model_id or Path(args.output_dir).name
    command = f"python recipes/publish.py --run {folder} --hub_model_id {repo_id}"
    command += f" --hub_private_repo {args.hub_private_repo}" if args.hub_private_repo is not None else ""
    return command + (f" --hub_revision {args.hub_revision}" if args.hub_revision else "")


def choose_card(folder: Path, remote: str | None) -> str | None:
    """Of the card in a folder and that on the Hub, the one whose hand-written parts are kept.

    Raises:
        InputError: if both have such parts, and not the same.
    """
    file = folder / CARD_FILE
    local = file.read_text(encoding="utf-8") if file.is_file() else None
    if remote is None or local is None:
        return remote or local
    ours, theirs = hand_written(local), hand_written(remote)
    if ours and theirs and ours != theirs:
        raise InputError(
            f"{file} and the card on the Hub have different parts written by hand: bring them together in {file}, and "
            "put the same on the Hub."
        )
    return local if ours else remote


def explain_push_error(repo_id: str, error: Exception) -> Exception:
    """What kept a push from the Hub, in one line: [`InputError`] for what the user can mend, or [`PushFailed`]."""
    names, status, cause = set(), None, error
    while cause is not None:
        names |= {base.__name__ for base in type(cause).__mro__}
        if isinstance(cause, HfHubHTTPError) and cause.response is not None:
            status = cause.response.status_code
        cause = cause.__cause__ or cause.__context__
    if isinstance(error, HFValidationError):
        return InputError(f"hub_model_id is {repo_id!r}, but must be NAME, USER/NAME or ORGANISATION/NAME.")
    if isinstance(error, LocalTokenNotFoundError) or status == 401:
        return InputError(f"The Hub doesn't take the token: run `hf auth login` or set HF_TOKEN to push to {repo_id}.")
    if status in (403, 404):
        return InputError(
            f"The token may not write to {repo_id}: give a hub_model_id under your name, or under an organisation's "
            "that lets you, and a token with write permission."
        )
    if names & {"TransportError", "ConnectionError", "OfflineModeIsEnabled"}:
        reason = "it can't be reached, or HF_HUB_OFFLINE is set"
    else:
        reason = f"{type(error).__name__}: {next(iter(str(error).strip().splitlines()), 'no message').rstrip('.')}"
    return PushFailed(f"Nothing was pushed to {repo_id} on {constants.ENDPOINT}: {reason}.")
