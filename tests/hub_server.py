"""A Hub on loopback: datasets with its API, checks and storage, and cards of models, in memory.

It offers plain LFS (basic and multipart) and no Xet, like mirrors of the Hub do.

**Source:** the paths, fields, headers and status codes that the `huggingface_hub` client's source
uses; https://huggingface.co/docs/hub/api; the Git LFS batch API,
https://github.com/git-lfs/git-lfs/blob/main/docs/api/batch.md.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import inspect
import json
import math
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from fnmatch import fnmatch
from typing import Any
from urllib.parse import unquote

import yaml
from aiohttp import web
from loopback import DROP, LoopbackServer

TOKEN = "hf_loopback"
USER, ORG = "user", "org"
HANG = "hang"
_PATTERNS = ("*.parquet", "*.arrow", "*.zip")
_BRANCH = "main"

Fault = Callable[[web.Request], Any]


@dataclass(frozen=True)
class File:
    """A file of a commit; of an LFS file the content is what the pointer stands for."""

    content: bytes
    is_lfs: bool

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    @property
    def pointer(self) -> bytes:
        lines = ("version https://git-lfs.github.com/spec/v1", f"oid sha256:{self.sha256}")
        return "\n".join([*lines, f"size {len(self.content)}", ""]).encode()

    @property
    def blob_id(self) -> str:
        """Git's SHA-1 of what Git holds."""
        held = self.pointer if self.is_lfs else self.content
        return hashlib.sha1(b"blob %d\0" % len(held) + held).hexdigest()  # noqa: S324

    @property
    def etag(self) -> str:
        return self.sha256 if self.is_lfs else self.blob_id


@dataclass(frozen=True)
class Commit:
    """A commit on the only branch."""

    title: str
    files: dict[str, File]
    parent: str | None = None

    @property
    def oid(self) -> str:
        tree = sorted((path, file.blob_id) for path, file in self.files.items())
        return hashlib.sha1(repr((self.title, self.parent, tree)).encode()).hexdigest()  # noqa: S324


@dataclass
class Repo:
    """A dataset repository.

    Attributes:
        private: whether reading takes the token.
        commits: the first is the Hub's own.
        tags: name -> commit.
        objects: LFS objects by SHA-256, those of no commit included.
    """

    private: bool
    commits: list[Commit] = field(default_factory=list)
    tags: dict[str, str] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict)

    @property
    def head(self) -> Commit:
        return self.commits[-1]

    @property
    def pushed(self) -> list[Commit]:
        """All commits but the Hub's own."""
        return self.commits[1:]

    def commit(self, revision: str) -> Commit | None:
        oid = self.head.oid if revision == _BRANCH else self.tags.get(revision, revision)
        return next((commit for commit in self.commits if commit.oid == oid), None)


class _Refused(Exception):
    def __init__(self, status: int, words: str, code: str = "") -> None:
        self.status, self.words, self.code = status, words, code


class HubServer(LoopbackServer):
    """Holds dataset repositories and counts what it is asked.

    Attributes:
        repos: ``user/name`` -> dataset repository.
        cards: ``user/name`` of a model -> its README.md, None for a repository without one.
        gated: models whose files take the token.
        renamed: models that are called otherwise now.
        faults: what is asked, by the name of its handler (``whoami``, ``create``, ``commit`` ...),
            -> what goes wrong: called with the request; gives None to answer well, DROP or HANG, or
            a status. A fault of ``put`` comes after `read_at_most` bytes of the upload.
        read_at_most: bytes of an upload that are read before a fault of ``put``.
        reached: set when a fault struck.
        asked_for: name of handler -> how often.
        stored: SHA-256 of LFS objects -> how often they were sent whole.
        part_size: bytes of a part of a multipart upload; None takes objects in one piece.
        tokens_seen: all that were sent.
    """

    def __init__(self) -> None:
        super().__init__()
        self.repos: dict[str, Repo] = {}
        self.cards: dict[str, str | None] = {}
        self.gated: set[str] = set()
        self.renamed: dict[str, str] = {}
        self.faults: dict[str, Fault] = {}
        self.read_at_most = 0
        self.reached = threading.Event()
        self.asked_for: Counter[str] = Counter()
        self.stored: Counter[str] = Counter()
        self.part_size: int | None = None
        self.tokens_seen: set[str] = set()
        self._parts: dict[str, dict[int, bytes]] = {}
        self._closing = asyncio.Event()

    @property
    def url(self) -> str:
        """What HF_ENDPOINT is set to."""
        return f"http://127.0.0.1:{self.port}"

    def fail(self, name: str, fault: Any, times: float = math.inf) -> None:
        """Answer some requests badly: DROP, HANG or a status."""
        left = [times]

        def strike(request: web.Request) -> Any:
            left[0] -= 1
            return fault if left[0] >= 0 else None

        self.faults[name] = strike

    async def _stop(self) -> None:
        self._closing.set()
        await super()._stop()

    def _add_routes(self, app: web.Application) -> None:
        data, api = "/datasets/{owner}/{name}", "/api/datasets/{owner}/{name}"
        for method, path, handler in (
            ("GET", "/api/whoami-v2", self.whoami),
            ("POST", "/api/repos/create", self.create),
            ("POST", "/api/validate-yaml", self.validate_yaml),
            ("GET", f"{api}", self.info),
            ("GET", f"{api}/revision/{{revision}}", self.info),
            ("GET", f"{api}/refs", self.refs),
            ("GET", f"{api}/commits/{{revision}}", self.log),
            ("GET", f"{api}/tree/{{revision}}", self.tree),
            ("GET", f"{api}/tree/{{revision}}/{{path:.+}}", self.tree),
            ("POST", f"{api}/paths-info/{{revision}}", self.paths_info),
            ("POST", f"{api}/preupload/{{revision}}", self.preupload),
            ("POST", f"{api}/commit/{{revision}}", self.commit),
            ("POST", f"{api}/tag/{{revision}}", self.tag),
            ("POST", f"{data}.git/info/lfs/objects/batch", self.batch),
            ("PUT", "/lfs/{owner}/{name}/{oid}", self.put),
            ("PUT", "/lfs/{owner}/{name}/{oid}/{part}", self.put),
            ("POST", "/lfs/{owner}/{name}/{oid}", self.complete),
            ("POST", "/verify/{owner}/{name}", self.verify),
            ("GET", f"{data}/resolve/{{revision}}/{{path:.+}}", self.resolve),
            ("GET", "/{owner}/{name}/resolve/{revision}/{path:.+}", self.card),
        ):
            app.router.add_route(method, path, self._guarded(handler))
            if method == "GET":
                app.router.add_route("HEAD", path, self._guarded(handler))

    def _guarded(self, handler: Callable[..., Any]) -> Any:
        name = handler.__name__

        async def answer(request: web.Request) -> web.StreamResponse:
            self.asked_for[name] += 1
            try:
                if name != "put":  # which is sent to where anyone may who knows the address
                    self._check_token(request)
                    await self._strike(name, request)
                found = handler(request)
                return await found if inspect.isawaitable(found) else found
            except _Refused as refused:
                headers = {"X-Error-Message": refused.words}
                if refused.code:
                    headers["X-Error-Code"] = refused.code
                body = {"error": refused.words, "url": self.url}
                return web.json_response(body, status=refused.status, headers=headers)

        return answer

    async def _strike(self, name: str, request: web.Request) -> None:
        fault = self.faults[name](request) if name in self.faults else None
        if fault is None:
            return
        self.reached.set()
        if fault == HANG:
            await self._closing.wait()
        if fault in (HANG, DROP):
            if request.transport is not None:
                request.transport.abort()
            raise asyncio.CancelledError
        raise _Refused(fault, f"the loopback Hub was told to answer {fault}")

    def _check_token(self, request: web.Request) -> None:
        sent = request.headers.get("Authorization", "").removeprefix("Bearer ")
        if not sent:
            return
        self.tokens_seen.add(sent)
        if sent != TOKEN:
            raise _Refused(401, "Invalid credentials in Authorization header")

    def _repo(self, request: web.Request, *, write: bool = False) -> Repo:
        found = self.repos.get(f"{request.match_info['owner']}/{request.match_info['name']}")
        is_known = "Authorization" in request.headers
        if found is None or (found.private and not is_known):
            raise _Refused(404 if is_known else 401, "Repository not found", "RepoNotFound")
        if write and not is_known:
            raise _Refused(403, "You have no write access to this repository")
        return found

    def _commit(self, request: web.Request, repo: Repo) -> Commit:
        revision = unquote(request.match_info.get("revision", _BRANCH))
        found = repo.commit(revision)
        if found is None:
            raise _Refused(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return found

    def whoami(self, request: web.Request) -> web.Response:
        if "Authorization" not in request.headers:
            raise _Refused(401, "Invalid username or password.")
        orgs = [{"type": "org", "name": ORG, "roleInOrg": "write"}]
        return web.json_response({"type": "user", "name": USER, "orgs": orgs, "auth": {}})

    async def create(self, request: web.Request) -> web.Response:
        body = await request.json()
        owner = body.get("organization") or USER
        name = f"{owner}/{body['name']}"
        if owner not in (USER, ORG):
            words = f'You don\'t have the rights to create a dataset under the namespace "{owner}"'
            raise _Refused(403, words)
        assert body["type"] == "dataset"
        if name in self.repos:
            raise _Refused(409, "You already created this dataset repo")
        attributes = "".join(f"{p} filter=lfs diff=lfs merge=lfs -text\n" for p in _PATTERNS)
        first = Commit("initial commit", {".gitattributes": File(attributes.encode(), False)})
        private = body.get("private") or body.get("visibility") == "private"
        self.repos[name] = Repo(bool(private), [first])
        return web.json_response({"url": f"{self.url}/datasets/{name}", "name": name})

    async def validate_yaml(self, request: web.Request) -> web.Response:
        body = await request.json()
        assert body["repoType"] == "dataset"
        try:
            data = yaml.safe_load(body["content"].split("---\n")[1])
            complete = data["license"] != "other" or {"license_name", "license_link"} <= set(data)
            errors = [] if complete else ["license_name and license_link are required"]
        except (yaml.YAMLError, IndexError, KeyError, TypeError) as error:
            errors = [f"the metadata can't be read: {error!r}"]
        answer = {"errors": [{"message": e} for e in errors], "warnings": []}
        return web.json_response(answer, status=400 if errors else 200)

    def info(self, request: web.Request) -> web.Response:
        repo = self._repo(request)
        commit = self._commit(request, repo)
        name = f"{request.match_info['owner']}/{request.match_info['name']}"
        return web.json_response(
            {
                "_id": name,
                "id": name,
                "author": request.match_info["owner"],
                "sha": commit.oid,
                "private": repo.private,
                "gated": False,
                "disabled": False,
                "lastModified": "2026-01-01T00:00:00.000Z",
                "tags": [],
                "downloads": 0,
                "siblings": [{"rfilename": path} for path in sorted(commit.files)],
            }
        )

    def refs(self, request: web.Request) -> web.Response:
        repo = self._repo(request)
        tags = [
            {"name": name, "ref": f"refs/tags/{name}", "targetCommit": oid}
            for name, oid in repo.tags.items()
        ]
        head = {"name": _BRANCH, "ref": f"refs/heads/{_BRANCH}", "targetCommit": repo.head.oid}
        return web.json_response({"branches": [head], "converts": [], "tags": tags})

    def log(self, request: web.Request) -> web.Response:
        commits = reversed(self._repo(request).commits)
        entries = [
            {"id": c.oid, "title": c.title, "message": "", "date": "2026-01-01T00:00:00.000Z",
             "authors": [{"user": USER}]}
            for c in commits
        ]  # fmt: skip
        return web.json_response(entries)

    def tree(self, request: web.Request) -> web.Response:
        files = self._commit(request, self._repo(request)).files
        below = unquote(request.match_info.get("path", ""))
        prefix = f"{below}/" if below else ""
        is_deep = request.query.get("recursive", "false").lower() in ("true", "1")
        entries: dict[str, dict[str, Any]] = {}
        for path in sorted(p for p in files if p.startswith(prefix)):
            parts = path.removeprefix(prefix).split("/")
            for depth in range(1, len(parts)):
                folder = prefix + "/".join(parts[:depth])
                if is_deep or depth == 1:
                    oid = hashlib.sha1(folder.encode()).hexdigest()  # noqa: S324
                    entries[folder] = {"type": "directory", "path": folder, "size": 0, "oid": oid}
            if is_deep or len(parts) == 1:
                entries[path] = _entry(path, files[path])
        if below and not entries:
            raise _Refused(404, f"{below} does not exist", "EntryNotFound")
        return web.json_response(list(entries.values()))

    async def paths_info(self, request: web.Request) -> web.Response:
        files = self._commit(request, self._repo(request)).files
        is_form = request.content_type == "application/x-www-form-urlencoded"
        body: Any = await (request.post() if is_form else request.json())
        paths = body.getall("paths") if is_form else body["paths"]
        entries = [_entry(path, files[path]) for path in paths if path in files]
        folders = [p for p in paths if any(f.startswith(f"{p.rstrip('/')}/") for f in files)]
        entries += [{"type": "directory", "path": p, "size": 0, "oid": "0" * 40} for p in folders]
        return web.json_response(entries)

    async def preupload(self, request: web.Request) -> web.Response:
        repo = self._repo(request, write=True)
        files = self._commit(request, repo).files
        answers = []
        for asked in (await request.json())["files"]:
            path = asked["path"]
            is_lfs = any(fnmatch(path, pattern) for pattern in _PATTERNS)
            mode = "lfs" if is_lfs or asked["size"] > 10 * 2**20 else "regular"
            answer = {"path": path, "uploadMode": mode, "shouldIgnore": False}
            if path in files:
                answer["oid"] = files[path].etag
            answers.append(answer)
        return web.json_response({"files": answers})

    async def batch(self, request: web.Request) -> web.Response:
        repo = self._repo(request, write=True)
        body = await request.json()
        assert "basic" in body["transfers"]
        where = f"{self.url}/lfs/{request.match_info['owner']}/{request.match_info['name']}"
        verify = where.replace("/lfs/", "/verify/")
        objects = []
        for wanted in body["objects"]:
            oid, size = wanted["oid"], wanted["size"]
            answer: dict[str, Any] = {"oid": oid, "size": size}
            if oid not in repo.objects:
                upload: dict[str, Any] = {"href": f"{where}/{oid}"}
                if self.part_size:
                    parts = range(1, math.ceil(size / self.part_size) + 1)
                    upload["header"] = {str(part): f"{where}/{oid}/{part}" for part in parts}
                    upload["header"]["chunk_size"] = str(self.part_size)
                answer["actions"] = {"upload": upload, "verify": {"href": verify}}
            objects.append(answer)
        transfer = "multipart" if self.part_size else "basic"
        return web.json_response({"transfer": transfer, "objects": objects})

    async def put(self, request: web.Request) -> web.Response:
        oid, part = request.match_info["oid"], request.match_info.get("part")
        begun = b""
        if "put" in self.faults:
            begun = await request.content.read(self.read_at_most)
            await self._strike("put", request)
        sent = begun + await request.read()
        if part is not None:
            self._parts.setdefault(oid, {})[int(part)] = sent
            return web.Response(headers={"ETag": f'"{hashlib.md5(sent).hexdigest()}"'})  # noqa: S324
        self._store(request, oid, sent)
        return web.Response()

    async def complete(self, request: web.Request) -> web.Response:
        oid = request.match_info["oid"]
        parts = self._parts.pop(oid)
        named = [part["partNumber"] for part in (await request.json())["parts"]]
        self._store(request, oid, b"".join(parts[number] for number in named))
        return web.json_response({"success": True})

    def _store(self, request: web.Request, oid: str, content: bytes) -> None:
        if hashlib.sha256(content).hexdigest() != oid:
            raise _Refused(400, "the content is not what its oid says")
        owner, name = request.match_info["owner"], request.match_info["name"]
        self.repos[f"{owner}/{name}"].objects[oid] = content
        self.stored[oid] += 1

    async def verify(self, request: web.Request) -> web.Response:
        repo = self._repo(request, write=True)
        body = await request.json()
        if len(repo.objects.get(body["oid"], b"")) != body["size"]:
            raise _Refused(404, "no such object")
        return web.json_response({})

    async def commit(self, request: web.Request) -> web.Response:
        repo = self._repo(request, write=True)
        files = dict(self._commit(request, repo).files)
        lines = (await request.text()).splitlines()
        header, *operations = [json.loads(line) for line in lines]
        parent = header["value"].get("parentCommit")
        if parent is not None and parent != repo.head.oid:
            raise _Refused(412, "A commit has happened since. Please refresh and try again.")
        for operation in operations:
            path, value = operation["value"]["path"], operation["value"]
            if operation["key"] == "file":
                assert value["encoding"] == "base64"
                files[path] = File(base64.b64decode(value["content"]), is_lfs=False)
            elif operation["key"] == "lfsFile":
                if value["oid"] not in repo.objects:
                    raise _Refused(400, f"LFS pointer of {path} points to no object")
                files[path] = File(repo.objects[value["oid"]], is_lfs=True)
            else:
                assert operation["key"] == "deletedFile"
                if path not in files:
                    raise _Refused(404, "A file with this name doesn't exist", "EntryNotFound")
                del files[path]
        repo.commits.append(Commit(header["value"]["summary"], files, repo.head.oid))
        # Where the answer to a commit that was made gets lost.
        await self._strike("committed", request)
        oid = repo.head.oid
        url = f"{self.url}/datasets/{request.match_info['owner']}/{request.match_info['name']}"
        done = {"success": True, "commitOid": oid, "commitUrl": f"{url}/commit/{oid}"}
        return web.json_response({**done, "hookOutput": ""})

    async def tag(self, request: web.Request) -> web.Response:
        repo = self._repo(request, write=True)
        name = (await request.json())["tag"]
        if name in repo.tags:
            raise _Refused(409, f"Tag {name} exists already")
        repo.tags[name] = self._commit(request, repo).oid
        return web.json_response({"success": True})

    def card(self, request: web.Request) -> web.Response:
        asked = request.match_info
        repo_id = f"{asked['owner']}/{asked['name']}"
        if repo_id in self.renamed:
            moved = request.path.replace(repo_id, self.renamed[repo_id], 1)
            return web.Response(status=307, headers={"Location": moved})
        is_known = "Authorization" in request.headers
        if repo_id in self.gated and not is_known:
            raise _Refused(401, f"Access to model {repo_id} is restricted", "GatedRepo")
        if repo_id not in self.cards:
            raise _Refused(404 if is_known else 401, "Repository not found", "RepoNotFound")
        if asked["revision"] not in (_BRANCH, "v1"):
            raise _Refused(404, "Invalid rev id", "RevisionNotFound")
        text = self.cards[repo_id]
        commit = hashlib.sha1(repr((asked["revision"], text)).encode()).hexdigest()  # noqa: S324
        if text is None or asked["path"] != "README.md":
            headers = {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit}
            return web.Response(status=404, headers=headers)
        file = File(text.encode(), is_lfs=False)
        headers = {"X-Repo-Commit": commit, "ETag": f'"{file.etag}"'}
        return web.Response(body=file.content, headers=headers)

    def resolve(self, request: web.Request) -> web.Response:
        commit = self._commit(request, self._repo(request))
        path = unquote(request.match_info["path"])
        headers = {"X-Repo-Commit": commit.oid, "Accept-Ranges": "bytes"}
        file = commit.files.get(path)
        if file is None:
            headers |= {"X-Error-Code": "EntryNotFound", "X-Error-Message": "Entry not found"}
            return web.Response(status=404, headers=headers)
        headers["ETag"] = f'"{file.etag}"'
        if file.is_lfs:
            headers["X-Linked-Etag"] = f'"{file.sha256}"'
            headers["X-Linked-Size"] = str(len(file.content))
        whole = slice(0, len(file.content))
        wanted = request.http_range if "Range" in request.headers else whole
        start, stop, _ = wanted.indices(len(file.content))
        body = file.content[start:stop]
        if "Range" in request.headers:
            headers["Content-Range"] = f"bytes {start}-{stop - 1}/{len(file.content)}"
        status = 206 if "Range" in request.headers else 200
        return web.Response(body=body, status=status, headers=headers)


def _entry(path: str, file: File) -> dict[str, Any]:
    entry: dict[str, Any] = {"type": "file", "path": path, "oid": file.blob_id}
    entry["size"] = len(file.content)
    if file.is_lfs:
        pointer = {"oid": file.sha256, "size": len(file.content), "pointerSize": len(file.pointer)}
        entry["lfs"] = pointer
    return entry
