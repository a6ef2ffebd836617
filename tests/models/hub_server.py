"""A hub on 127.0.0.1 that speaks as much of the Hugging Face hub's HTTP API as huggingface_hub uses for models.

Repositories are in memory: commits are dicts of files, branches name commits. Files of 10 KB and more go through LFS,
as weights do on the hub. Faults can be switched on: see `Hub`.
"""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit

import yaml

LFS_FROM = 10_000


class Answer(Exception):
    """Ends a request with this status, in the hub's words."""

    def __init__(self, status: int, code: str = "", message: str = ""):
        self.status, self.code, self.message = status, code, message


class Commit(NamedTuple):
    sha: str
    files: dict[str, bytes]
    message: str


@dataclass
class Repository:
    private: bool
    branches: dict[str, str]
    commits: dict[str, Commit]


@dataclass
class Hub:
    """
    Attributes:
        users: by token, the user and whether the token may write.
        broken: status with which every request ends.
        cut: files whose downloads break off half way, and again before they go on.
        refuse_commits: commits end as where the connection broke before the hub took them.
        requests: methods and paths that were asked for.
    """

    address: str = ""
    users: dict[str, tuple[str, bool]] = field(
        default_factory=lambda: {"hf_write": ("me", True), "hf_read": ("me", False)}
    )
    repositories: dict[str, Repository] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict)
    broken: int = 0
    cut: set[str] = field(default_factory=set)
    refuse_commits: bool = False
    requests: list[str] = field(default_factory=list)

    def files(self, name: str, branch: str = "main") -> dict[str, bytes]:
        repository = self.repositories[name]
        return repository.commits[repository.branches[branch]].files

    def message(self, name: str) -> str:
        repository = self.repositories[name]
        return repository.commits[repository.branches["main"]].message

    def commit(self, name: str, files: dict[str, bytes], branch: str = "main", message: str = "") -> str:
        repository = self.repositories[name]
        sha = hashlib.sha1(repr((len(repository.commits), branch, sorted(files))).encode()).hexdigest()
        repository.commits[sha] = Commit(sha, files, message)
        repository.branches[branch] = sha
        return sha

    def create(self, name: str, *, private: bool = False) -> None:
        self.repositories[name] = Repository(private, {}, {})
        self.commit(name, {".gitattributes": b"*.safetensors filter=lfs\n"})


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *arguments: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._serve()

    do_HEAD = do_POST = do_PUT = do_GET

    def _serve(self) -> None:
        self._content = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append(f"{self.command} {path}")
        try:
            if self.hub.broken:
                raise Answer(self.hub.broken, message="out of order")
            for pattern, handle in _ROUTES:
                if match := re.fullmatch(pattern, path):
                    return handle(self, *match.groups())
            raise Answer(404, message=f"this test's hub has no {self.command} {path}")
        except Answer as answer:
            self._send(answer.status, {"error": answer.message}, code=answer.code, message=answer.message)

    # Who asks, and what for

    def _user(self, *, to_write: bool = False) -> tuple[str, bool] | None:
        header = self.headers.get("Authorization")
        if header is None:
            if to_write:
                raise Answer(401, message="Invalid username or password.")
            return None
        user = self.hub.users.get(header.removeprefix("Bearer "))
        if user is None:
            raise Answer(401, message="Invalid credentials in Authorization header")
        if to_write and not user[1]:
            raise Answer(403, message="Forbidden: you must use a write token to do this")
        return user

    def _repository(self, name: str, *, to_write: bool = False) -> Repository:
        user = self._user(to_write=to_write)
        found = self.hub.repositories.get(name)
        if found is None or (found.private and (user is None or user[0] != name.split("/")[0])):
            raise Answer(404 if user else 401, "RepoNotFound", "Repository not found")
        if to_write and user is not None and user[0] != name.split("/")[0]:
            raise Answer(403, message="You don't have the required permissions")
        return found

    def _commit_of(self, repository: Repository, revision: str) -> Commit:
        sha = repository.branches.get(revision, revision)
        if sha not in repository.commits:
            raise Answer(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return repository.commits[sha]

    # Routes

    def _create(self) -> None:
        asked = json.loads(self._content)
        user = self._user(to_write=True)
        assert user is not None
        owner = asked.get("organization") or user[0]
        name = f"{owner}/{asked['name']}"
        if owner != user[0]:
            raise Answer(403, message=f'You don\'t have the rights to create a model under the namespace "{owner}"')
        if name in self.hub.repositories:
            return self._send(
                409, {"error": "You already created this model repo", "url": f"{self.hub.address}/{name}"}
            )
        private = asked.get("visibility") == "private" or bool(asked.get("private"))
        self.hub.create(name, private=private)
        self._send(200, {"url": f"{self.hub.address}/{name}", "name": name})

    def _validate(self) -> None:
        metadata = json.loads(self._content)["content"].split("---\n")[1]
        try:
            yaml.safe_load(metadata)
        except yaml.YAMLError as error:
            return self._send(400, {"errors": [{"message": str(error)}], "warnings": []})
        self._send(200, {"errors": [], "warnings": []})

    def _info(self, name: str, revision: str | None = None) -> None:
        commit = self._commit_of(self._repository(name), revision or "main")
        siblings = [{"rfilename": file} for file in sorted(commit.files)]
        card = commit.files.get("README.md", b"").decode()
        data = yaml.safe_load(card.split("---\n")[1]) if card.startswith("---\n") else {}
        self._send(200, {"id": name, "sha": commit.sha, "siblings": siblings, "cardData": data, "tags": []})

    def _tree(self, name: str, revision: str) -> None:
        commit = self._commit_of(self._repository(name), revision)
        self._send(200, [_tree_entry(path, content) for path, content in sorted(commit.files.items())])

    def _branch(self, name: str, branch: str) -> None:
        repository = self._repository(name, to_write=True)
        if branch in repository.branches:
            raise Answer(409, message="Reference already exists")
        repository.branches[branch] = repository.branches["main"]
        self._send(200, {})

    def _preupload(self, name: str, revision: str) -> None:
        there = self._commit_of(self._repository(name, to_write=True), revision).files
        answers = []
        for file in json.loads(self._content)["files"]:
            known = {"oid": _oid(there[file["path"]])} if file["path"] in there else {}
            mode = "lfs" if file["size"] >= LFS_FROM else "regular"
            answers.append({"path": file["path"], "uploadMode": mode, "shouldIgnore": False} | known)
        self._send(200, {"files": answers})

    def _batch(self, name: str) -> None:
        self._repository(name, to_write=True)
        objects = []
        for asked in json.loads(self._content)["objects"]:
            answer = {"oid": asked["oid"], "size": asked["size"]}
            if asked["oid"] not in self.hub.objects:
                answer["actions"] = {"upload": {"href": f"{self.hub.address}/objects/{asked['oid']}"}}
            objects.append(answer)
        self._send(200, {"transfer": "basic", "objects": objects})

    def _object(self, oid: str) -> None:
        if hashlib.sha256(self._content).hexdigest() != oid:
            raise Answer(400, message="not this object")
        self.hub.objects[oid] = self._content
        self._send(200, {})

    def _take_commit(self, name: str, revision: str) -> None:
        repository = self._repository(name, to_write=True)
        files = dict(self._commit_of(repository, revision).files)
        if self.hub.refuse_commits:
            return self._hang_up()
        lines = [json.loads(line) for line in self._content.splitlines()]
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.hub.objects[value["oid"]]
            elif line["key"] == "deletedFile":
                del files[value["path"]]
        sha = self.hub.commit(name, files, revision, lines[0]["value"]["summary"])
        self._send(200, {"success": True, "commitOid": sha, "commitUrl": f"{self.hub.address}/{name}/commit/{sha}"})

    def _resolve(self, name: str, revision: str, file: str) -> None:
        commit = self._commit_of(self._repository(name), revision)
        if file not in commit.files:
            return self._send(404, {"error": "Entry not found"}, code="EntryNotFound", commit=commit.sha)
        content = commit.files[file]
        start = int((self.headers.get("Range") or "bytes=0-").removeprefix("bytes=").split("-")[0])
        self.send_response(206 if start else 200)
        self.send_header("X-Repo-Commit", commit.sha)
        self.send_header("ETag", f'"{_oid(content)}"')
        self.send_header("Content-Length", str(len(content) - start))
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.end_headers()
        if self.command == "HEAD":
            return
        if file in self.hub.cut:
            self.wfile.write(b"" if start else content[: len(content) // 2])
            return self._hang_up()
        self.wfile.write(content[start:])

    def _hang_up(self) -> None:
        self.wfile.flush()
        self.close_connection = True
        self.connection.close()

    def _send(self, status: int, content: Any, *, code: str = "", message: str = "", commit: str = "") -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        for header, value in (("X-Error-Code", code), ("X-Error-Message", message), ("X-Repo-Commit", commit)):
            if value:
                self.send_header(header, value)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


_NAME = r"([^/]+/[^/]+)"
_ROUTES: list[tuple[str, Any]] = [
    (r"/api/repos/create", Handler._create),
    (r"/api/validate-yaml", Handler._validate),
    (rf"/api/models/{_NAME}", Handler._info),
    (rf"/api/models/{_NAME}/revision/(.+)", Handler._info),
    (rf"/api/models/{_NAME}/tree/([^/]+)/?", Handler._tree),
    (rf"/api/models/{_NAME}/branch/(.+)", Handler._branch),
    (rf"/api/models/{_NAME}/preupload/(.+)", Handler._preupload),
    (rf"/api/models/{_NAME}/commit/(.+)", Handler._take_commit),
    (rf"/{_NAME}\.git/info/lfs/objects/batch", Handler._batch),
    (r"/objects/([0-9a-f]{64})", Handler._object),
    (rf"/{_NAME}/resolve/([^/]+)/(.+)", Handler._resolve),
]


@contextmanager
def serve() -> Iterator[Hub]:
    """A hub with the users `hf_write` and `hf_read`, tokens of one user, `me`."""
    hub = Hub()
    handler = type("BoundHandler", (Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    hub.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _oid(content: bytes) -> str:
    if len(content) >= LFS_FROM:
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _tree_entry(path: str, content: bytes) -> dict[str, Any]:
    entry: dict[str, Any] = {"type": "file", "path": path, "size": len(content), "oid": _oid(content)}
    if len(content) >= LFS_FROM:
        entry["lfs"] = {"oid": _oid(content), "size": len(content), "pointerSize": 130}
    return entry
