"""The response store: what its keys cover, that it keeps what it took, and what it says if not."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import json
import os
import random
import resource
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from filelock import FileLock
from hypothesis import given
from hypothesis import strategies as st

from mminstruct.completions import store
from mminstruct.completions import store as responses
from mminstruct.completions.store import Lengths, ResponseStore, Scope, key_of
from mminstruct.errors import StoreError, StoreUnusable
from mminstruct.schema import Completion, Message, Request, Sampling, canonical_json

IDENTITY = {"backend": "openai", "endpoint": "http://127.0.0.1/v1", "model": "m"}
REQUEST = Request(
    (Message("system", "You see."), Message("user", "A dog.")),
    Sampling(temperature=0.7, top_p=0.9, max_tokens=100, seed=3),
)
SCOPE = Scope("0123abcd", "conversation", "m", 100)
WORDS = Path(__file__).read_text(encoding="utf-8").split()


def key(number: int) -> bytes:
    """The key of the n-th of some requests."""
    return key_of(IDENTITY, replace(REQUEST, messages=(Message("user", f"Scene {number}"),)))


def put_all(store: ResponseStore, entries: Iterable[tuple[bytes, Completion]]) -> None:
    """Put all at once, as a busy client does."""

    async def put() -> None:
        await asyncio.gather(*(store.put(key, completion) for key, completion in entries))

    asyncio.run(put())


def answers(count: int, *, seed: int = 0) -> Iterator[tuple[bytes, Completion]]:
    """Answers of 1.0 to 2.5 kB under keys that are as random as real ones."""
    rng = random.Random(seed)
    for number in range(count):
        text = ""
        size = rng.randint(1000, 2500)
        while len(text.encode()) < size:
            text += rng.choice(WORDS) + " "
        yield key(number), Completion(text, "stop", 1500, 400, "a-model-of-some-name")


def folder_bytes(path: Path) -> int:
    """Size of a store's file and of what SQLite keeps beside it."""
    return sum(file.stat().st_size for file in path.parent.glob(f"{path.name}*"))


def test_what_was_put_is_got_back_whole(tmp_path: Path) -> None:
    whole = Completion("Question: Wo?\n\nAnswer: Hier, \U0001f436 'da'.", "length", 7, None, "x")
    empty = Completion("")
    with ResponseStore(tmp_path / "r.sqlite") as store:
        put_all(store, [(key(1), whole), (key(2), empty)])
        assert store.get_many([key(1), key(2), key(3)]) == {key(1): whole, key(2): empty}
        assert len(store) == 2


def test_answers_survive_closing_and_opening_again(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folders" / "r.sqlite"
    entries = dict(answers(700))
    with ResponseStore(path) as store:
        put_all(store, entries.items())
    with ResponseStore(path) as store:
        # More keys than SQLite takes variables in one statement.
        assert store.get_many([*entries, *(key(n) for n in range(1000, 2500))]) == entries


def test_an_answer_under_a_key_that_is_there_changes_nothing(tmp_path: Path) -> None:
    with ResponseStore(tmp_path / "r.sqlite") as store:
        put_all(store, [(key(1), Completion("first"))])
        put_all(store, [(key(1), Completion("second")), (key(2), Completion("other"))])
        assert store.get_many([key(1)])[key(1)].text == "first"
        assert len(store) == 2


@pytest.mark.parametrize(
    "request_",
    [
        replace(REQUEST, messages=(*REQUEST.messages, Message("user", "A cat."))),
        replace(REQUEST, messages=REQUEST.messages[::-1]),
        replace(REQUEST, messages=(Message("user", "You see."), Message("user", "A dog."))),
        replace(REQUEST, messages=(Message("system", "You see.A"), Message("user", " dog."))),
        replace(REQUEST, sampling=replace(REQUEST.sampling, temperature=0.71)),
        replace(REQUEST, sampling=replace(REQUEST.sampling, top_p=0.91)),
        replace(REQUEST, sampling=replace(REQUEST.sampling, max_tokens=101)),
        replace(REQUEST, sampling=replace(REQUEST.sampling, seed=4)),
        replace(REQUEST, sampling=replace(REQUEST.sampling, seed=None)),
    ],
)
def test_another_message_or_sampling_value_has_another_key(request_: Request) -> None:
    assert key_of(IDENTITY, request_) != key_of(IDENTITY, REQUEST)


@pytest.mark.parametrize("name", sorted(IDENTITY))
def test_another_backend_endpoint_or_model_has_another_key(name: str) -> None:
    assert key_of({**IDENTITY, name: "another"}, REQUEST) != key_of(IDENTITY, REQUEST)


def test_equal_requests_have_equal_keys_in_every_process() -> None:
    again = Request(tuple(REQUEST.messages), Sampling(0.7, 0.9, 100, 3))
    assert key_of(dict(reversed(IDENTITY.items())), again) == key_of(IDENTITY, REQUEST)
    # Changing this value makes everybody pay again for everything they have.
    assert key_of(IDENTITY, REQUEST).hex().startswith("453c929b3bfdcb33")


OPENINGS = [(), REQUEST.messages, (*REQUEST.messages, Message("assistant", 'A \u2028"dog".\n'))]
ASKED = st.tuples(
    st.sampled_from([IDENTITY, {**IDENTITY, "model": "n"}]),
    st.builds(
        lambda opening, last, sampling: Request((*opening, last), sampling),
        st.sampled_from(OPENINGS),
        st.builds(Message, st.sampled_from(["user", "assistant"]), st.text()),
        st.builds(
            Sampling,
            st.floats(0, 2),
            st.floats(0, 1),
            st.integers(1, 4096),
            st.none() | st.integers(0, 2**31),
        ),
    ),
)


@given(st.lists(ASKED, min_size=1, max_size=6))
def test_a_key_is_the_hash_of_the_canonical_json_whatever_was_asked_before(
    asked: list[tuple[dict[str, str], Request]],
) -> None:
    for identity, request in asked:
        whole = canonical_json(
            {
                "key_version": 1,
                "identity": identity,
                "messages": request.messages,
                "sampling": request.sampling,
            }
        )
        assert key_of(identity, request) == hashlib.sha256(whole).digest()


def test_a_thousand_answers_take_at_most_3_kb_each(tmp_path: Path) -> None:
    path = tmp_path / "r.sqlite"
    entries = list(answers(1000))
    scopes = [replace(SCOPE, type=f"type {number}") for number in range(3)]

    async def put(store: ResponseStore) -> None:
        await asyncio.gather(
            *(store.put(k, a, scopes[number % 3]) for number, (k, a) in enumerate(entries))
        )

    with ResponseStore(path) as store:
        asyncio.run(put(store))
    assert folder_bytes(path) <= 1000 * 3000


def put_scoped(store: ResponseStore, entries: Iterable[tuple[int, int | None, Scope]]) -> None:
    """Put answers of so many tokens, given as (number, tokens, scope), all at once."""

    async def put() -> None:
        await asyncio.gather(
            *(
                store.put(key(number), Completion("x", completion_tokens=tokens), scope)
                for number, tokens, scope in entries
            )
        )

    asyncio.run(put())


def test_lengths_of_answers_are_summed_by_what_they_go_by(tmp_path: Path) -> None:
    others = [
        replace(SCOPE, prompt_config="another"),
        replace(SCOPE, type="another"),
        replace(SCOPE, model="another"),
        replace(SCOPE, max_tokens=99),
    ]
    with ResponseStore(tmp_path / "r.sqlite") as store:
        assert store.lengths(SCOPE) == Lengths(0, 0, 0)
        put_scoped(store, [(1, 10, SCOPE), (2, 30, SCOPE), (3, None, SCOPE)])
        put_scoped(store, [(4, 7, SCOPE)])
        put_scoped(store, [(10 + n, n, scope) for n, scope in enumerate(others)])
        put_all(store, [(key(20), Completion("of no scope", completion_tokens=1000))])
        assert store.lengths(SCOPE) == Lengths(3, 47, 100 + 900 + 49)
        assert [store.lengths(scope).total for scope in others] == [0, 1, 2, 3]
    with ResponseStore(tmp_path / "r.sqlite") as store:
        assert store.lengths(SCOPE) == Lengths(3, 47, 1049)


def test_an_answer_that_is_there_already_is_not_counted_again(tmp_path: Path) -> None:
    with ResponseStore(tmp_path / "r.sqlite") as store:
        put_scoped(store, [(1, 10, SCOPE), (1, 10, SCOPE), (2, 20, SCOPE)])
        put_scoped(store, [(1, 10, SCOPE), (2, 99, SCOPE)])
        assert store.lengths(SCOPE) == Lengths(2, 30, 500)


def test_answers_of_other_stores_are_added_once_and_replace_none(tmp_path: Path) -> None:
    for name, numbers in (("a", (1, 2)), ("b", (2, 3)), ("c", (4,))):
        with ResponseStore(tmp_path / name) as store:
            put_scoped(store, [(n, 10 * n, SCOPE) for n in numbers])
            put_all(store, [(key(9), Completion(f"of {name}"))])
    with ResponseStore(tmp_path / "all" / "r.sqlite") as store:
        for name in ("a", "b", "c", "a"):
            store.copy(tmp_path / name)
        assert len(store) == 5
        assert store.get_many([key(9)])[key(9)].text == "of a"
        # Where some were here already, it isn't known whose lengths are counted.
        assert store.lengths(SCOPE) == Lengths(2, 30, 500)


def test_another_store_that_is_damaged_inside_is_named_and_not_this_one(tmp_path: Path) -> None:
    with ResponseStore(tmp_path / "part.sqlite") as store:
        put_all(store, answers(300))
    data = bytearray((tmp_path / "part.sqlite").read_bytes())
    data[3 * 16384 :] = bytes(len(data) - 3 * 16384)
    (tmp_path / "part.sqlite").write_bytes(data)
    with ResponseStore(tmp_path / "mine.sqlite") as store:
        put_all(store, answers(1))
        with pytest.raises(StoreUnusable, match="part.sqlite: database disk image is malformed"):
            store.copy(tmp_path / "part.sqlite")
        assert len(store) == 1


def older_version(path: Path, version: int, entries: Iterable[tuple[bytes, Completion]]) -> None:
    """Write a store as an older version of its format has it."""
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("PRAGMA page_size = 16384")
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("CREATE TABLE completions (key BLOB PRIMARY KEY, value BLOB NOT NULL)")
    connection.execute(f"PRAGMA application_id = {0x6D6D6966}")
    connection.execute(f"PRAGMA user_version = {version}")
    if version == 2:
        connection.execute(f"CREATE TABLE {store._LENGTHS}")
    connection.executemany(
        "INSERT INTO completions VALUES (?, ?)",
        [(key, json.dumps(asdict(answer)).encode()) for key, answer in entries],
    )
    connection.close()


def version_of(path: Path) -> int:
    """The version of a store's format."""
    connection = sqlite3.connect(path)
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    connection.close()
    return int(version)


@pytest.mark.parametrize("version", [1, 2])
def test_a_store_of_an_older_version_is_brought_up_to_date_in_place(
    tmp_path: Path, version: int
) -> None:
    path = tmp_path / "r.sqlite"
    old = dict(answers(50))
    older_version(path, version, old.items())
    with ResponseStore(path) as store:
        assert store.get_many(list(old)) == old
        assert store.lengths(SCOPE) == Lengths()
        put_scoped(store, [(1000, 10, SCOPE)])
    assert version_of(path) == 3
    with ResponseStore(path) as store:
        assert len(store) == 51
        assert store.get_many(list(old)) == old
        assert store.lengths(SCOPE) == Lengths(1, 10, 100)


def test_a_store_that_is_not_there_reads_as_empty_and_is_not_made(tmp_path: Path) -> None:
    path = tmp_path / "new" / "r.sqlite"
    with ResponseStore(path, read_only=True) as store:
        assert len(store) == 0
        assert store.get_many([key(1)]) == {}
        assert store.lengths(SCOPE) == Lengths()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("version", [1, 2, 3])
def test_reading_only_changes_no_byte(tmp_path: Path, version: int) -> None:
    path = tmp_path / "r.sqlite"
    old = dict(answers(20))
    if version < 3:
        older_version(path, version, old.items())
    else:
        with ResponseStore(path) as store:
            put_all(store, old.items())
            put_scoped(store, [(1000, 10, SCOPE)])
    before = path.read_bytes()
    with ResponseStore(path, read_only=True) as store:
        assert store.get_many(list(old)) == old
        assert store.lengths(SCOPE).count == (version == 3)
        with pytest.raises(StoreError, match=r"r\.sqlite is open for reading only"):
            put_all(store, [(key(2000), Completion("new"))])
    assert path.read_bytes() == before


def test_what_is_read_only_sees_what_another_writes_meanwhile(tmp_path: Path) -> None:
    path = tmp_path / "r.sqlite"
    with ResponseStore(path) as writer, ResponseStore(path, read_only=True) as reader:
        assert len(reader) == 0
        put_scoped(writer, [(1, 10, SCOPE)])
        assert reader.lengths(SCOPE) == Lengths(1, 10, 100)
        assert len(reader) == 1


def test_reading_only_refuses_a_file_that_is_no_store_and_takes_an_empty_one(
    tmp_path: Path,
) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("my notes\n" * 100)
    with pytest.raises(StoreError, match=r"notes\.txt: "), ResponseStore(path, read_only=True):
        pass
    assert path.read_text() == "my notes\n" * 100
    path.write_text("")
    with ResponseStore(path, read_only=True) as store:
        assert len(store) == 0
    assert path.read_text() == ""


_READER = """
import os, sys, urllib.parse  # while Python's own files can be read
from pathlib import Path
from mminstruct.completions.store import ResponseStore

if os.geteuid() == 0:  # whom no permission stops
    os.setuid(65534)
with ResponseStore(Path(sys.argv[1]), read_only=True) as store:
    print(len(store))
"""


def test_a_store_in_a_folder_that_is_read_only_can_be_read() -> None:
    # Not below tmp_path, which the other user could not even enter.
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "r.sqlite"
        with ResponseStore(path) as store:
            put_all(store, answers(3))
        Path(folder).chmod(0o555)
        done = subprocess.run(
            [sys.executable, "-c", _READER, str(path)],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    assert (done.returncode, done.stdout, done.stderr) == (0, "3\n", "")


_WRITER = """
import asyncio, sys
from pathlib import Path
from mminstruct.completions.store import ResponseStore, Scope
from mminstruct.schema import Completion

SCOPE = Scope("0123abcd", "conversation", "m", 100)

async def put(store, first):
    for start in range(first, first + 300, 20):
        await asyncio.gather(*(
            store.put(n.to_bytes(32, "big"), Completion(f"answer {n}", completion_tokens=n), SCOPE)
            for n in range(start, start + 20)
        ))

sys.stdin.read()
for path in sys.argv[2:]:
    with ResponseStore(Path(path)) as store:
        asyncio.run(put(store, int(sys.argv[1])))
"""


def test_processes_that_create_and_fill_a_store_at_once_lose_nothing(tmp_path: Path) -> None:
    paths = [tmp_path / f"{number}.sqlite" for number in range(4)]
    older_version(paths[0], 1, [])
    firsts = (0, 300, 450)  # the third overlaps with the second
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", _WRITER, str(first), *map(str, paths)],
            stdin=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for first in firsts
    ]
    for writer in writers:
        assert writer.stdin is not None
        writer.stdin.close()
        writer.stdin = None
    for writer in writers:
        _, said = writer.communicate(timeout=120)
        assert (writer.returncode, said) == (0, b"")
    for path in paths:
        with ResponseStore(path) as store:
            assert len(store) == 750
            last = (749).to_bytes(32, "big")
            assert store.get_many([last])[last].text == "answer 749"
            numbers = range(750)
            assert store.lengths(SCOPE) == Lengths(750, sum(numbers), sum(n * n for n in numbers))


def test_a_file_that_is_not_sqlite_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("my notes\n" * 100)
    with (
        pytest.raises(StoreError, match=r"notes\.txt: file is not a database; give .*--response"),
        ResponseStore(path),
    ):
        pass
    assert path.read_text() == "my notes\n" * 100


def test_the_sqlite_file_of_another_program_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "other.sqlite"
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE bookmarks (url TEXT)")
    connection.close()
    before = path.read_bytes()
    with pytest.raises(StoreError, match=r"belongs to another program"), ResponseStore(path):
        pass
    assert path.read_bytes() == before


def test_a_store_of_a_newer_version_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "r.sqlite"
    with ResponseStore(path) as store:
        put_all(store, [(key(1), Completion("kept"))])
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA user_version = 99")
    connection.close()
    before = path.read_bytes()
    with pytest.raises(StoreError, match=r"newer mminstruct \(format 99.*upgrade"):
        ResponseStore(path).__enter__()
    assert path.read_bytes() == before


def flip(path: Path, statement: str, *values: object) -> None:
    """Change a store behind its back."""
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        assert connection.execute(statement, values).rowcount == 1


def test_a_damaged_answer_counts_as_not_stored_is_told_and_replaced(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path, scope = tmp_path / "r.sqlite", SCOPE
    with ResponseStore(path) as store:
        put_scoped(store, [(n, 10, scope) for n in range(6)])
        value = json.dumps({"text": "another", "finish_reason": "stop"}).encode()
        # Well-formed, no JSON, no UTF-8, of another type, and one under its neighbour's key.
        for number, damaged in enumerate((value, b'{"text": "an', b'{"text": "\xff"}', "text")):
            flip(path, "UPDATE completions SET value = ? WHERE key = ?", damaged, key(number))
        flip(path, "DELETE FROM completions WHERE key = ?", key(4))
        flip(path, "UPDATE completions SET key = ? WHERE key = ?", key(4), key(5))
        assert store.get_many([key(n) for n in range(6)]) == {}
        assert store.get_many([key(0)]) == {}
        (told,) = caplog.messages
        assert "r.sqlite: 5 damaged answers, taken for not stored" in told

        put_scoped(store, [(n, 20, scope) for n in range(6)])
        assert set(store.get_many([key(n) for n in range(6)])) == {key(n) for n in range(6)}
        assert store.lengths(scope).count == 7  # the six before, and the one that was gone


def test_an_older_answer_without_a_checksum_is_taken_if_it_can_be_read(tmp_path: Path) -> None:
    path, old = tmp_path / "r.sqlite", dict(answers(3))
    older_version(path, 2, old.items())
    flip(path, "UPDATE completions SET value = x'7B' WHERE key = ?", key(1))
    whole = {k: answer for k, answer in old.items() if k != key(1)}
    with ResponseStore(path, read_only=True) as store:
        assert store.get_many(list(old)) == whole
    with ResponseStore(path) as store:
        assert store.get_many(list(old)) == whole


@pytest.mark.parametrize("change", ["deleted", "moved", "replaced"])
def test_a_store_that_vanishes_while_it_is_open_is_named(tmp_path: Path, change: str) -> None:
    path = tmp_path / "r.sqlite"
    with (
        pytest.raises(StoreError, match=r"r\.sqlite: the file was moved, deleted or replaced"),
        ResponseStore(path) as store,
    ):
        put_all(store, answers(2))
        path.rename(tmp_path / "elsewhere.sqlite")
        if change == "deleted":
            (tmp_path / "elsewhere.sqlite").unlink()
        elif change == "replaced":
            path.write_bytes(b"")
        put_all(store, [(key(1000), Completion("lost"))])


def test_the_file_alone_holds_nearly_all_while_it_is_written(tmp_path: Path) -> None:
    path, alone = tmp_path / "r.sqlite", tmp_path / "alone.sqlite"
    with ResponseStore(path) as store:
        for start in range(0, 3000, 50):
            put_all(store, ((key(start + n), Completion("word " * 400)) for n in range(50)))
        shutil.copy(path, alone)
    with ResponseStore(alone) as store:
        assert len(store) > 2500


def test_a_damaged_store_is_a_store_error_in_words(tmp_path: Path) -> None:
    path = tmp_path / "r.sqlite"
    with ResponseStore(path) as store:
        put_all(store, answers(300))
    with path.open("r+b") as file:
        file.seek(2 * 16384)
        file.write(b"\xff" * (path.stat().st_size - 3 * 16384))
    with (
        pytest.raises(StoreError, match=r"malformed; move the file away or give another"),
        ResponseStore(path) as store,
    ):
        store.get_many([key(n) for n in range(300)])


def test_a_path_through_a_file_is_a_store_error_in_words(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match=r"response store .*file/r\.sqlite: "):
        ResponseStore(tmp_path / "file" / "r.sqlite").__enter__()


_OPENER = """
import os, sys, urllib.parse  # while Python's own files can be read
from pathlib import Path
from mminstruct.errors import StoreError
from mminstruct.completions.store import ResponseStore

if os.geteuid() == 0:  # whom no permission stops
    os.setuid(65534)
try:
    with ResponseStore(Path(sys.argv[1])):
        pass
except StoreError as error:
    print(error)
"""


def test_a_folder_that_is_read_only_is_a_store_error_in_words() -> None:
    # Not below tmp_path, which the other user could not even enter.
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o555)
        done = subprocess.run(
            [sys.executable, "-c", _OPENER, f"{folder}/r.sqlite"],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"response store {folder}/r.sqlite: ")
    assert "--response_store" in done.stdout
    assert done.stdout.count(folder) == 1


_FILLER = """
import asyncio, sys
from pathlib import Path
from mminstruct.errors import StoreError
from mminstruct.completions.store import ResponseStore
from mminstruct.schema import Completion

async def fill(store):
    for n in range(10_000):
        try:
            await store.put(n.to_bytes(32, "big"), Completion(f"answer {n} " * 100))
        except StoreError as error:
            print(n)
            print(error)
            return

with ResponseStore(Path(sys.argv[1])) as store:
    asyncio.run(fill(store))
"""


def test_a_file_that_is_locked_for_longer_is_waited_for(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "r.sqlite"
    with ResponseStore(path, busy_timeout_s=0.1) as store:
        other = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        other.execute("BEGIN IMMEDIATE")
        threading.Timer(0.5, lambda: other.execute("ROLLBACK")).start()
        put_all(store, list(answers(3)))
        assert len(store) == 3
    other.close()
    assert "locked by another program" in caplog.text


def test_a_file_that_stays_locked_does_not_keep_a_store_from_closing(tmp_path: Path) -> None:
    path = tmp_path / "r.sqlite"

    async def put(store: ResponseStore) -> None:
        putting = asyncio.ensure_future(store.put(*next(answers(1))))
        gone = asyncio.ensure_future(store.put(*list(answers(2))[1]))
        await asyncio.sleep(0.05)
        gone.cancel()
        await asyncio.sleep(0)
        with pytest.raises(StoreError, match="locked.*; 1 answer was not stored"):
            await asyncio.to_thread(store.__exit__, None, None, None)
        with pytest.raises(StoreError, match="locked"):
            await putting

    store = ResponseStore(path, busy_timeout_s=0.1).__enter__()
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    asyncio.run(put(store))
    other.close()


def test_a_store_that_closes_still_waits_for_a_lock(tmp_path: Path) -> None:
    path = tmp_path / "r.sqlite"

    async def put(store: ResponseStore) -> None:
        putting = [asyncio.ensure_future(store.put(*entry)) for entry in answers(20)]
        await asyncio.sleep(0.05)
        threading.Timer(0.3, lambda: other.execute("ROLLBACK")).start()
        await asyncio.to_thread(store.__exit__, None, None, None)
        await asyncio.gather(*putting)

    store = ResponseStore(path, busy_timeout_s=5.0).__enter__()
    other = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    other.execute("BEGIN IMMEDIATE")
    asyncio.run(put(store))
    other.close()
    with ResponseStore(path, read_only=True) as store:
        assert len(store) == 20


def test_every_store_has_a_name_that_goes_where_it_goes(tmp_path: Path) -> None:
    names = []
    for path in (tmp_path / "a.sqlite", tmp_path / "a.sqlite", tmp_path / "b.sqlite"):
        with ResponseStore(path) as store:
            names.append(store.identifier())
    (tmp_path / "a.sqlite").rename(tmp_path / "c.sqlite")
    with ResponseStore(tmp_path / "c.sqlite") as store:
        names.append(store.identifier())
    assert names[0] == names[1] == names[3] != names[2]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EMFILE])
def test_a_machine_without_room_is_no_reason_for_another_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(responses, "FileLock", fail)
    with (
        pytest.raises(StoreError, match=os.strerror(number)) as raised,
        ResponseStore(tmp_path / "r.sqlite"),
    ):
        pass
    assert not isinstance(raised.value, StoreUnusable)


def test_what_cannot_be_written_for_any_reason_is_a_store_error(tmp_path: Path) -> None:
    # Its square is more than SQLite's integers hold.
    huge = Completion("a", completion_tokens=2**40)

    async def put(store: ResponseStore) -> None:
        await asyncio.wait_for(store.put(key(1), huge, SCOPE), 30)

    with ResponseStore(tmp_path / "r.sqlite") as store:
        with pytest.raises(StoreError, match="too large"):
            asyncio.run(put(store))
        assert len(store) == 0


def test_a_full_disk_is_a_store_error_and_loses_nothing_stored_before(tmp_path: Path) -> None:
    path = tmp_path / "r.sqlite"
    done = subprocess.run(
        [sys.executable, "-c", _FILLER, str(path)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 22, 1 << 22)),
    )
    assert (done.returncode, done.stderr) == (0, "")
    first_lost, _, words = done.stdout.partition("\n")
    assert "free some space and run the same command again" in words
    assert "nothing stored before is lost" in words
    with ResponseStore(path) as store:
        assert len(store) >= int(first_lost) > 50
        put_all(store, [(key(1), Completion("there is room again"))])


def test_a_store_with_a_full_disk_fails_at_once_and_for_all(tmp_path: Path) -> None:
    path = tmp_path / "r.sqlite"
    with ResponseStore(path) as store:
        put_all(store, answers(50))

    async def put_each(store: ResponseStore) -> list[BaseException | None]:
        puts = (store.put(key, completion) for key, completion in answers(500, seed=1))
        return await asyncio.gather(*puts, return_exceptions=True)

    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    with ResponseStore(path) as store:
        resource.setrlimit(resource.RLIMIT_FSIZE, (folder_bytes(path), limit[1]))
        try:
            results = asyncio.run(put_each(store))
            later = asyncio.run(put_each(store))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert {type(result) for result in (*results, *later)} == {StoreError}
    with ResponseStore(path) as store:
        assert len(store) == 50


def test_a_store_that_is_being_made_can_be_read(tmp_path: Path) -> None:
    def read(path: Path, start: threading.Barrier) -> int:
        start.wait(10)
        for _ in range(20):
            with ResponseStore(path, read_only=True) as store:
                store.get_many([key(1)])
        return 1

    def make(path: Path, start: threading.Barrier) -> int:
        start.wait(10)
        with ResponseStore(path) as store:
            put_all(store, list(answers(1)))
            return len(store)

    with ThreadPoolExecutor(4) as pool:
        for n in range(15):
            start = threading.Barrier(4)
            path = tmp_path / f"{n}.sqlite"
            working = [pool.submit(work, path, start) for work in (read, make, read, read)]
            assert [future.result(60) for future in working] == [1, 1, 1, 1]


def test_a_file_without_tables_yet_reads_as_an_empty_store(tmp_path: Path) -> None:
    path = tmp_path / "r.sqlite"
    with closing(sqlite3.connect(path)) as begun:
        begun.execute("PRAGMA journal_mode = WAL")
        begun.execute("PRAGMA user_version = 0")
    with ResponseStore(path, read_only=True) as store:
        assert store.get_many([key(1)]) == {}
        assert len(store) == 0


def test_a_store_that_is_being_made_for_long_is_no_reason_for_another(tmp_path: Path) -> None:
    path = tmp_path / "r.sqlite"
    with ResponseStore(path):
        pass
    for read_only in (False, True):
        with FileLock(f"{path}.lock"), pytest.raises(StoreError, match="locked by") as raised:
            ResponseStore(path, read_only=read_only, busy_timeout_s=0.1).__enter__()
        assert not isinstance(raised.value, StoreUnusable)
