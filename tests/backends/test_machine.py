"""What a process may use of its machine, by control groups of both versions."""

from __future__ import annotations

from pathlib import Path

import pytest

from mminstruct.backends import _machine, _transformers_engine, llama_cpp

MIB = 1 << 20


@pytest.fixture
def groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty tree of control groups, none of which this process is in yet."""
    monkeypatch.setattr(_machine, "GROUPS", tmp_path / "groups")
    monkeypatch.setattr(_machine, "OWN_GROUPS", tmp_path / "own")
    (tmp_path / "own").write_text("")
    return tmp_path


def write(folder: Path, **files: object) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name.replace("__", ".")).write_text(f"{content}\n")


def test_the_least_bound_of_nested_groups_counts_and_what_can_be_dropped_is_free(
    groups: Path,
) -> None:
    (groups / "own").write_text("0::/job/step\n")
    stat = f"anon 5\ninactive_file {20 * MIB}"
    write(groups / "groups/job", memory__max=100 * MIB, memory__current=70 * MIB, memory__stat=stat)
    write(groups / "groups/job/step", memory__max="max", memory__current=1, memory__stat=stat)
    assert _machine.total_bytes() == 100 * MIB
    assert _machine.free_bytes() == 50 * MIB


def test_groups_of_the_first_version_count_too_and_the_root_where_others_are_not_seen(
    groups: Path,
) -> None:
    (groups / "own").write_text("5:cpu,cpuacct:/docker/abc\n4:memory:/docker/abc\n1:name=x:/y\n")
    write(
        groups / "groups/memory",
        memory__limit_in_bytes=64 * MIB,
        memory__usage_in_bytes=80 * MIB,
        memory__stat="total_inactive_file 0",
    )
    write(groups / "groups/cpu", cpu__cfs_quota_us=50_000, cpu__cfs_period_us=100_000)
    assert _machine.total_bytes() == 64 * MIB
    assert _machine.free_bytes() == 0
    assert _machine.cores() == 1


def test_without_bounds_a_process_may_use_the_machine(
    groups: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_machine.os, "sched_getaffinity", lambda _: set(range(6)), raising=False)
    unbound = _machine.total_bytes()
    (groups / "own").write_text("0::/\n")
    write(groups / "groups", cpu__max="max 100000")
    assert (_machine.total_bytes(), _machine.cores()) == (unbound, 6)
    write(groups / "groups", cpu__max="250000 100000")
    assert _machine.cores() == 3
    (groups / "own").unlink()
    assert _machine.cores() == 6


def test_both_engines_keep_to_what_the_process_may_use(
    groups: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (groups / "own").write_text("0::/\n")
    stat = "inactive_file 0"
    write(groups / "groups", memory__max=100 * MIB, memory__current=60 * MIB, memory__stat=stat)
    cpu = _transformers_engine.torch.device("cpu")
    assert _transformers_engine.free_bytes(cpu) == 40 * MIB
    assert llama_cpp.cache_bytes() == 20 * MIB
    write(groups / "groups", memory__current=0)
    assert llama_cpp.cache_bytes() == 25 * MIB
