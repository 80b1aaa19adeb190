"""A hub for tests: a server on loopback that speaks as much of the hub's protocol as is used here.

It keeps repositories with branches of commits, and large files by their sha256. It can refuse a
token, have repositories already, and break off uploads.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import Any
from urllib.parse import unquote, urlsplit

import yaml
from loopback import serving

ID = r"(?P<id>[^/]+/[^/]+)"
TOKEN = "hf_tested"


@dataclass
class Commit:
    oid: str
    message: str
    files: dict[str, bytes]


@dataclass
class Repo:
    private: bool
    branches: dict[str, list[Commit]] = field(default_factory=dict)

    def head(self, branch: str = "main") -> Commit:
        return self.branches[branch][-1]

    def commit(self, branch: str, message: str, files: Mapping[str, bytes]) -> Commit:
        count = sum(map(len, self.branches.values()))
        oid = hashlib.sha1(f"{branch} {count} {message}".encode()).hexdigest()
        self.branches.setdefault(branch, []).append(Commit(oid, message, dict(files)))
        return self.head(branch)


@dataclass
class FakeHub:
    """What the server knows; a test reads and changes it."""

    endpoint: str = ""
    owners: dict[str, set[str]] = field(default_factory=lambda: {TOKEN: {"me"}})
    """The namespaces that each token may write to"""
    repos: dict[str, Repo] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict)
    broken: set[str] = field(default_factory=set)
    """sha256 of the large files whose upload breaks off in the middle"""
    failing: dict[str, int] = field(default_factory=dict)
    """HTTP status by a part of the path that is answered with it"""
    log: list[str] = field(default_factory=list)
    """METHOD path of every request"""
    headers: list[Mapping[str, str]] = field(default_factory=list)

    def add(self, name: str, files: Mapping[str, bytes], private: bool = False) -> Repo:
        repo = self.repos[name] = Repo(private)
        repo.commit("main", "initial commit", {".gitattributes": b"", **files})
        return repo

    def puts(self) -> list[str]:
        """sha256 of every large file whose upload was begun."""
        return [line.rpartition("/")[2] for line in self.log if line.startswith("PUT ")]


@contextmanager
def serve() -> Iterator[FakeHub]:
    """The hub, listening at `endpoint`."""
    hub = FakeHub()
    kind = type("BoundHandler", (Handler,), {"hub": hub})
    with serving(kind) as hub.endpoint:
        yield hub


class Refused(Exception):
    """An answer of this status, with the header by which the hub says what is wrong."""

    def __init__(self, status: int, text: str, code: str = ""):
        super().__init__(text)
        self.status, self.code = status, code


class Handler(BaseHTTPRequestHandler):
    hub: FakeHub
    protocol_version = "HTTP/1.1"

    ROUTES = (
        ("POST", r"/api/repos/create", "create"),
        ("POST", r"/api/validate-yaml", "validate"),
        ("POST", rf"/api/models/{ID}/preupload/(?P<rev>.+)", "preupload"),
        ("POST", rf"/api/models/{ID}/branch/(?P<rev>.+)", "branch"),
        ("POST", rf"/api/models/{ID}/commit/(?P<rev>.+)", "commit"),
        ("GET", rf"/api/models/{ID}", "info"),
        ("GET", rf"/api/models/{ID}/revision/(?P<rev>.+)", "info"),
        ("GET", rf"/api/models/{ID}/tree/(?P<rev>[^/]+)(/.*)?", "tree"),
        ("POST", rf"/{ID}\.git/info/lfs/objects/batch", "batch"),
        ("PUT", r"/lfs/(?P<oid>\w+)", "put"),
        ("POST", r"/lfs/verify", "verify"),
        ("GET", rf"/{ID}/resolve/(?P<rev>[^/]+)/(?P<path>.+)", "resolve"),
    )

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._answer("GET")

    def do_HEAD(self) -> None:
        self._answer("GET")

    def do_POST(self) -> None:
        self._answer("POST")

    def do_PUT(self) -> None:
        self._answer("PUT")

    def _answer(self, method: str) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.log.append(f"{self.command} {path}")
        self.hub.headers.append(dict(self.headers))
        self.length = int(self.headers.get("Content-Length") or 0)
        for wanted, pattern, name in self.ROUTES:
            match = re.fullmatch(pattern, path)
            if match and method == wanted:
                if name == "put":
                    return self.put(match["oid"])
                return self._call(name, path, match.groupdict())
        self.rfile.read(self.length)
        self._send(404, {"error": "no such page"})

    def _call(self, name: str, path: str, parts: dict[str, str]) -> None:
        body = self.rfile.read(self.length)
        try:
            for part, status in self.hub.failing.items():
                if part in path:
                    raise Refused(status, f"sent {self.headers.get('Authorization')}")
            getattr(self, name)(body, **parts)
        except Refused as error:
            self._send(error.status, {"error": str(error)}, {"X-Error-Code": error.code})

    def _send(self, status: int, content: Any, headers: Mapping[str, str] | None = None) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in (headers or {}).items():
            if value:
                self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    # --- who may do what --------------------------------------------------------------------------

    def _owners(self) -> set[str]:
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        if token not in self.hub.owners:
            raise Refused(401, "Invalid username or password.")
        return self.hub.owners[token]

    def _may_write(self, name: str) -> None:
        if name.partition("/")[0] not in self._owners():
            raise Refused(403, "You don't have the rights to write here.")

    def _repo(self, name: str) -> Repo:
        repo = self.hub.repos.get(name)
        if repo is not None and not repo.private:
            return repo
        mine = name.partition("/")[0] in self._owners()
        if repo is None or not mine:
            raise Refused(404, "Repository not found", "RepoNotFound")
        return repo

    def _head(self, name: str, rev: str) -> Commit:
        repo = self._repo(name)
        for commits in repo.branches.values():
            for commit in commits:
                if commit.oid == rev:
                    return commit
        if rev not in repo.branches:
            raise Refused(404, "Invalid rev id", "RevisionNotFound")
        return repo.head(rev)

    # --- repositories -----------------------------------------------------------------------------

    def create(self, body: bytes) -> None:
        asked = json.loads(body)
        name = f"{asked['organization']}/{asked['name']}"
        self._may_write(name)
        if name in self.hub.repos:
            raise Refused(409, "You already created this model repo")
        self.hub.add(name, {}, private=asked.get("visibility") == "private")
        self._send(200, {"url": f"{self.hub.endpoint}/{name}", "name": name})

    def branch(self, body: bytes, id: str, rev: str) -> None:
        self._may_write(id)
        repo = self._repo(id)
        if rev in repo.branches:
            raise Refused(409, "Reference already exists")
        repo.branches[rev] = [repo.head()]
        self._send(200, {})

    def info(self, body: bytes, id: str, rev: str = "main") -> None:
        head = self._head(id, rev)
        facts = {"_id": id, "id": id, "modelId": id, "tags": [], "downloads": 0, "likes": 0}
        files = [{"rfilename": name} for name in head.files]
        self._send(
            200,
            {**facts, "sha": head.oid, "private": self._repo(id).private, "siblings": files},
        )

    def tree(self, body: bytes, id: str, rev: str, **_: str) -> None:
        files = self._head(id, rev).files
        rows = [
            {"type": "file", "path": name, "size": len(data), "oid": _oid(name, data)}
            for name, data in files.items()
        ]
        self._send(200, rows)

    def resolve(self, body: bytes, id: str, rev: str, path: str) -> None:
        head = self._head(id, rev)
        if path not in head.files:
            raise Refused(404, "Entry not found", "EntryNotFound")
        data = head.files[path]
        headers = {"X-Repo-Commit": head.oid, "ETag": f'"{_oid(path, data)}"'}
        if _is_large(path):
            headers |= {"X-Linked-Etag": headers["ETag"], "X-Linked-Size": str(len(data))}
        if self.command == "HEAD":  # of the length that a GET would have
            self.send_response(200)
            for name, value in {**headers, "Content-Length": str(len(data))}.items():
                self.send_header(name, value)
            return self.end_headers()
        return self._send(200, data, headers)

    # --- uploads ----------------------------------------------------------------------------------

    def validate(self, body: bytes) -> None:
        text = json.loads(body)["content"]
        match = re.match(r"---\n(.*?)\n---\n", text, re.DOTALL)
        try:
            front = yaml.safe_load(match[1]) if match else None
        except yaml.YAMLError as error:
            front = str(error)
        if not isinstance(front, dict):
            return self._send(400, {"errors": [{"message": f"no mapping: {front}"}]})
        return self._send(200, {"errors": [], "warnings": []})

    def preupload(self, body: bytes, id: str, rev: str) -> None:
        self._may_write(id)
        files = self._head(id, rev).files
        rows = [
            {
                "path": one["path"],
                "uploadMode": "lfs" if _is_large(one["path"]) else "regular",
                "shouldIgnore": False,
                "oid": _oid(one["path"], files[one["path"]]) if one["path"] in files else None,
            }
            for one in json.loads(body)["files"]
        ]
        self._send(200, {"files": rows})

    def batch(self, body: bytes, id: str) -> None:
        self._may_write(id)
        objects = []
        for one in json.loads(body)["objects"]:
            if one["oid"] not in self.hub.objects:
                href = f"{self.hub.endpoint}/lfs"
                one["actions"] = {
                    "upload": {"href": f"{href}/{one['oid']}"},
                    "verify": {"href": f"{href}/verify"},
                }
            objects.append(one)
        self._send(200, {"transfer": "basic", "objects": objects})

    def put(self, oid: str) -> None:
        if oid in self.hub.broken:
            self.rfile.read(self.length // 2)
            self.close_connection = True
            self.connection.close()
            return
        data = self.rfile.read(self.length)
        assert hashlib.sha256(data).hexdigest() == oid
        self.hub.objects[oid] = data
        self._send(200, {})

    def verify(self, body: bytes) -> None:
        one = json.loads(body)
        if len(self.hub.objects.get(one["oid"], b"")) != one["size"]:
            raise Refused(400, "the object is not there")
        self._send(200, {})

    def commit(self, body: bytes, id: str, rev: str) -> None:
        """All of it or nothing."""
        self._may_write(id)
        head = self._head(id, rev)
        files, message = dict(head.files), ""
        for line in body.splitlines():
            entry = json.loads(line)
            key, value = entry["key"], entry["value"]
            if key == "header":
                message = value["summary"]
                if value.get("parentCommit") not in (None, head.oid):
                    raise Refused(412, "The branch has moved on")
            elif key == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif key == "lfsFile":
                if value["oid"] not in self.hub.objects:
                    raise Refused(400, "a large file was never uploaded")
                files[value["path"]] = self.hub.objects[value["oid"]]
            elif key == "deletedFile":
                del files[value["path"]]
        oid = self._repo(id).commit(rev, message, files).oid
        url = f"{self.hub.endpoint}/{id}/commit/{oid}"
        self._send(200, {"success": True, "commitOid": oid, "commitUrl": url})


def _is_large(path: str) -> bool:
    return path.endswith(".safetensors")


def _oid(path: str, data: bytes) -> str:
    """git's name of a file, or the sha256 of a large one."""
    if _is_large(path):
        return hashlib.sha256(data).hexdigest()
    return hashlib.sha1(f"blob {len(data)}\0".encode() + data).hexdigest()
