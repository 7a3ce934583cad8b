"""A stand-in for the Hugging Face Hub on the loopback interface: the endpoints that the real client uses, and faults.

Repositories lie in memory. Large files go by LFS, in one part or several, and come from another host than the Hub's,
as on the real one. `Faults` cuts connections at seeded bytes. Everything that was asked and sent is kept.
"""

import base64
import hashlib
import json
import random
import re
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

TOKEN = "hf_StandInTokenThatMustNeverBeSeen0123456789"
READER = "hf_AnotherTokenThatMayOnlyReadSeen9876543210"
USERS = {TOKEN: "tester", READER: "reader"}
LFS_FROM = 2000  # [bytes] larger files are LFS, whatever their name


@dataclass
class Faults:
    """What goes wrong: `downloads` and `uploads` are how many transfers are cut at most, each at a random byte.

    Of downloads seven in ten, by lot, so that not all cuts meet the first file.
    """

    seed: int = 0
    downloads: int = 0
    uploads: int = 0
    after_bytes: int | None = None  # downloads: from then on no connection gives anything
    hang: bool = False  # it stays open instead of being cut
    damage: dict[str, Callable[[bytes], bytes]] = field(default_factory=dict)  # path -> what is sent instead

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)


@dataclass
class Repo:
    private: bool
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)

    def commit(self, branch: str, files: dict[str, bytes]) -> str:
        text = json.dumps([len(self.commits), branch, {k: hashlib.sha256(v).hexdigest() for k, v in files.items()}])
        sha = hashlib.sha1(text.encode()).hexdigest()
        self.commits[sha] = files
        self.branches[branch] = sha
        return sha

    def at(self, revision: str) -> str | None:
        sha = self.branches.get(revision, revision)
        return sha if sha in self.commits else None


@dataclass
class Asked:
    method: str
    path: str
    host: str
    token: str  # "" where none was sent
    start: int = 0  # of the range


class Hub:
    """The server; use it as a context. `chunk`: parts of a large upload [bytes]."""

    def __init__(self, chunk: int = 1 << 30) -> None:
        self.repos: dict[tuple[str, str], Repo] = {}
        self.store: dict[str, bytes] = {}  # LFS: sha256 -> content
        self.parts: dict[str, dict[int, bytes]] = {}
        self.faults = Faults()
        self.chunk = chunk
        self.asked: list[Asked] = []
        self.sent = self.received = 0  # [bytes] of files
        self.cuts = 0
        self.lock = threading.Lock()
        self.hung, self.closing = threading.Event(), threading.Event()
        hub = self

        class Handler(_Handler):
            pass

        Handler.hub = hub
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.port = self.server.server_address[1]
        self.endpoint = f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> "Hub":
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.closing.set()
        self.server.shutdown()
        self.server.server_close()

    def files(self, repo: str, kind: str = "model", revision: str = "main") -> dict[str, bytes]:
        found = self.repos[kind, repo]
        sha = found.at(revision)
        assert sha is not None
        return found.commits[sha]

    def everything(self) -> bytes:
        """All that was ever committed or uploaded."""
        blobs = [b for r in self.repos.values() for c in r.commits.values() for b in c.values()]
        return b"\n".join([*blobs, *self.store.values()])


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing on the terminal."""

    def do_GET(self) -> None:
        self.answer()

    def do_HEAD(self) -> None:
        self.answer()

    def do_POST(self) -> None:
        self.answer()

    def do_PUT(self) -> None:
        self.answer()

    def answer(self) -> None:
        url = urlsplit(self.path)
        self.query, path = parse_qs(url.query), unquote(url.path)
        self.token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        start = re.match(r"bytes=(\d+)-", self.headers.get("Range") or "")
        self.start = int(start[1]) if start else 0
        self.hub.asked.append(Asked(self.command, self.path, self.headers.get("Host") or "", self.token, self.start))
        if path.startswith("/upload/"):
            return self.upload(path)
        if path.startswith("/cdn/"):
            _, _, oid, name = path.split("/", 3)
            return self.content(self.hub.store[oid], name, {"ETag": f'"{oid}"'})
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.token and self.token not in USERS:
            return self.refuse(401, "Invalid credentials in Authorization header")
        for pattern, method in _ROUTES:
            if match := re.fullmatch(pattern, path):
                return getattr(self, method)(*match.groups())
        return self.refuse(404, f"no endpoint {path}")

    def json(self, content: Any, status: int = 200) -> None:
        data = json.dumps(content).encode()
        self.head(status, {"Content-Type": "application/json", "Content-Length": str(len(data))})
        self.wfile.write(data)

    def head(self, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def refuse(self, status: int, message: str, code: str = "") -> None:
        data = json.dumps({"error": message}).encode()
        headers = {"X-Error-Message": message, "Content-Length": str(len(data)), "Content-Type": "application/json"}
        self.head(status, headers | ({"X-Error-Code": code} if code else {}))
        if self.command != "HEAD":
            self.wfile.write(data)

    # Accounts and repositories

    def whoami(self) -> None:
        if not self.token:
            return self.refuse(401, "Invalid username or password.")
        return self.json({"type": "user", "name": USERS[self.token], "auth": {"type": "access_token"}})

    def create(self) -> None:
        asked = json.loads(self.body)
        owner = asked.get("organization") or USERS.get(self.token, "")
        if not self.may_write(owner):
            return self.refuse(403, "You don't have the rights to create a model under this namespace")
        key = (asked.get("type") or "model", f"{owner}/{asked['name']}")
        if key in self.hub.repos:
            return self.refuse(409, "You already created this repo")
        private = asked.get("visibility") == "private" or bool(asked.get("private"))
        self.hub.repos[key] = Repo(private)
        self.hub.repos[key].commit("main", {".gitattributes": b"*.safetensors filter=lfs\n"})
        prefix = "" if key[0] == "model" else f"{key[0]}s/"
        return self.json({"url": f"{self.hub.endpoint}/{prefix}{key[1]}"})

    def validate(self) -> None:
        asked = json.loads(self.body)
        try:
            fields = yaml.safe_load(asked["content"].split("---\n")[1])
            assert isinstance(fields, dict), "no mapping"
        except (yaml.YAMLError, IndexError, AssertionError) as error:
            return self.json({"errors": [{"message": str(error)}], "warnings": []}, 400)
        return self.json({"errors": [], "warnings": []})

    def may_write(self, owner: str) -> bool:
        return self.token == TOKEN and owner == USERS[TOKEN]

    def repo(self, kind: str, name: str) -> Repo | None:
        """The repository, or None after a refusal."""
        found = self.hub.repos.get((kind, name))
        if found is None or (found.private and USERS.get(self.token) != name.split("/")[0]):
            self.refuse(404 if self.token else 401, "Repository not found", "RepoNotFound")
            return None
        return found

    def info(self, kind: str, name: str, revision: str | None = None) -> None:
        if (repo := self.repo(kind, name)) is None:
            return None
        sha = repo.at(revision or "main")
        if sha is None:
            return self.refuse(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        siblings = [{"rfilename": p, "size": len(b)} for p, b in repo.commits[sha].items()]
        return self.json({"id": name, "sha": sha, "private": repo.private, "siblings": siblings, "tags": []})

    def tree(self, kind: str, name: str, revision: str) -> None:
        if (repo := self.repo(kind, name)) is None:
            return None
        files = repo.commits[repo.at(revision) or ""]
        return self.json([{"type": "file", "path": p, "size": len(b), "oid": git(b)} for p, b in files.items()])

    def refs(self, kind: str, name: str) -> None:
        if (repo := self.repo(kind, name)) is None:
            return None
        rows = [{"name": b, "ref": f"refs/heads/{b}", "targetCommit": s} for b, s in repo.branches.items()]
        return self.json({"branches": rows, "converts": [], "tags": []})

    def branch(self, kind: str, name: str, branch: str) -> None:
        if (repo := self.repo(kind, name)) is None:
            return None
        repo.branches[branch] = repo.branches["main"]
        return self.json({})

    # Publishing

    def preupload(self, kind: str, name: str, revision: str) -> None:
        if (repo := self.repo(kind, name)) is None:
            return None
        if not self.may_write(name.split("/")[0]):
            return self.refuse(403, "Forbidden: pass `create_pr=1` as a query parameter to create a Pull Request")
        sha = repo.at(revision)
        if sha is None:
            return self.refuse(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        rows = []
        for file in json.loads(self.body)["files"]:
            lfs = file["size"] > LFS_FROM
            there = repo.commits[sha].get(file["path"])
            oid = None if there is None else hashlib.sha256(there).hexdigest() if lfs else git(there)
            mode = "lfs" if lfs else "regular"
            rows.append({"path": file["path"], "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        return self.json({"files": rows})

    def batch(self, prefix: str, name: str) -> None:
        rows = []
        for entry in json.loads(self.body)["objects"]:
            oid, size = entry["oid"], entry["size"]
            row: dict[str, Any] = {"oid": oid, "size": size}
            if oid not in self.hub.store:
                href = f"{self.hub.endpoint}/upload/{oid}"
                upload: dict[str, Any] = {"href": href}
                if size > self.hub.chunk:
                    count = -(-size // self.hub.chunk)
                    urls = {str(i + 1): f"{href}/{i + 1}" for i in range(count)}
                    upload = {"href": f"{href}/complete", "header": {"chunk_size": str(self.hub.chunk), **urls}}
                row["actions"] = {"upload": upload, "verify": {"href": f"{self.hub.endpoint}/verify"}}
            rows.append(row)
        return self.json({"transfer": "basic", "objects": rows})

    def upload(self, path: str) -> None:
        """One part or the whole of an LFS file; it may be cut."""
        _, _, oid, *part = path.split("/")
        length = int(self.headers.get("Content-Length") or 0)
        faults = self.hub.faults
        if part == ["complete"]:
            self.rfile.read(length)
            content = b"".join(b for _, b in sorted(self.hub.parts.pop(oid).items()))
            return self.stored(oid, content)
        stop = length
        with self.hub.lock:
            if faults.uploads > 0 and length > 1000:
                faults.uploads -= 1
                stop = faults.random.randrange(length)
        content = self.rfile.read(stop)
        with self.hub.lock:
            self.hub.received += len(content)
        if stop < length:
            return self.cut()
        if part:
            self.hub.parts.setdefault(oid, {})[int(part[0])] = content
            return self.head(200, {"ETag": f'"{hashlib.md5(content).hexdigest()}"', "Content-Length": "0"})
        return self.stored(oid, content)

    def stored(self, oid: str, content: bytes) -> None:
        if hashlib.sha256(content).hexdigest() != oid:
            return self.refuse(400, "not the content of this hash")
        self.hub.store[oid] = content
        return self.head(200, {"Content-Length": "0"})

    def verify(self) -> None:
        asked = json.loads(self.body)
        right = len(self.hub.store.get(asked["oid"], b"")) == asked["size"]
        return self.json({}) if right else self.refuse(400, "size differs")

    def commit(self, kind: str, name: str, revision: str) -> None:
        if (repo := self.repo(kind, name)) is None:
            return None
        files = dict(repo.commits[repo.branches[revision]])
        for line in self.body.splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                files[value["path"]] = self.hub.store[value["oid"]]
            elif entry["key"] == "deletedFile":
                del files[value["path"]]
        sha = repo.commit(revision, files)
        prefix = "" if kind == "model" else f"{kind}s/"
        url = f"{self.hub.endpoint}/{prefix}{name}/commit/{sha}"
        return self.json({"commitUrl": url, "commitOid": sha, "pullRequestUrl": None})

    # Fetching

    def resolve(self, prefix: str | None, name: str, revision: str, path: str) -> None:
        if (repo := self.repo("dataset" if prefix else "model", name)) is None:
            return None
        sha = repo.at(revision)
        content = repo.commits[sha].get(path) if sha else None
        if sha is None or content is None:
            return self.refuse(404, "Entry not found", "EntryNotFound" if sha else "RevisionNotFound")
        headers = {"X-Repo-Commit": sha, "ETag": f'"{git(content)}"'}
        if len(content) <= LFS_FROM:
            return self.content(content, path, headers)
        oid = hashlib.sha256(content).hexdigest()
        self.hub.store[oid] = content
        linked = {"X-Linked-Size": str(len(content)), "X-Linked-ETag": f'"{oid}"', "X-Repo-Commit": sha}
        place = f"http://localhost:{self.hub.port}/cdn/{oid}/{path}"  # another host than the Hub's
        return self.head(302, {"Location": place, "Content-Length": "0", **linked})

    def content(self, content: bytes, path: str, headers: dict[str, str]) -> None:
        """The bytes of a file from the start of the range that was asked for; it may be cut."""
        faults = self.hub.faults
        content = faults.damage.get(path, lambda b: b)(content)
        if self.start >= len(content) > 0:
            return self.refuse(416, "no such range")
        data = content[self.start :]
        headers = {**headers, "Content-Length": str(len(data)), "Accept-Ranges": "bytes"}
        if self.start:
            headers["Content-Range"] = f"bytes {self.start}-{len(content) - 1}/{len(content)}"
        stop = len(data)
        with self.hub.lock:
            if faults.downloads > 0 and len(data) > 1000 and faults.random.random() < 0.7:
                faults.downloads -= 1
                stop = faults.random.randrange(len(data))
            if faults.after_bytes is not None and len(content) > LFS_FROM:
                stop = min(stop, max(faults.after_bytes - self.hub.sent, 0))
            self.hub.sent += stop if self.command == "GET" else 0
        self.head(206 if self.start else 200, headers)
        if self.command == "HEAD":
            return None
        with suppress(OSError):
            self.wfile.write(data[:stop])
            self.wfile.flush()
        if stop < len(data) and faults.hang:
            self.hub.hung.set()
            self.hub.closing.wait(60)
        return self.cut() if stop < len(data) else None

    def cut(self) -> None:
        """The connection ends here, whatever was promised."""
        with self.hub.lock:
            self.hub.cuts += 1
        self.close_connection = True
        with suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)


def git(content: bytes) -> str:
    """The hash that git gives a file."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


_NAME = r"([\w.-]+/[\w.-]+)"
_API = rf"/api/(model|dataset)s/{_NAME}"
_ROUTES = [
    (r"/api/whoami-v2", "whoami"),
    (r"/api/repos/create", "create"),
    (r"/api/validate-yaml", "validate"),
    (_API, "info"),
    (rf"{_API}/revision/(.+)", "info"),
    (rf"{_API}/tree/(.+?)/?", "tree"),
    (rf"{_API}/refs", "refs"),
    (rf"{_API}/branch/(.+)", "branch"),
    (rf"{_API}/preupload/(.+)", "preupload"),
    (rf"{_API}/commit/(.+)", "commit"),
    (rf"/(datasets/)?{_NAME}\.git/info/lfs/objects/batch", "batch"),
    (r"/verify", "verify"),
    (rf"/(datasets/)?{_NAME}/resolve/([^/]+)/(.+)", "resolve"),
]
