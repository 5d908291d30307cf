"""A stand-in for the Hub on localhost: serves repositories from folders, and refuses gated ones without a token."""

import hashlib
import json
import re
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote


COMMIT = "0123456789abcdef0123456789abcdef01234567"
TOKEN = "hf_stand_in"


class Handler(BaseHTTPRequestHandler):
    """What huggingface_hub and datasets ask for: `resolve`, `tree`, `paths-info`, and a repository's description."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        path = unquote(self.path.partition("?")[0])
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.server.requests.append((self.command, path))
        match = re.fullmatch(r"(?:/api)?(?:/(datasets|models))?/([^/]+/[^/]+)(?:/([a-z-]+)(?:/(.*))?)?", path)
        kind, repository, action, rest = match.groups() if match else (None,) * 4
        folder = self.server.root / (kind or "models") / str(repository)
        if repository in self.server.gated and self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self.answer(401, headers={"X-Error-Code": "GatedRepo", "X-Error-Message": "gated"})
        if match is None or not folder.is_dir():
            return self.answer(404, headers={"X-Error-Code": "RepoNotFound", "X-Error-Message": "none"})
        revision, _, within = (rest or "").partition("/")
        if revision not in ("", "main", COMMIT):
            return self.answer(404, headers={"X-Error-Code": "RevisionNotFound", "X-Error-Message": "none"})
        if action == "resolve":
            return self.send_file(folder / within)
        if action == "tree" and not (folder / within).is_dir():
            return self.answer(404, headers={"X-Error-Code": "EntryNotFound", "X-Error-Message": "none"})
        if action == "tree":
            return self.send_json([describe(file, folder) for file in sorted((folder / within).iterdir())])
        if action == "paths-info":
            paths = (
                json.loads(body)["paths"]
                if body.startswith(b"{")
                else re.findall(r"paths=([^&]*)", unquote(str(body)))
            )
            found = [folder / one.strip("'") for one in paths]
            return self.send_json([describe(file, folder) for file in found if file.exists()])
        files = [{"rfilename": str(file.relative_to(folder))} for file in folder.rglob("*") if file.is_file()]
        return self.send_json({"id": repository, "sha": COMMIT, "siblings": files, "private": False, "gated": False})

    do_HEAD = do_POST = do_GET

    def send_file(self, file: Path):
        if not file.is_file():
            return self.answer(404, headers={"X-Error-Code": "EntryNotFound", "X-Error-Message": "none"})
        content = file.read_bytes()
        headers = {
            "X-Repo-Commit": COMMIT,
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


def describe(file: Path, folder: Path) -> dict:
    """An entry of a repository's tree."""
    entry = {"path": str(file.relative_to(folder)), "oid": hashlib.sha1(str(file).encode()).hexdigest()}
    if file.is_dir():
        return entry | {"type": "directory"}
    return entry | {"type": "file", "size": file.stat().st_size}


@contextmanager
def stand_in_hub(root: Path, gated: set[str] = frozenset()):
    """Serve `root/datasets/OWNER/NAME` and `root/models/OWNER/NAME`; gives the server.

    Its `url` is for `HF_ENDPOINT`, and `requests` lists what was asked for.
    """
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.root, server.gated, server.requests = Path(root), gated, []
    server.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
