"""
A small Hub on the loopback interface, for real clients of `huggingface_hub`: repositories, commits, branches, tags, large
files, tokens. And what goes wrong: refusals, and connections that die.
"""

import base64
import hashlib
import json
import re
import threading
from collections import deque
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

import yaml


LFS_SUFFIXES = (".safetensors", ".parquet", ".bin", ".pt", ".arrow")
TASKS = {"text-generation", "text-classification"}
LICENSES = {"apache-2.0", "mit", "gemma", "llama3.1"}


@dataclass
class Repository:
    kind: str  # "models" or "datasets"
    name: str
    private: bool = False
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)  # sha -> path -> content
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)

    def commit(self, files: dict[str, bytes], branch: str = "main") -> str:
        sha = hashlib.sha1(f"{self.name} {len(self.commits)}".encode()).hexdigest()
        self.commits[sha] = files
        self.branches[branch] = sha
        return sha

    def resolve(self, revision: str) -> str | None:
        sha = self.branches.get(revision) or self.tags.get(revision) or revision
        return sha if sha in self.commits else None


@dataclass
class Fault:
    """What the next request of a method and a path does instead: answer with a status, or `"die"`."""

    method: str
    path: str  # a regular expression
    what: int | str


class Hub:
    """
    A Hub that lives as long as the `with` block.

    Args:
        users (`dict[str, str]`):
            The user of each token.
    """

    def __init__(self, users: dict[str, str]):
        self.users = users
        self.repositories: dict[tuple[str, str], Repository] = {}
        self.objects: dict[str, bytes] = {}  # large files by their SHA-256
        self.faults: deque[Fault] = deque()
        self.requests: list[str] = []
        handler = type("HubHandler", (Handler,), {"hub": self})
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def __enter__(self) -> "Hub":
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_) -> None:
        self.server.shutdown()
        self.server.server_close()

    def files(self, name: str, kind: str = "models", revision: str = "main") -> dict[str, bytes]:
        repository = self.repositories[kind, name]
        return repository.commits[repository.resolve(revision)]


class Refusal(Exception):
    def __init__(self, status: int, code: str = "", **headers):
        super().__init__(status, code)
        self.status, self.headers = status, {**({"X-Error-Code": code} if code else {}), **headers}


class Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_) -> None:
        pass

    def handle_any(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append(f"{self.command} {path}")
        fault = self._take_fault(path)
        try:
            if fault == "die":
                self.rfile.read(min(1000, int(self.headers.get("Content-Length") or 0)))
                self.close_connection = True
                self.connection.close()
                return
            self.body = self._read_body()
            if fault is not None:
                raise Refusal(fault)
            self._answer(path)
        except Refusal as refusal:
            self._send(refusal.status, {"error": f"refused: {refusal.status}"}, **refusal.headers)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = handle_any

    def _take_fault(self, path: str) -> int | str | None:
        for fault in self.hub.faults:
            if fault.method == self.command and re.search(fault.path, path):
                self.hub.faults.remove(fault)
                return fault.what
        return None

    def _read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            chunks = []
            while size := int(self.rfile.readline(), 16):
                chunks.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(chunks)
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _send(self, status: int, content: dict | list | bytes = b"", **headers) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    @property
    def user(self) -> str | None:
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if token and token not in self.hub.users:
            raise Refusal(401)
        return self.hub.users.get(token)

    def _answer(self, path: str) -> None:
        for method, pattern, name in ROUTES:
            match = re.fullmatch(pattern, path)
            if match and self.command in method.split():
                getattr(self, name)(**match.groupdict())
                return
        raise Refusal(404, "EntryNotFound")

    def _find(self, kind: str | None, name: str, write: bool = False) -> Repository:
        repository = self.hub.repositories.get((kind or "models", name))
        owner = name.split("/")[0]
        if repository is None or (repository.private and self.user != owner):
            raise Refusal(404 if self.user else 401, "RepoNotFound")
        if write and self.user is None:
            raise Refusal(401)
        if write and self.user != owner:
            raise Refusal(403)
        return repository

    def _resolve(self, repository: Repository, revision: str) -> str:
        sha = repository.resolve(revision)
        if sha is None:
            raise Refusal(404, "RevisionNotFound")
        return sha

    def whoami(self) -> None:
        if self.user is None:
            raise Refusal(401)
        self._send(200, {"type": "user", "name": self.user, "orgs": [], "auth": {"accessToken": {"role": "write"}}})

    def validate_yaml(self) -> None:
        content = json.loads(self.body)["content"]
        metadata = yaml.safe_load(content.split("---")[1]) if content.startswith("---") else {}
        errors = [{"message": message} for message in metadata_errors(metadata or {})]
        self._send(400 if errors else 200, {"errors": errors, "warnings": []})

    def create(self) -> None:
        if self.user is None:
            raise Refusal(401)
        request = json.loads(self.body)
        kind = request.get("type", "model") + "s"
        owner = request.get("organization") or self.user
        if owner != self.user:
            raise Refusal(403)
        name = f"{owner}/{request['name']}"
        answer = {"url": f"{self.hub.url}/{'datasets/' if kind == 'datasets' else ''}{name}", "name": name, "id": name}
        if (kind, name) in self.hub.repositories:
            self._send(409, answer)
            return
        repository = Repository(kind, name, private=request.get("private") or request.get("visibility") == "private")
        repository.commit({})
        self.hub.repositories[kind, name] = repository
        self._send(200, answer)

    def info(self, kind: str, name: str, revision: str | None = None) -> None:
        repository = self._find(kind, name)
        sha = self._resolve(repository, revision or "main")
        siblings = [{"rfilename": path} for path in repository.commits[sha]]
        self._send(
            200,
            {
                "id": name, "modelId": name, "sha": sha, "private": repository.private, "gated": False, "disabled": False,
                "tags": [], "siblings": siblings, "downloads": 0, "likes": 0,
                "lastModified": "2026-01-01T00:00:00.000Z", "createdAt": "2026-01-01T00:00:00.000Z",
            },
        )  # fmt: skip

    def refs(self, kind: str, name: str) -> None:
        repository = self._find(kind, name)
        branches, tags = (
            [{"name": ref, "ref": f"refs/{where}/{ref}", "targetCommit": sha} for ref, sha in refs.items()]
            for where, refs in (("heads", repository.branches), ("tags", repository.tags))
        )
        self._send(200, {"branches": branches, "tags": tags, "converts": []})

    def tag(self, kind: str, name: str, revision: str) -> None:
        repository = self._find(kind, name, write=True)
        tag = json.loads(self.body)["tag"]
        if tag in repository.tags:
            raise Refusal(409)
        repository.tags[tag] = self._resolve(repository, revision)
        self._send(200, {})

    def branch(self, kind: str, name: str, revision: str) -> None:
        repository = self._find(kind, name, write=True)
        start = json.loads(self.body or b"{}").get("startingPoint") or "main"
        repository.branches[revision] = self._resolve(repository, start)
        self._send(200, {})

    def preupload(self, kind: str, name: str, revision: str) -> None:
        repository = self._find(kind, name, write=True)
        hosted = repository.commits[self._resolve(repository, revision)].get(".gitignore", b"").decode()
        request = json.loads(self.body)
        ignored = request.get("gitIgnore", hosted).split()
        files = [
            {
                "path": file["path"],
                "uploadMode": "lfs" if file["path"].endswith(LFS_SUFFIXES) else "regular",
                "shouldIgnore": is_ignored(file["path"], ignored),
                "oid": None,
            }
            for file in request["files"]
        ]
        self._send(200, {"files": files})

    def lfs_batch(self, name: str, kind: str | None = None) -> None:
        self._find(kind, name, write=True)
        objects = []
        for item in json.loads(self.body)["objects"]:
            href = f"{self.hub.url}/objects/{item['oid']}"
            if item["oid"] not in self.hub.objects:
                item["actions"] = {"upload": {"href": href}, "verify": {"href": f"{href}/verify"}}
            objects.append(item)
        self._send(200, {"transfer": "basic", "objects": objects})

    def upload(self, oid: str) -> None:
        if hashlib.sha256(self.body).hexdigest() != oid:
            raise Refusal(400)
        self.hub.objects[oid] = self.body
        self._send(200)

    def verify(self, oid: str) -> None:
        self._send(200 if oid in self.hub.objects else 404)

    def commit(self, kind: str, name: str, revision: str) -> None:
        repository = self._find(kind, name, write=True)
        files = dict(repository.commits[self._resolve(repository, revision)])
        for line in self.body.splitlines():
            operation = json.loads(line)
            value = operation["value"]
            if operation["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif operation["key"] == "lfsFile":
                if value["oid"] not in self.hub.objects:
                    raise Refusal(400)
                files[value["path"]] = self.hub.objects[value["oid"]]
            elif operation["key"] in ("deletedFile", "deletedFolder"):
                gone = value["path"].rstrip("/")
                files = {path: content for path, content in files.items() if f"{path}/".find(f"{gone}/") != 0}
        sha = repository.commit(files, revision)
        self._send(200, {"success": True, "commitOid": sha, "commitUrl": f"{self.hub.url}/{name}/commit/{sha}"})

    def tree(self, kind: str, name: str, revision: str, folder: str = "") -> None:
        repository = self._find(kind, name)
        files = repository.commits[self._resolve(repository, revision)]
        prefix = f"{folder.strip('/')}/" if folder.strip("/") else ""
        below = [path for path in files if path.startswith(prefix)]
        if prefix and not below:
            raise Refusal(404, "EntryNotFound")
        recursive = parse_qs(urlsplit(self.path).query).get("recursive", ["false"])[0].lower() in ("true", "1")
        entries = [entry(path, files[path]) for path in below if recursive or "/" not in path[len(prefix) :]]
        folders = {prefix + path[len(prefix) :].split("/")[0] for path in below if "/" in path[len(prefix) :]}
        self._send(200, [*({"type": "directory", "path": path, "oid": "0", "size": 0} for path in folders), *entries])

    def paths_info(self, kind: str, name: str, revision: str) -> None:
        repository = self._find(kind, name)
        files = repository.commits[self._resolve(repository, revision)]
        if self.headers.get("Content-Type", "").startswith("application/json"):
            paths = json.loads(self.body)["paths"]
        else:
            paths = parse_qs(self.body.decode())["paths"]
        found = [entry(path, files[path]) for path in paths if path in files]
        folders = [path for path in paths if any(file.startswith(f"{path.rstrip('/')}/") for file in files)]
        self._send(200, [*found, *({"type": "directory", "path": path, "oid": "0", "size": 0} for path in folders)])

    def file(self, name: str, revision: str, path: str, kind: str | None = None) -> None:
        repository = self._find(kind, name)
        sha = self._resolve(repository, revision)
        content = repository.commits[sha].get(path)
        if content is None:
            raise Refusal(404, "EntryNotFound", **{"X-Repo-Commit": sha})
        etag = f'"{hashlib.sha256(content).hexdigest()}"'
        headers = {"ETag": etag, "X-Repo-Commit": sha}
        if path.endswith(LFS_SUFFIXES):
            headers |= {"X-Linked-Etag": etag, "X-Linked-Size": str(len(content))}
        start = re.match(r"bytes=(\d+)-", self.headers.get("Range", ""))
        if start is not None:
            headers["Content-Range"] = f"bytes {start[1]}-{len(content) - 1}/{len(content)}"
            content = content[int(start[1]) :]
        self._send(206 if start else 200, content, **headers)


_KIND, _NAME, _REVISION = r"/api/(?P<kind>models|datasets)", r"(?P<name>[^/]+/[^/]+)", r"(?P<revision>[^/]+)"
_GIT = r"/(?:(?P<kind>datasets)/)?"
ROUTES = [
    ("GET", "/api/whoami-v2", "whoami"),
    ("POST", "/api/validate-yaml", "validate_yaml"),
    ("POST", "/api/repos/create", "create"),
    ("GET", f"{_KIND}/{_NAME}(?:/revision/{_REVISION})?", "info"),
    ("GET", f"{_KIND}/{_NAME}/refs", "refs"),
    ("POST", f"{_KIND}/{_NAME}/tag/{_REVISION}", "tag"),
    ("POST", f"{_KIND}/{_NAME}/branch/{_REVISION}", "branch"),
    ("POST", f"{_KIND}/{_NAME}/preupload/{_REVISION}", "preupload"),
    ("POST", f"{_KIND}/{_NAME}/commit/{_REVISION}", "commit"),
    ("POST", f"{_KIND}/{_NAME}/paths-info/{_REVISION}", "paths_info"),
    ("GET", f"{_KIND}/{_NAME}/tree/{_REVISION}(?P<folder>(?:/.*)?)", "tree"),
    ("POST", rf"{_GIT}{_NAME}\.git/info/lfs/objects/batch", "lfs_batch"),
    ("PUT", r"/objects/(?P<oid>\w+)", "upload"),
    ("POST", r"/objects/(?P<oid>\w+)/verify", "verify"),
    ("GET HEAD", rf"{_GIT}{_NAME}/resolve/{_REVISION}/(?P<path>.+)", "file"),
]


def is_ignored(path: str, patterns: list[str]) -> bool:
    """Whether names of files or folders in a `.gitignore` hold a path back."""
    *folders, name = path.split("/")
    return name in patterns or not {f"{folder}/" for folder in folders}.isdisjoint(patterns)


def entry(path: str, content: bytes) -> dict:
    """A file, as the Hub lists it."""
    found = {"type": "file", "path": path, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
    if path.endswith(LFS_SUFFIXES):
        found["lfs"] = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 130}
    return found


def metadata_errors(metadata: dict) -> list[str]:
    """What the Hub's schema has against the metadata of a card."""
    errors = []

    def check(where: str, value, allowed) -> None:
        if not allowed(value):
            errors.append(f"{where}: {value!r} is not allowed")

    def is_repository(value) -> bool:
        return isinstance(value, str) and re.fullmatch(r"[\w.-]+(/[\w.-]+)?", value) is not None

    def is_text(value) -> bool:
        return isinstance(value, str) and value != ""

    for key in ("base_model", "datasets"):
        values = metadata.get(key, [])
        for value in values if isinstance(values, list) else [values]:
            check(key, value, is_repository)
    for key, allowed in (
        ("license", LICENSES.__contains__),
        ("pipeline_tag", TASKS.__contains__),
        ("library_name", is_text),
    ):
        if key in metadata:
            check(key, metadata[key], allowed)
    for tag in metadata.get("tags", []):
        check("tags", tag, is_text)
    for model in metadata.get("model-index", []):
        check("model-index.name", model.get("name"), is_text)
        check("model-index.results", model.get("results"), lambda value: isinstance(value, list) and value)
        for result in model["results"]:
            check("task.type", result["task"].get("type"), TASKS.__contains__)
            for key in ("type", "name"):
                check(f"dataset.{key}", result["dataset"].get(key), is_text)
            check("metrics", result.get("metrics"), lambda value: isinstance(value, list) and value)
            for metric in result["metrics"]:
                check("metric.type", metric.get("type"), is_text)
                check("metric.value", metric.get("value"), lambda value: isinstance(value, (int, float, str)))
    return errors
