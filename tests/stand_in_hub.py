"""A stand-in for the Hub on localhost: repositories in folders, read and written by huggingface_hub's own client.

    python tests/stand_in_hub.py FOLDER [PORT]    # prints its URL, http://127.0.0.1:PORT

Programs take it for the Hub if they are started with

    HF_ENDPOINT=http://127.0.0.1:PORT    its URL
    HF_TOKEN=hf_stand_in                 the user `me`, who may write to me/ and org/; hf_stand_in_read only reads
    HF_HUB_DISABLE_XET=1                 it takes files by LFS alone; otherwise uploads try Xet for minutes, and fail
    HF_HOME=ANOTHER_FOLDER               so that its repositories don't get into the cache of the Hub's
    HF_HUB_OFFLINE=0                     where that is set otherwise

of which huggingface_hub reads all when it is imported. It needs PyYAML.

`FOLDER/models/OWNER/NAME` and `FOLDER/datasets/OWNER/NAME` are repositories, `NAME@BRANCH` their other branches than
main, and `FOLDER/lfs` holds what was uploaded ahead of a commit, as on the Hub, so that a push cut off goes on.
"""

import base64
import hashlib
import json
import re
import shutil
import sys
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

import yaml


COMMIT = "0123456789abcdef0123456789abcdef01234567"  # of a repository that was put there, not pushed
TOKEN, READ_TOKEN = "hf_stand_in", "hf_stand_in_read"
USER, ORGANISATION = "me", "org"
HISTORY = ".history.json"  # commits that were pushed: id and message
PRIVATE = ".private"
LARGE = (".safetensors", ".png")  # what the Hub keeps by LFS
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


class Handler(BaseHTTPRequestHandler):
    """What huggingface_hub and datasets ask for."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        path = unquote(self.path.partition("?")[0])
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.server.requests.append((self.command, path))
        if path == "/api/whoami-v2":
            return self.who_am_i()
        if self.command == "POST" and not path.endswith("/paths-info") and "/paths-info/" not in path:
            return self.write(path, body)
        match = re.fullmatch(r"(?:/api)?(?:/(datasets|models))?/([^/]+/[^/]+)(?:/([a-z-]+)(?:/(.*))?)?", path)
        kind, repository, action, rest = match.groups() if match else (None,) * 4
        folder = self.server.root / (kind or "models") / str(repository)
        if repository in self.server.gated and self.token() != TOKEN:
            return self.refuse(401, "GatedRepo", "gated")
        if match is None or not folder.is_dir() or ((folder / PRIVATE).exists() and self.token() is None):
            return self.refuse(404, "RepoNotFound", "none")
        if action == "auth-check":
            return self.answer(200) if not rest or self.may_write(repository) else self.refuse(403, "", "read only")
        revision, _, within = (rest or "").partition("/")
        folder = branch_at(folder, revision or "main")
        if folder is None:
            return self.refuse(404, "RevisionNotFound", "none")
        if action == "resolve":
            return self.send_file(folder, within)
        if action == "tree" and not (folder / within).is_dir():
            return self.refuse(404, "EntryNotFound", "none")
        if action == "tree":
            recursive = "recursive=True" in self.path or "recursive=true" in self.path
            entries = sorted((folder / within).rglob("*") if recursive else (folder / within).iterdir())
            return self.send_json([describe(file, folder) for file in entries if not file.name.startswith(".")])
        if action == "paths-info":
            paths = (
                json.loads(body)["paths"]
                if body.startswith(b"{")
                else re.findall(r"paths=([^&]*)", unquote(str(body)))
            )
            entries = [folder / path.strip("'") for path in paths]
            return self.send_json([describe(file, folder) for file in entries if file.exists()])
        files = [{"rfilename": str(file.relative_to(folder))} for file in files_in(folder)]
        private = (folder / PRIVATE).exists()
        about = {"id": repository, "sha": commit_of(folder), "siblings": files, "private": private, "gated": False}
        return self.send_json(about | {"cardData": card_data(folder), "tags": card_data(folder).get("tags", [])})

    do_HEAD = do_POST = do_GET

    # Writing

    def who_am_i(self):
        if self.token() is None:
            return self.refuse(401, "", "Invalid username or password.")
        return self.send_json({"type": "user", "name": USER, "orgs": [{"name": ORGANISATION}]})

    def write(self, path: str, body: bytes):
        if path == "/api/validate-yaml":
            return self.send_json(validate(json.loads(body)["content"]))
        if path == "/api/repos/create":
            return self.create(json.loads(body))
        match = re.fullmatch(r"(?:/api/models)?/([^/]+/[^/]+?)(?:\.git/info/lfs|/([a-z]+))/(.*)", path)
        repository, action, rest = match.groups()
        folder = self.server.root / "models" / repository
        if not folder.is_dir():
            return self.refuse(404, "RepoNotFound", "none")
        if not self.may_write(repository):
            return self.refuse(403, "", "You don't have the rights to push to this repository.")
        if action is None:
            return self.offer_uploads(repository, json.loads(body)["objects"])
        branch = folder if rest == "main" else folder.with_name(f"{folder.name}@{rest}")
        if action == "branch":
            if branch.is_dir():
                return self.refuse(409, "", "Reference already exists.")
            shutil.copytree(folder, branch)
            return self.send_json({})
        if not branch.is_dir():
            return self.refuse(404, "RevisionNotFound", "none")
        if action == "preupload":
            files = json.loads(body)["files"]
            return self.send_json({"files": [upload_mode(file, branch) for file in files]})
        return self.commit(repository, branch, [json.loads(line) for line in body.splitlines()])

    def create(self, wanted: dict):
        repository = f"{wanted.get('organization') or USER}/{wanted['name']}"
        folder = self.server.root / "models" / repository
        url = f"{self.server.url}/{repository}"
        if self.token() is None:
            return self.refuse(401, "", "Invalid username or password.")
        if not self.may_write(repository):
            return self.refuse(403, "", f"You don't have the rights to create a model under {repository}.")
        if folder.is_dir():
            return self.answer(409, json.dumps({"error": "You already created this model repo", "url": url}).encode())
        folder.mkdir(parents=True)
        (folder / ".gitattributes").write_text("*.safetensors filter=lfs diff=lfs merge=lfs -text\n")
        if wanted.get("visibility") == "private" or wanted.get("private"):
            (folder / PRIVATE).touch()
        return self.send_json({"url": url, "name": repository})

    def offer_uploads(self, repository: str, objects: list[dict]):
        answers = []
        for blob in objects:
            there = (self.server.root / "lfs" / blob["oid"]).exists()
            offer = {} if there else {"actions": {"upload": {"href": f"{self.server.url}/lfs/{blob['oid']}"}}}
            answers.append({"oid": blob["oid"], "size": blob["size"], **offer})
        self.send_json({"transfer": "basic", "objects": answers})

    def do_PUT(self):
        oid, size = self.path.rsplit("/", 1)[1], int(self.headers["Content-Length"])
        self.server.requests.append((self.command, self.path))
        self.server.uploads_left -= 1
        if self.server.uploads_left < 0:  # the server dies in the middle of an upload
            self.rfile.read(size // 2)
            self.close_connection = True
            self.connection.close()
            return self.server.die()
        content = self.rfile.read(size)
        assert hashlib.sha256(content).hexdigest() == oid
        (self.server.root / "lfs").mkdir(exist_ok=True)
        (self.server.root / "lfs" / oid).write_bytes(content)
        self.answer(200)

    def commit(self, repository: str, folder: Path, lines: list[dict]):
        summary, parent = lines[0]["value"]["summary"], lines[0]["value"].get("parentCommit")
        if parent not in (None, commit_of(folder)):
            return self.refuse(412, "", "A commit has happened since. Please refresh and try again.")
        for line in lines[1:]:
            kind, value = line["key"], line["value"]
            file = folder / value["path"]
            file.parent.mkdir(parents=True, exist_ok=True)
            if kind == "file":
                file.write_bytes(base64.b64decode(value["content"]))
            elif kind == "lfsFile":
                shutil.copy(self.server.root / "lfs" / value["oid"], file)
            elif kind == "deletedFile":
                file.unlink()
        commits = history(folder)
        commit = hashlib.sha1(f"{folder} {len(commits)} {summary}".encode()).hexdigest()
        commits.append({"id": commit, "message": summary})
        (folder / HISTORY).write_text(json.dumps(commits))
        oid = commits[-1]["id"]
        self.send_json(
            {"success": True, "commitOid": oid, "commitUrl": f"{self.server.url}/{repository}/commit/{oid}"}
        )

    # Answers

    def token(self) -> str | None:
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        return token if token in (TOKEN, READ_TOKEN) else None

    def may_write(self, repository: str) -> bool:
        return self.token() == TOKEN and repository.split("/")[0] in (USER, ORGANISATION)

    def send_file(self, folder: Path, within: str):
        file = folder / within
        if not file.is_file():
            return self.refuse(404, "EntryNotFound", "none", {"X-Repo-Commit": commit_of(folder)})
        content = file.read_bytes()
        headers = {
            "X-Repo-Commit": commit_of(folder),
            "ETag": f'"{hashlib.sha256(content).hexdigest()}"',
            "Accept-Ranges": "bytes",
        }
        part = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if part is None:
            return self.answer(200, content, headers)
        first, last = int(part[1]), min(int(part[2] or len(content) - 1), len(content) - 1)
        return self.answer(
            206, content[first : last + 1], headers | {"Content-Range": f"bytes {first}-{last}/{len(content)}"}
        )

    def refuse(self, status: int, code: str, message: str, headers: dict | None = None):
        content = json.dumps({"error": message}).encode()
        self.answer(status, content, {"X-Error-Code": code, "X-Error-Message": message} | (headers or {}))

    def send_json(self, value):
        self.answer(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def answer(self, status: int, content: bytes = b"", headers: dict | None = None):
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(content))} | (headers or {})).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, *arguments):
        pass


def files_in(folder: Path) -> list[Path]:
    """Of a repository, all files but what the stand-in keeps there."""
    return sorted(file for file in folder.rglob("*") if file.is_file() and file.name not in (HISTORY, PRIVATE))


def history(folder: Path) -> list[dict]:
    """The commits pushed to a branch, oldest first."""
    return json.loads((folder / HISTORY).read_text()) if (folder / HISTORY).exists() else []


def pushed(hub, repository: str) -> set[str]:
    """Names of the files in a repository, or in `NAME@BRANCH`."""
    folder = hub.root / "models" / repository
    return {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file() and file.name[0] != "."}


def messages(hub, repository: str) -> list[str]:
    """Of the commits pushed to a repository, oldest first."""
    return [commit["message"] for commit in history(hub.root / "models" / repository)]


def commit_of(folder: Path) -> str:
    """The id of a branch's newest commit."""
    return history(folder)[-1]["id"] if (folder / HISTORY).exists() else COMMIT


def branch_at(folder: Path, revision: str) -> Path | None:
    """The folder of a branch, or of the one that has a commit, whose newest files stand for those of that commit."""
    if revision == "main" or folder.with_name(f"{folder.name}@{revision}").is_dir():
        return folder if revision == "main" else folder.with_name(f"{folder.name}@{revision}")
    branches = [folder, *folder.parent.glob(f"{folder.name}@*")]
    holders = [
        branch for branch in branches if revision in (commit_of(branch), *(commit["id"] for commit in history(branch)))
    ]
    return holders[0] if holders else None


def card_data(folder: Path) -> dict:
    """The metadata of a repository's card."""
    text = (folder / "README.md").read_text(encoding="utf-8") if (folder / "README.md").exists() else ""
    return (yaml.safe_load(text.split("---")[1]) or {}) if text.startswith("---") else {}


def validate(content: str) -> dict:
    """What of the Hub's rules for metadata a card breaks: base model, model-index, and the tasks of its results."""
    data, errors = yaml.safe_load(content.split("---")[1]), []
    for key in ("base_model", "datasets"):
        for hub_id in [data[key]] if isinstance(data.get(key), str) else data.get(key) or []:
            if not HUB_ID.fullmatch(hub_id) and key == "base_model":
                errors.append(f'"base_model" {hub_id} is not a valid Hub id')
    for model in data.get("model-index") or []:
        for result in model["results"]:
            if not {"task", "dataset", "metrics"} <= set(result) or not result["metrics"]:
                errors.append('"model-index[0].results" lacks a field')
            elif not {"type", "name"} <= set(result["dataset"]):
                errors.append('"dataset" lacks its type or name')
    return {"errors": [{"message": error} for error in errors], "warnings": []}


def upload_mode(file: dict, folder: Path) -> dict:
    """How a file is to be uploaded, and the id of the blob that is there."""
    large = file["path"].endswith(LARGE) or file["size"] > 10_000_000
    there, oid = folder / file["path"], None
    if there.is_file():
        content = there.read_bytes()
        blob = f"blob {len(content)}\0".encode() + content
        oid = hashlib.sha256(content).hexdigest() if large else hashlib.sha1(blob).hexdigest()
    mode = "lfs" if large else "regular"
    return {"path": file["path"], "uploadMode": mode, "shouldIgnore": False, "oid": oid}


def describe(file: Path, folder: Path) -> dict:
    """An entry of a repository's tree."""
    entry = {"path": str(file.relative_to(folder)), "oid": hashlib.sha1(str(file).encode()).hexdigest()}
    if file.is_dir():
        return entry | {"type": "directory"}
    return entry | {"type": "file", "size": file.stat().st_size}


class StandInHub(ThreadingHTTPServer):
    """The server; `requests` lists what was asked for, and after `uploads_left` uploads it dies."""

    daemon_threads = True

    def __init__(self, root: Path, gated: set[str] = frozenset(), port: int = 0):
        super().__init__(("127.0.0.1", port), Handler)
        self.root, self.gated, self.requests = Path(root), gated, []
        self.uploads_left = sys.maxsize
        self.url = f"http://127.0.0.1:{self.server_port}"

    def die(self) -> None:
        threading.Thread(target=self.shutdown).start()
        self.socket.close()


@contextmanager
def stand_in_hub(root: Path, gated: set[str] = frozenset(), port: int = 0):
    """Serve the repositories of a folder; gives the server, whose `url` is for `HF_ENDPOINT`."""
    server = StandInHub(root, gated, port)
    threading.Thread(target=server.serve_forever, args=[0.01], daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


if __name__ == "__main__":
    hub = StandInHub(Path(sys.argv[1]), port=int(sys.argv[2]) if len(sys.argv) > 2 else 0)
    print(hub.url, flush=True)
    hub.serve_forever()
