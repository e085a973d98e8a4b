"""A dataset repository -> the Hub, in one commit; and rows in memory -> a dataset repository there.

Files are sent one after another and kept by the Hub by their content: what was sent once is never
sent again. Nobody sees them before the commit that names all of them, and takes the files of an
older release away. So a push that is cut off, however, leaves the repository as it was; the same
push again goes on with it, and one that changes nothing makes no commit.

`HfApi.upload_folder` isn't used: where Xet is installed it makes several commits.

**Source:** https://huggingface.co/docs/huggingface_hub/package_reference/hf_api (0.34 to 2.4).
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import logging
import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any, cast

import datasets
import yaml
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, constants, get_token
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)
from huggingface_hub.hf_api import DatasetInfo, RepoFile
from huggingface_hub.utils import (  # type: ignore[attr-defined]  # not in its __all__
    build_hf_headers,
    get_session,
    validate_repo_id,
)

from mminstruct import licenses, strict_yaml
from mminstruct.errors import HubError, MMInstructError, UsageError, lacking
from mminstruct.releases import notices, repository, tracing
from mminstruct.releases.contents import CREDITS
from mminstruct.releases.origin import MadeRows, name_contents
from mminstruct.resources import shown
from mminstruct.rows.report import LEFT_OUT, REJECTED, VIEW
from mminstruct.version import __version__

_log = logging.getLogger(__name__)

_MARKER = "provenance.json"
# What a release is made of; whatever else somebody put into the repository stays there.
_TEXTS = (_MARKER, "README.md", "LICENSE", "ATTRIBUTION.md", "croissant.json")
_OWN = (*_TEXTS, CREDITS, REJECTED)
_AGAIN = "run mminstruct generate again"
# What the Hub itself puts into a new repository.
_NEW = {".gitattributes", "README.md"}
_BRANCH = "main"
_TAG = re.compile(r"[A-Za-z0-9][\w.+-]*")
_FRONT_MATTER = re.compile(r"\A---\n(.*?\n)---\n", re.DOTALL)
_LICENSE_FIELDS = ("license", "license_name", "license_link")
# How to use it, in a card: from the heading to the next one.
_USE = re.compile(r"(?<=\n## Use\n).*?(?=\n## )", re.DOTALL)
_LOADED = re.compile(r'(?<=load_dataset\()"(?:[^"\\]|\\.)*"')
Content = Path | bytes
# What the client raises. Its own errors are based on the root of the errors of the HTTP library
# below it, which is requests, httpx or httpx2.
_FAILURES: tuple[type[Exception], ...] = (
    *(OSError, ValueError, RuntimeError),
    *cast(tuple[type[Exception], ...], HfHubHTTPError.__bases__),
)


@dataclass(frozen=True, slots=True)
class Pushed:
    """Where a release is.

    Attributes:
        url: of the repository, for people.
        commit: that holds it.
        tag: that names the commit, or None.
        is_new: whether this push made the commit; the Hub had the same files if not.
    """

    url: str
    commit: str
    tag: str | None
    is_new: bool


@dataclass(frozen=True, slots=True)
class Release:
    """A dataset repository in a folder, ready to be pushed.

    Attributes:
        files: path in the repository -> file here, or what it holds.
        licensing: the verdict.
    """

    files: Mapping[str, Content]
    licensing: Mapping[str, Any]

    @property
    def license_id(self) -> str:
        """What has to be accepted, where something has to: the licence's name, or else its id."""
        return str(self.licensing["license_name"] or self.licensing["license"])


def push(
    folder: str | Path,
    repo_id: str,
    *,
    private: bool = False,
    revision: str | None = None,
    accept_license: str | None = None,
    token: str | None = None,
) -> Pushed:
    """The commit on the Hub that holds a dataset repository as `mminstruct generate` wrote it.

    Args:
        folder: the dataset repository.
        repo_id: ``user/name``; made if it isn't there.
        private: make it a private one.
        revision: tag for the commit.
        accept_license: the licence's id, by which you answer for rows whose terms forbid to train
            on them, or aren't known.
        token: with write access; None takes HF_TOKEN, or the login that is stored.

    Raises:
        UsageError: it is no complete release, its licence isn't what it says or isn't accepted,
            there is no token, or the repository on the Hub isn't one for it. Nothing was sent.
        HubError: the Hub refused or couldn't be reached; the same call again goes on.
    """
    _check_names(repo_id, revision)
    held = open_release(Path(folder), repo_id)
    _check_accepted(held, accept_license)
    api = HfApi(token=_find_token(token), library_name="mminstruct", library_version=__version__)
    with _reword_errors(api, repo_id):
        api.whoami()
        info = _find_or_make(api, repo_id, private)
        head = str(info.sha)
        there = _list_files(api, repo_id, head)
        sent = {p: file for p, file in held.files.items() if not _is_same(file, there.get(p))}
        gone = [
            p for p in there if p not in held.files and (p in _OWN or repository.ROWS.fullmatch(p))
        ]
        tagged = _check_tag(api, repo_id, revision, head, changes=bool(sent or gone))
        if sent or gone:
            head = _commit(api, repo_id, head, sent, gone)
        if revision and not tagged:
            api.create_tag(repo_id, repo_type="dataset", tag=revision, revision=head)
    url = f"{api.endpoint}/datasets/{repo_id}"
    return Pushed(url, head, revision, is_new=bool(sent or gone))


def open_release(folder: Path, repo_id: str) -> Release:
    """The release in a folder, with a card for where it is going.

    Raises:
        UsageError: there is none, it is incomplete, or its parts don't say the same licence.
    """
    marker = folder / _MARKER
    if not marker.is_file():
        what = (
            "a folder without provenance.json" if folder.is_dir() else f"no folder{lacking(folder)}"
        )
        raise UsageError(
            f"{folder}: expected a dataset repository that mminstruct generate wrote, got {what}; "
            "give the folder that was its --output_path"
        )
    if (folder / ".partial").exists():
        raise UsageError(f"{folder}: what writes it has not come to its end; {_AGAIN}")
    noted = _read_noted(marker)
    found = {p.relative_to(folder).as_posix(): p for p in sorted(folder.rglob("*")) if p.is_file()}
    ours = {*_OWN, *noted["files"]}
    # Images, say, have licences of their own, of which the verdict knows nothing.
    if others := [name for name in found if name not in {*ours, LEFT_OUT, VIEW}]:
        _log.info(f"not pushed, as mminstruct did not write them: {', '.join(others)}")
    files: dict[str, Content] = {name: path for name, path in found.items() if name in ours}
    for name in [*_TEXTS, *noted["files"]]:
        if name not in files:
            raise UsageError(f"{folder}: {name} is missing; {_AGAIN}")
    for name, facts in noted["files"].items():
        if _digest(files[name], hashlib.sha256()) != facts["sha256"]:
            raise UsageError(
                f"{folder}: {name} is not the file that was written there; {_AGAIN}, or write "
                "changed rows anew with mminstruct.push_to_hub"
            )
    if REJECTED in files:
        files[REJECTED] = _drop_answers(found[REJECTED])
    held = Release({**files, **_address(folder, repo_id)}, noted["licensing"])
    _check_said_alike(folder, held, noted)
    return held


def _read_noted(marker: Path) -> dict[str, Any]:
    """What `repository.write` noted of a release."""
    try:
        noted: dict[str, Any] = json.loads(marker.read_text(encoding="utf-8"))
        needed = {*_LICENSE_FIELDS, "commercial", "output_training", "redistribution"}
        notices.read_use(noted)
        is_whole = all("sha256" in facts for facts in noted["files"].values())
        if is_whole and noted["licensing"].keys() >= needed:
            return noted
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        pass
    raise UsageError(
        f"{marker}: expected the licensing and the files that mminstruct generate notes there, got "
        f"something else; {_AGAIN}"
    )


def _address(folder: Path, repo_id: str) -> dict[str, bytes]:
    """Card and Croissant description that say where the release is, which a folder can't know."""
    name = json.dumps(repo_id)
    card = _USE.sub(
        lambda use: _LOADED.sub(lambda _: name, use[0]),
        (folder / "README.md").read_text(encoding="utf-8"),
    )
    try:
        described = dict(json.loads((folder / "croissant.json").read_text(encoding="utf-8")))
    except (ValueError, TypeError, RecursionError) as error:
        raise UsageError(f"{folder}: croissant.json can't be read ({error}); {_AGAIN}") from error
    described["name"] = repo_id
    described["creator"] = {"@type": "sc:Organization", "name": repo_id.partition("/")[0]}
    described["url"] = f"{constants.ENDPOINT}/datasets/{repo_id}"
    croissant = json.dumps(described, indent=2, ensure_ascii=False) + "\n"
    return {"README.md": card.encode(), "croissant.json": croissant.encode()}


def _drop_answers(rejected: Path) -> bytes:
    """What gave no row, without answers and details that quote them: nobody has looked at them."""
    kept = io.BytesIO()
    try:
        with rejected.open(encoding="utf-8") as lines:
            for entry in map(dict, map(json.loads, lines)):
                for name in ("answer", "detail"):
                    entry.pop(name, None)
                kept.write(json.dumps(entry, ensure_ascii=False).encode() + b"\n")
    except (ValueError, TypeError) as error:
        raise UsageError(f"{rejected}: can't be read ({error}); {_AGAIN}") from error
    return kept.getvalue()


def _front_matter(card: Path) -> dict[str, Any]:
    try:
        found = _FRONT_MATTER.match(card.read_text(encoding="utf-8"))
        data = strict_yaml.load(found[1], keys_once=False) if found else None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UsageError(f"{card}: can't be read: {error}") from error
    if not isinstance(data, dict):
        raise UsageError(
            f"{card}: expected the metadata of a card between two lines '---' at its start, got "
            f"none; {_AGAIN}"
        )
    return data


def _check_said_alike(folder: Path, held: Release, noted: Mapping[str, Any]) -> None:
    """Raise UsageError if card, LICENSE and verdict name different licences or uses.

    All three are made from one verdict, so one that differs was edited.
    """
    card = _front_matter(folder / "README.md")
    verdict, said = (
        ", ".join(
            f"{name} {from_[name]!r}" for name in _LICENSE_FIELDS if from_.get(name) is not None
        )
        for from_ in (held.licensing, card)
    )
    if said != verdict:
        raise UsageError(
            f"{folder}: README.md says {said}, while the verdict in {_MARKER} is {verdict}; put "
            f"the card's license fields back, or {_AGAIN}"
        )
    text = (folder / "LICENSE").read_text(encoding="utf-8", errors="replace")
    lacking_in = {"LICENSE": notices.find_unsaid(text, noted)}
    # Older releases, which note no counts, say it on their cards in other words.
    if "use" in noted:
        use, text = notices.read_use(noted), (folder / "README.md").read_text(encoding="utf-8")
        lacking_in["README.md"] = None if use in re.sub(r"[*\\]", "", text) else use
    for name, unsaid in lacking_in.items():
        if unsaid:
            raise UsageError(
                f"{folder}: {name} doesn't say {unsaid!r}, which is the verdict in {_MARKER}; "
                f"{_AGAIN}"
            )
    training = held.licensing["output_training"]
    is_free = training in ("allowed", "conditional") and held.licensing["license"] != "unknown"
    if held.licensing["commercial"] and not is_free:
        raise UsageError(
            f"{folder}: {_MARKER} claims commercial use, while the licence there is "
            f"{held.license_id} and training on outputs {training}; {_AGAIN}"
        )


def _check_accepted(held: Release, accepted: str | None) -> None:
    """Raise UsageError unless the rows may be published, or somebody answers for it."""
    if accepted not in (None, held.license_id):
        raise UsageError(
            f"--accept-license: the licence of these rows is {held.license_id!r}, got "
            f"{accepted!r}; give that id, or leave it out if nothing has to be accepted"
        )
    licensing = held.licensing
    if licensing["output_training"] == "forbidden":
        why = "the model's terms forbid to train other models on them"
    elif not licensing["redistribution"]:
        why = (
            "by the terms of what they were made from or by, they may not be passed on to everyone "
            "everywhere, or not after changes"
        )
    elif (
        "unknown" in (licensing["output_training"], licensing["license"])
        or licensing["commercial"] is None
    ):
        why = "not all that they were made from is under terms that are known"
    else:
        return
    if accepted is None:
        reasons = "".join(f"\n{line}" for line in licenses.list_lines(licensing.get("reasons", ())))
        raise UsageError(
            f"the licence of these rows is {held.license_id!r}: {why}; nothing was sent{reasons}\n"
            "if you may publish them nevertheless and answer for it, push again with "
            f"--accept-license {held.license_id}"
        )


def _check_names(repo_id: str, revision: str | None) -> None:
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise UsageError(f"repository {repo_id!r}: {error}") from error
    if repo_id.count("/") != 1:
        raise UsageError(f"repository {repo_id!r}: expected user/name")
    if revision is not None and (not _TAG.fullmatch(revision) or revision == _BRANCH):
        raise UsageError(
            f"--revision {revision!r}: expected the name of a tag, such as v1.0, of letters, "
            "digits, '.', '-', '_' and '+'"
        )


def _find_token(given: str | None) -> str:
    found = given or get_token()
    if not found:
        raise UsageError(
            "no token for the Hub: set HF_TOKEN to one with write access (made at "
            f"{constants.ENDPOINT}/settings/tokens), or log in with 'hf auth login'"
        )
    return found


def _find_or_make(api: HfApi, repo_id: str, private: bool) -> DatasetInfo:
    """The repository as it is on the Hub, made if it isn't there.

    Raises:
        UsageError: there is one that everybody sees and a private one was asked for.
    """
    try:
        info = api.dataset_info(repo_id)
    except RepositoryNotFoundError:
        api.create_repo(repo_id, repo_type="dataset", private=private or None, exist_ok=True)
        info = api.dataset_info(repo_id)
    if private and not info.private:
        raise UsageError(
            f"{repo_id}: the repository is public and a private one was asked for; make it private "
            f"at {api.endpoint}/datasets/{repo_id}/settings, or leave out --private"
        )
    return info


def _list_files(api: HfApi, repo_id: str, head: str) -> dict[str, RepoFile]:
    """The files of a commit, by path.

    Raises:
        UsageError: somebody else's files are among them.
    """
    entries = api.list_repo_tree(repo_id, repo_type="dataset", revision=head, recursive=True)
    files = {entry.path: entry for entry in entries if isinstance(entry, RepoFile)}
    if files.keys() - _NEW and _MARKER not in files:
        raise UsageError(
            f"{repo_id}: the repository holds {len(files)} files and was not written by "
            "mminstruct; give another name"
        )
    return files


def _is_same(content: Content, there: RepoFile | None) -> bool:
    """Whether the Hub has this very file: by SHA-256 where it is an LFS one, else as Git would."""
    size = _size(content)
    if there is None or there.size != size:
        return False
    if there.lfs:
        return _digest(content, hashlib.sha256()) == there.lfs.sha256
    return _digest(content, hashlib.sha1(b"blob %d\0" % size)) == there.blob_id  # noqa: S324 (the digest of git)


def _digest(content: Content, so_far: hashlib._Hash) -> str:
    with _open(content) as file:
        while chunk := file.read(2**20):
            so_far.update(chunk)
    return so_far.hexdigest()


def _open(content: Content) -> IO[bytes]:
    return io.BytesIO(content) if isinstance(content, bytes) else content.open("rb")


def _size(content: Content) -> int:
    return len(content) if isinstance(content, bytes) else content.stat().st_size


def _check_tag(api: HfApi, repo_id: str, revision: str | None, head: str, *, changes: bool) -> bool:
    """Whether the tag is there already, on this commit.

    Raises:
        UsageError: it names another commit than the one to be pushed, or is a branch.
    """
    if revision is None:
        return False
    refs = api.list_repo_refs(repo_id, repo_type="dataset")
    if revision in [branch.name for branch in refs.branches]:
        raise UsageError(f"{repo_id}: {revision!r} is a branch there; give --revision another name")
    tagged = {tag.name: tag.target_commit for tag in refs.tags}
    if revision not in tagged:
        return False
    if changes or tagged[revision] != head:
        raise UsageError(
            f"{repo_id}: the tag {revision!r} is there already and names commit "
            f"{tagged[revision][:8]}, which is another release; give --revision another name"
        )
    return True


def _commit(
    api: HfApi, repo_id: str, head: str, sent: Mapping[str, Content], gone: Iterable[str]
) -> str:
    """The commit on top of ``head`` that adds some files and takes others away."""
    size = sum(map(_size, sent.values()))
    _log.info(f"sending {len(sent)} files, {size / 1e6:.2f} MB, to {repo_id} at {api.endpoint}")
    with contextlib.ExitStack() as opened:
        has_xet = _has_xet(api, repo_id)
        operations: list[CommitOperationAdd | CommitOperationDelete] = []
        large = [path for path in sent if path not in _TEXTS]
        for path, content in sent.items():
            # What the client is given open it sends in the plain way, without Xet.
            given: Any = content if has_xet else opened.enter_context(_open(content))
            add = CommitOperationAdd(path_in_repo=path, path_or_fileobj=given)
            operations.append(add)
            if path in large:
                number = f"{large.index(path) + 1} of {len(large)}"
                _log.info(f"{number}: {path}, {_size(content) / 1e6:.2f} MB")
                # One by one: a pool of threads can't be left by Ctrl-C before its uploads end.
                api.preupload_lfs_files(repo_id, [add], repo_type="dataset", free_memory=False)
        operations += [CommitOperationDelete(path_in_repo=path) for path in gone]
        done = api.create_commit(
            repo_id,
            operations,
            commit_message=f"Release by mminstruct {__version__}",
            repo_type="dataset",
            parent_commit=head,
        )
    return str(done.oid)


def _has_xet(api: HfApi, repo_id: str) -> bool:
    """Whether the Hub takes files by Xet, which its client (1.33, 2.4) doesn't ask."""
    if constants.HF_HUB_DISABLE_XET:
        return True  # as far as it matters: the client won't use it
    url = f"{api.endpoint}/api/datasets/{repo_id}/xet-write-token/{_BRANCH}"
    answer = get_session().get(url, headers=build_hf_headers(token=api.token))
    return bool(answer.status_code != 404)


@contextlib.contextmanager
def _reword_errors(api: HfApi, repo_id: str) -> Iterator[None]:
    """Turn what the Hub's client raises into errors of ours."""
    try:
        yield
    except MMInstructError:
        raise
    except OfflineModeIsEnabled as error:
        raise UsageError("HF_HUB_OFFLINE is set; unset it to push") from error
    except _FAILURES as error:
        # Of an upload that failed, the cause says why.
        found: Any = error.__cause__ if isinstance(error, RuntimeError) else error
        words = _describe(found or error, repo_id, api.endpoint)
        raise HubError(words.replace(str(api.token), "(the token)")) from error


def _describe(error: Any, repo_id: str, endpoint: str) -> str:
    """What went wrong and what to do."""
    response = getattr(error, "response", None)
    where = f"{repo_id} at {endpoint}"
    if response is None:
        said = " ".join(str(error).split()) or type(error).__name__
        return f"{where}: {said}; if that was the network, check it and HF_ENDPOINT"
    status = response.status_code
    said = getattr(error, "server_message", None) or response.headers.get("X-Error-Message") or ""
    advice = {
        401: "the token is not accepted; set HF_TOKEN to one with write access (made at "
        f"{endpoint}/settings/tokens), or log in with 'hf auth login'",
        403: f"the token may not write there; use one with write access to {repo_id}",
        404: "not there, or not to be seen with this token; check the name and the token",
        409: "somebody else changes the repository",
        412: "somebody else changed the repository meanwhile",
        429: "too many requests; wait for some minutes",
    }.get(status, "the Hub has a fault; wait for some minutes" if status >= 500 else "refused")
    return f"{where}: HTTP {status}{f' ({said})' if said else ''}: {advice}"


def push_to_hub(
    rows: datasets.Dataset | datasets.DatasetDict | MadeRows,
    repo_id: str,
    *,
    private: bool = False,
    revision: str | None = None,
    accept_license: str | None = None,
    token: str | None = None,
    model_id: str | None = None,
    licenses: str | None = None,
    prompt_config: str | None = None,
    source_options: Mapping[str, Any] | None = None,
    source: str | None = None,
) -> Pushed:
    """The commit on the Hub that holds rows, with a card and the licence worked out anew.

    Unlike `Dataset.push_to_hub` it makes one config for each instruction type, and the licence is
    not what the rows say but what follows from whatever they say they were made from.

    Args:
        rows: as the builders make them, or some of those, of any models and prompt configs; or what
            `mminstruct.generate` gives, which needs nothing more to be told.
        repo_id: ``user/name``; made if it isn't there.
        private: make it a private one.
        revision: tag for the commit.
        accept_license: as in `push`.
        token: as in `push`.
        model_id: exact Hub id of the model, where the rows name a file.
        licenses: file with licence entries of your own, as they were generated with.
        prompt_config: file that they were generated with, unless it is the package's.
        source_options: what the source was asked for beyond its defaults.
        source: path of the data of your own that they were generated from.

    Raises:
        UsageError: they aren't rows of ours, or say that they may be used more freely than follows
            from what they were made from; and as in `push`.
        HubError: as in `push`.
    """
    report = None
    if isinstance(rows, MadeRows):
        if (model_id, licenses, prompt_config, source_options, source) != (None,) * 5:
            raise UsageError(
                "model_id, licenses, prompt_config, source_options, source: what generate gives "
                "has them with it; leave them out"
            )
        splits = tracing.splits_of(rows.rows)
        _check_unchanged(rows)
        # Without the day: the same rows are the same release on any.
        origin, report = replace(rows.origin, repo_id=repo_id, written_on=None), rows.report
    else:
        splits = tracing.splits_of(rows)
        origin = tracing.trace(
            splits,
            repo_id=repo_id,
            model_id=model_id,
            licenses_file=licenses,
            prompt_config=prompt_config,
            source_options=source_options,
            source=source,
        )
    with tempfile.TemporaryDirectory() as scratch:
        repository.write(splits, Path(scratch), origin, report)
        return push(
            scratch,
            repo_id,
            private=private,
            revision=revision,
            accept_license=accept_license,
            token=token,
        )


def _check_unchanged(made: MadeRows) -> None:
    """Raise UsageError if a run's licence and report are no longer those of its rows."""
    if name_contents(made.rows) != made.contents:
        raise UsageError(
            "rows: they were changed since they were generated; give them alone, as in "
            "push_to_hub(generated.rows, ...), and their licence is worked out from what each says"
        )
    for file in made.report.files:
        if not file.is_file():
            raise UsageError(
                f"{shown(file)}: it named what gave no row, and is gone; generate once more (what "
                "was answered is stored), or give the rows alone"
            )
