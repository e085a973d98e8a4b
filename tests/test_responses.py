"""The response store: what its keys cover, that it keeps what it took, and what it says if not."""

from __future__ import annotations

import asyncio
import random
import resource
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from mminstruct.errors import StoreError
from mminstruct.responses import ResponseStore, key_of
from mminstruct.schema import Completion, Message, Request, Sampling

IDENTITY = {"backend": "openai", "endpoint": "http://127.0.0.1/v1", "model": "m"}
REQUEST = Request(
    (Message("system", "You see."), Message("user", "A dog.")),
    Sampling(temperature=0.7, top_p=0.9, max_tokens=100, seed=3),
)
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


def test_a_thousand_answers_take_at_most_3_kb_each(tmp_path: Path) -> None:
    path = tmp_path / "r.sqlite"
    with ResponseStore(path) as store:
        put_all(store, answers(1000))
    assert folder_bytes(path) <= 1000 * 3000


_WRITER = """
import asyncio, sys
from pathlib import Path
from mminstruct.responses import ResponseStore
from mminstruct.schema import Completion

async def put(store, first):
    for start in range(first, first + 300, 20):
        await asyncio.gather(*(
            store.put(n.to_bytes(32, "big"), Completion(f"answer {n}"))
            for n in range(start, start + 20)
        ))

sys.stdin.read()
for path in sys.argv[2:]:
    with ResponseStore(Path(path)) as store:
        asyncio.run(put(store, int(sys.argv[1])))
"""


def test_processes_that_create_and_fill_a_store_at_once_lose_nothing(tmp_path: Path) -> None:
    paths = [tmp_path / f"{number}.sqlite" for number in range(4)]
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
import os, sys
from pathlib import Path
from mminstruct.errors import StoreError
from mminstruct.responses import ResponseStore

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
from mminstruct.responses import ResponseStore
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
