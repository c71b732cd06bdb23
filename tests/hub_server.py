"""
A Hub on loopback, which the real `huggingface_hub` client pushes to and pulls from over HTTP: models, datasets,
commits, branches, tags, LFS uploads, partial downloads, tokens, and failures on demand. It keeps all in memory.

    with HubServer() as hub:
        subprocess.run(command, env={**os.environ, **hub.environment(cache, TOKEN)})
        hub.files("user/model")  # {"config.json": b"{...", ...}
        hub.fail("GET", r"model\\.safetensors", status=503)  # the next such request
"""

import base64
import hashlib
import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import PurePosixPath
from urllib.parse import parse_qs, unquote, urlsplit

from huggingface_hub import DatasetCard, ModelCard

TOKEN = "hf_of_the_owner"
LFS_SUFFIXES = (".safetensors", ".parquet", ".png", ".wav", ".bin", ".pt")
CUT_AFTER = 1000  # bytes of an upload
REPO = r"/api/(?P<kind>models|datasets)/(?P<name>[^/]+/[^/]+)"
PLACE = r"/(?P<kind>datasets/)?(?P<name>[^/]+/[^/]+)"
ROUTES = {  # method and path of a request -> the method of `Handler` that answers it
    r"POST /api/repos/create": "create_repository",
    r"POST /api/validate-yaml": "validate_card",
    rf"GET {REPO}(/revision/(?P<revision>[^/]+))?": "describe",
    rf"GET {REPO}/tree/(?P<revision>[^/]+)(/(?P<path>.+))?": "list_tree",
    rf"POST {REPO}/(branch|tag)/(?P<revision>[^/]+)": "create_reference",
    rf"POST {REPO}/preupload/(?P<revision>[^/]+)": "choose_uploads",
    rf"POST {PLACE}\.git/info/lfs/objects/batch": "offer_uploads",
    r"PUT /lfs/(?P<oid>\w+)": "upload",
    rf"POST {REPO}/commit/(?P<revision>[^/]+)": "commit",
    rf"(GET|HEAD) {PLACE}/resolve/(?P<revision>[^/]+)/(?P<path>.+)": "download",
}


class HubError(Exception):
    """An answer that is an error: a status, the Hub's code for it, and a sentence."""

    def __init__(self, status: int, message: str, code: str | None = None):
        super().__init__(message)
        self.status, self.code = status, code


@dataclass
class Repository:
    """Each commit's files by path, and the commit of each branch and tag."""

    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    references: dict[str, str] = field(default_factory=dict)

    def add(self, branch: str, files: dict[str, bytes]) -> str:
        """Commit files as a branch's whole content; the commit's id, 40 hex digits."""
        digests = [(path, hashlib.sha256(content).hexdigest()) for path, content in sorted(files.items())]
        commit = hashlib.sha1(repr((len(self.commits), digests)).encode()).hexdigest()
        self.commits[commit] = files
        self.references[branch] = commit
        return commit

    def find(self, revision: str | None) -> str:
        """The commit that a branch, tag or commit id names."""
        revision = unquote(revision or "main")
        commit = self.references.get(revision, revision)
        if commit not in self.commits:
            raise HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return commit


class HubServer(ThreadingHTTPServer):
    """
    Serves while it is entered.

    Attributes:
        repositories (`dict`): By kind and name, such as `("models", "user/xacle")`.
        objects (`dict[str, bytes]`): LFS uploads by sha256.
        requests (`list[str]`): Method and path of each request, with its `Range` where it has one.
    """

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.server_port}"
        self.repositories: dict[tuple[str, str], Repository] = {}
        self.objects: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.faults: list[tuple[str, int]] = []

    def __enter__(self) -> "HubServer":
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_) -> None:
        self.shutdown()
        self.server_close()

    def environment(self, home: object, token: str = "") -> dict[str, str]:
        """Variables for a process that uses this Hub, with a cache of its own and no way to any other host."""
        elsewhere = dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"), "http://127.0.0.1:9")
        return {
            **elsewhere,
            **dict.fromkeys(("NO_PROXY", "no_proxy"), "127.0.0.1"),
            "HF_ENDPOINT": self.address,
            "HF_HOME": str(home),
            "HF_TOKEN": token,
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
        }

    def fail(self, method: str, path: str, status: int = 0) -> None:
        """Let the next request whose path a regular expression finds fail with a status, or be cut half way (0)."""
        self.faults.append((f"{method} .*{path}", status))

    def fault_of(self, request: str) -> int | None:
        """The status with which a request is to fail, 0 if it is to be cut, else `None`; each fault is used once."""
        fault = next((fault for fault in self.faults if re.match(fault[0], request)), None)
        if fault is None:
            return None
        self.faults.remove(fault)
        return fault[1]

    def files(self, name: str, kind: str = "models", revision: str = "main") -> dict[str, bytes]:
        """Content of each file of a repository at a revision."""
        repository = self.repositories[kind, name]
        return repository.commits[repository.find(revision)]


class Handler(BaseHTTPRequestHandler):
    """One request."""

    protocol_version = "HTTP/1.1"
    server: HubServer

    def answer(self) -> None:
        """Find the route, check the token, answer; errors as the Hub words them."""
        url = urlsplit(self.path)
        request, self.query = f"{self.command} {url.path}", parse_qs(url.query)
        wanted = self.headers.get("Range")
        self.server.requests.append(f"{request} {wanted}" if wanted else request)
        fault = self.server.fault_of(request)
        self.is_cut = fault == 0
        if self.is_cut and self.command in ("POST", "PUT"):
            self.rfile.read(CUT_AFTER)
            self.close_connection = True
            return
        self.body = self.read_body()
        try:
            if fault:
                raise HubError(fault, "Injected failure")
            self.check_token()
            self.route(request)
        except HubError as error:
            codes = {"X-Error-Code": error.code} if error.code else {}
            self.reply({"error": str(error)}, error.status, {"X-Error-Message": str(error), **codes})

    do_GET = do_HEAD = do_POST = do_PUT = answer

    def read_body(self) -> bytes:
        """The request's body, whole or in chunks."""
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def check_token(self) -> None:
        """Anybody may read; a token that is wrong is refused everywhere, as the Hub does."""
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if token and token != TOKEN:
            raise HubError(401, "Invalid credentials in Authorization header")
        is_free = re.match(r"/lfs/|/api/validate-yaml", self.path)
        if not token and self.command in ("POST", "PUT") and not is_free:
            raise HubError(401, "Invalid username or password.")

    def route(self, request: str) -> None:
        """Call the method for a request, with the named parts of its path."""
        for pattern, method in ROUTES.items():
            if found := re.fullmatch(pattern, request):
                parts = found.groupdict()
                if "name" in parts:
                    kind = (parts.pop("kind") or "models").rstrip("/")
                    parts["repository"] = self.server.repositories.get((kind, parts["name"]))
                    if parts["repository"] is None:
                        raise HubError(401, "Invalid username or password.", "RepoNotFound")
                getattr(self, method)(**parts)
                return
        raise HubError(404, f"This Hub does not know {request}")

    def reply(self, content: object, status: int = 200, headers: dict[str, str] | None = None) -> None:
        """Send bytes, or an object as JSON; half of it if the connection is to be cut."""
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[: len(body) // 2] if self.is_cut else body)
            self.close_connection = self.close_connection or self.is_cut

    def create_repository(self) -> None:
        wanted = json.loads(self.body)
        name = f"{wanted.get('organization') or 'user'}/{wanted['name']}"
        kind = f"{wanted.get('type') or 'model'}s"
        is_new = (kind, name) not in self.server.repositories
        if is_new:
            self.server.repositories[kind, name] = repository = Repository()
            repository.add("main", {".gitattributes": b""})
        place = name if kind == "models" else f"{kind}/{name}"
        self.reply({"url": f"{self.server.address}/{place}", "name": name}, 200 if is_new else 409)

    def validate_card(self) -> None:
        wanted = json.loads(self.body)
        try:
            (DatasetCard if wanted["repoType"] == "dataset" else ModelCard)(wanted["content"])
        except Exception as error:
            raise HubError(400, str(error).replace("\n", " ")) from error
        self.reply({"errors": [], "warnings": []})

    def describe(self, name: str, repository: Repository, revision: str | None) -> None:
        commit = repository.find(revision)
        siblings = [{"rfilename": path} for path in repository.commits[commit]]
        dates = dict.fromkeys(("lastModified", "createdAt"), "2026-01-01T00:00:00.000Z")
        flags = dict.fromkeys(("private", "disabled", "gated"), False)
        self.reply({"id": name, "modelId": name, "sha": commit, "siblings": siblings, "tags": [], **dates, **flags})

    def entries(self, files: dict[str, bytes]) -> list[dict[str, object]]:
        """Files and their folders as the Hub lists them."""
        folders = {str(parent) for path in files for parent in PurePosixPath(path).parents} - {"."}
        listed: list[dict[str, object]] = [
            {"type": "directory", "path": folder, "oid": "0" * 40, "size": 0} for folder in sorted(folders)
        ]
        for path, content in files.items():
            entry = {"type": "file", "path": path, "oid": git_id(content), "size": len(content)}
            if path.endswith(LFS_SUFFIXES):
                entry["lfs"] = {"oid": lfs_id(content), "size": len(content), "pointerSize": 134}
            listed.append(entry)
        return listed

    def list_tree(self, name: str, repository: Repository, revision: str, path: str | None) -> None:
        folder = f"{unquote(path)}/" if path else ""
        is_recursive = self.query.get("recursive", ["false"])[0].lower() == "true"
        found = [
            entry
            for entry in self.entries(repository.commits[repository.find(revision)])
            if entry["path"].startswith(folder) and (is_recursive or "/" not in entry["path"].removeprefix(folder))
        ]
        if folder and not found:
            raise HubError(404, f"{path} does not exist", "EntryNotFound")
        self.reply(found)

    def create_reference(self, name: str, repository: Repository, revision: str) -> None:
        # A branch's path names it and its body where it starts; a tag's path says where, and its body names it.
        wanted = json.loads(self.body or "{}")
        reference, start = (wanted["tag"], revision) if "tag" in wanted else (revision, wanted.get("startingPoint"))
        if unquote(reference) in repository.references:
            raise HubError(409, f"{reference} exists")
        repository.references[unquote(reference)] = repository.find(start)
        self.reply({})

    def choose_uploads(self, name: str, repository: Repository, revision: str) -> None:
        repository.find(revision)
        paths = [wanted["path"] for wanted in json.loads(self.body)["files"]]
        modes = [{"path": path, "uploadMode": "lfs" if path.endswith(LFS_SUFFIXES) else "regular"} for path in paths]
        self.reply({"files": [{**mode, "shouldIgnore": False} for mode in modes]})

    def offer_uploads(self, name: str, repository: Repository) -> None:
        objects = json.loads(self.body)["objects"]
        for wanted in objects:
            if wanted["oid"] not in self.server.objects:
                wanted["actions"] = {"upload": {"href": f"{self.server.address}/lfs/{wanted['oid']}"}}
        self.reply({"transfer": "basic", "objects": objects})

    def upload(self, oid: str) -> None:
        if lfs_id(self.body) != oid:
            raise HubError(400, "The content is not what its sha256 says")
        self.server.objects[oid] = self.body
        self.reply({})

    def commit(self, name: str, repository: Repository, revision: str) -> None:
        branch = unquote(revision)
        files = dict(repository.commits[repository.find(branch)])
        for line in self.body.splitlines():
            key, value = (entry := json.loads(line))["key"], entry["value"]
            if key == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif key == "lfsFile":
                files[value["path"]] = self.server.objects[value["oid"]]
        commit = repository.add(branch, files)
        self.reply({"success": True, "commitOid": commit, "commitUrl": f"{self.server.address}/{name}/commit/{commit}"})

    def download(self, name: str, repository: Repository, revision: str, path: str) -> None:
        commit, path = repository.find(revision), unquote(path)
        headers = {"X-Repo-Commit": commit}
        content = repository.commits[commit].get(path)
        if content is None:
            self.reply({}, 404, {**headers, "X-Error-Code": "EntryNotFound", "X-Error-Message": f"No entry {path}"})
            return
        headers["ETag"] = f'"{lfs_id(content) if path.endswith(LFS_SUFFIXES) else git_id(content)}"'
        if wanted := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            start, end = int(wanted[1]), int(wanted[2] or len(content) - 1)
            headers["Content-Range"] = f"bytes {start}-{end}/{len(content)}"
            content = content[start : end + 1]
        self.reply(content, 206 if wanted else 200, {**headers, "Accept-Ranges": "bytes"})

    def log_message(self, *_) -> None:
        """Nothing on stderr; `requests` has them."""


def git_id(content: bytes) -> str:
    """By which git knows a file."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def lfs_id(content: bytes) -> str:
    """By which LFS knows a file."""
    return hashlib.sha256(content).hexdigest()
