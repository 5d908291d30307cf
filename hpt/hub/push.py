"""Pushing a trained model's folder to the Hub, so that an interrupted push goes on and nothing by hand is lost.

publish(ModelFolder("outputs/quickstart/robust"), "me/robust-digits", private=True)
"""

from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import (
    CommitInfo,
    CommitOperationAdd,
    CommitOperationDelete,
    HfApi,
    ModelInfo,
    constants,
    get_token,
)
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError
from huggingface_hub.utils import validate_repo_id

from hpt.errors import InputError, PushFailed, causes, without_secrets
from hpt.escaping import one_line, shell
from hpt.hub.card import write_card
from hpt.hub.card_text import choose_card, is_own_card, remote_card, stated_license
from hpt.hub.contents import (
    CONFIGS,
    published_content,
    published_endpoints,
    published_files,
    refuse_token,
    stale_files,
)
from hpt.hub.folder import CARD_FILE, ModelFolder
from hpt.locks import hold_folder


# What a push does, in this order, as messages call it
CREATE, READ, UPLOAD, COMMIT = "making the repository", "reading what it has", "uploading large files", "committing"
UNREACHABLE = {"TransportError", "ConnectionError", "OfflineModeIsEnabled", "LocalEntryNotFoundError"}
WEIGHTS_OF_ANY = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".onnx", ".h5", ".msgpack")


def check_repository_id(repo_id: str) -> None:
    """Refuse what can't be the id of a repository, without asking the Hub.

    Raises:
        InputError: saying what an id is made of.
    """
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise InputError(
            f"hub_model_id is {repo_id!r}, but must be NAME, USER/NAME or ORGANISATION/NAME, of letters, digits, -, _ "
            "and single dots."
        ) from error


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
        InputError: without a token or permission, if the repository holds another model, or is public against
            `private`.
        PushFailed: if the Hub can't be reached, naming the step that failed.
    """
    check_repository_id(repo_id)
    refuse_token(f"{repo_id} {revision}", "The repository's name, or hub_revision,", token)
    api = HfApi(token=token)
    if not (token or get_token()):
        raise InputError("There is no token for the Hub: run `hf auth login` or set HF_TOKEN.")
    with _step(repo_id, CREATE):
        repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
    with _step(repo_id, READ):
        api.auth_check(repo_id, write=True)
        if private and not api.model_info(repo_id).private:
            raise InputError(
                f"{repo_id} is there already and public: make it private in its settings, or don't ask for that."
            )
        if revision is not None and not revision.startswith("refs/"):
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        _refuse_other_model(api, repo_id, revision)
    return repo_id


def _refuse_other_model(api: HfApi, repo_id: str, revision: str | None) -> None:
    """Refuse to write over a model that hpt didn't push there."""
    about = api.model_info(repo_id, revision=revision)
    if not any(name in CONFIGS or name.endswith(WEIGHTS_OF_ANY) for name in _names(about)):
        return
    card = remote_card(api, repo_id, about.sha)
    if card is None or not is_own_card(card):
        raise InputError(
            f"{repo_id} holds a model that hpt didn't push: give another hub_model_id, or delete that repository."
        )


def publish(
    folder: ModelFolder,
    repo_id: str,
    *,
    private: bool | None = None,
    revision: str | None = None,
    token: str | None = None,
    message: str = "Upload by hpt",
    license: str | None = None,
    endpoints: Path | None = None,
) -> CommitInfo:
    """Push a trained model's folder into a repository, which is made where there is none.

    What was written by hand on the repository's card is kept, and the folder's card then has it too. Files that hpt
    pushed before and that the folder doesn't have are deleted there. Large files that an interrupted push has brought
    to the Hub aren't sent again.

    Args:
        folder ([`ModelFolder`]): As [`HPTTrainer`] or its recipe saved it.
        repo_id, private, revision, token: see [`prepare_repository`].
        message (`str`, *optional*): Of the commit.
        license (`str`, *optional*): Of the weights, as the Hub spells it; otherwise what the run's recipe says, or
            the card that there is, or the target's.
        endpoints (`Path`, *optional*): The `output_dir` of a run whose endpoints go too; without, those that are there
            are deleted.

    Raises:
        InputError: for a folder without a trained model, with a link or with something private, or in which another
            run is under way, hand-written parts of both cards that differ, weights that are changed meanwhile, or what
            [`prepare_repository`] refuses.
        PushFailed: if the Hub or its storage can't be reached, or the repository has changed meanwhile, naming the
            step that failed and whether an empty repository is left; the folder stays complete.
        WriteFailed: if the card can't be written.
    """
    refuse_token(message, "The message of the commit", token)
    with hold_folder(folder.path):
        before, files = folder.weights_on_disk(), published_files(folder, token)
        files |= {} if endpoints is None else published_endpoints(endpoints, folder, token)
        repo_id = prepare_repository(repo_id, private=private, revision=revision, token=token)
        api = HfApi(token=token)
        with _step(repo_id, READ):
            there = api.model_info(repo_id, revision=revision)
            old = choose_card(folder, remote_card(api, repo_id, there.sha))
            license = license or _find_license(api, folder, old)
        write_card(folder, repo_id, old, license)
        files[CARD_FILE] = published_content(folder, CARD_FILE, token)
        additions = _upload(api, files, there, revision)
        if folder.weights_on_disk() != before:
            raise InputError(f"The weights in {folder} were changed while they were pushed: push them again.")
        return _commit(api, additions, there, message, revision)


def _upload(
    api: HfApi, files: dict[str, bytes | Path], there: ModelInfo, revision: str | None
) -> list[CommitOperationAdd]:
    """Bring large files to a repository's storage, where a commit of all that is given finds them."""
    with _step(there.id, UPLOAD, _names(there)):
        additions = [CommitOperationAdd(*file) for file in files.items()]
        api.preupload_lfs_files(there.id, additions, revision=revision, free_memory=False)
    return additions


def _commit(
    api: HfApi, additions: list[CommitOperationAdd], there: ModelInfo, message: str, revision: str | None
) -> CommitInfo:
    """Put files into a repository that is as `there` says, and delete what hpt had brought before."""
    stale = stale_files(_names(there), [addition.path_in_repo for addition in additions])
    with _step(there.id, COMMIT, _names(there)):
        return api.create_commit(
            there.id,
            [*additions, *map(CommitOperationDelete, stale)],
            commit_message=message,
            revision=revision,
            parent_commit=there.sha,  # so that a card that somebody writes right now isn't overwritten
        )


def _names(there: ModelInfo) -> list[str]:
    return [file.rfilename for file in there.siblings]


def _find_license(api: HfApi, folder: ModelFolder, old: str | None) -> str | None:
    """What the run's recipe says, or the card that there is, or that of the target, if the Hub has it."""
    run = folder.run
    stated = (run and run["license"]) or (old and stated_license(old))
    if stated or run is None or run["target"]["hub_id"] is None:
        return stated
    try:
        data = api.model_info(run["target"]["hub_id"]).card_data
    except HfHubHTTPError:
        return None
    return data and data.license


def push_later(
    folder: ModelFolder,
    repo_id: str,
    *,
    private: bool | None = None,
    revision: str | None = None,
    license: str | None = None,
) -> str:
    """The command that does what [`publish`] does with these arguments, once the Hub can be reached."""
    options = {"run": folder.path, "hub_model_id": repo_id, "hub_private_repo": private}
    options |= {"hub_revision": revision, "license": license}
    options["unfinished"] = True if folder.is_unfinished else None
    given = [part for name, value in options.items() if value is not None for part in (f"--{name}", str(value))]
    return " ".join(map(shell, ["hpt", "publish", *given]))


@contextmanager
def _step(repo_id: str, step: str, there: list[str] | None = None):
    """Within, what keeps a step of a push from the Hub is raised as one line; `there` are the repository's files."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # huggingface_hub lets through those of its transport, which has changed before
        raise explain_push_error(repo_id, step, error, there) from error


def explain_push_error(repo_id: str, step: str, error: Exception, there: list[str] | None = None) -> Exception:
    """What kept a push from the Hub, in one line: [`InputError`] for what the user can mend, or [`PushFailed`].

    Args:
        repo_id (`str`): Where it was pushed to.
        step (`str`): What failed.
        error (`Exception`): How.
        there (`list[str]`, *optional*): The files that the repository has, where it was looked at before.
    """
    http_errors = [cause for cause in causes(error) if isinstance(cause, HfHubHTTPError)]
    responses = [cause.response for cause in http_errors if cause.response is not None]
    status = responses[-1].status_code if responses else None
    message = one_line(without_secrets(" ".join(str(error).split()))).rstrip(".")
    if isinstance(error, LocalTokenNotFoundError) or status == 401:
        return InputError(f"The Hub doesn't take the token: run `hf auth login` or set HF_TOKEN to push to {repo_id}.")
    if status in (403, 404):
        return InputError(
            f"The token may not write to {repo_id}: give a hub_model_id under your name, or under an organisation's "
            f"that lets you, and a token with write permission. The Hub says: {message}."
        )
    cause = f"{type(error).__name__}: {message or 'no message'}"
    if status == 412:
        cause = "somebody else has changed it meanwhile"
    elif step == UPLOAD:
        cause += "" if constants.HF_HUB_DISABLE_XET else "; HF_HUB_DISABLE_XET=1 uploads without Xet"
    elif UNREACHABLE & {base.__name__ for part in causes(error) for base in type(part).__mro__}:
        cause = f"it can't be reached, or HF_HUB_OFFLINE is set; {cause}"
    left = ""
    if step == READ:
        left = " The repository is there, and empty if this push has made it."
    elif there is not None and not {*there} - {".gitattributes"}:
        left = " The repository is there, and empty."
    endpoint = without_secrets(constants.ENDPOINT)
    return PushFailed(f"Nothing was pushed to {repo_id} on {endpoint}: {step} failed ({cause}).{left}")
