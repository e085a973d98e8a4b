"""Memory and CPU cores that this process may use, as a container may have fewer, and their kind.

**Source:** https://docs.kernel.org/admin-guide/cgroup-v2.html (``memory.max``, ``memory.current``,
``memory.stat``, ``cpu.max``) and .../cgroup-v1/ for the older names.
"""

from __future__ import annotations

import contextlib
import math
import os
import platform
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

GROUPS = Path("/sys/fs/cgroup")
OWN_GROUPS = Path("/proc/self/cgroup")
PROCESSORS = Path("/proc/cpuinfo")
_KIND_OF_PROCESSOR = ("model name", "flags", "CPU implementer", "CPU part", "Features")


def total_bytes() -> int:
    """Memory there is, used or not."""
    import psutil

    return min([int(psutil.virtual_memory().total), *(bound for bound, _ in _memory_bounds())])


def free_bytes() -> int:
    """Memory that could be had without swapping."""
    import psutil

    bounds = (max(0, bound - used) for bound, used in _memory_bounds())
    return min([int(psutil.virtual_memory().available), *bounds])


def cores() -> int:
    """CPU cores."""
    usable = os.cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):
        usable = len(os.sched_getaffinity(0))
    return max(1, min([usable, *map(math.ceil, _core_bounds())]))


def processor() -> str:
    """What tells kinds of processors apart: the name and what it can compute."""
    with contextlib.suppress(OSError):
        first, _, _ = PROCESSORS.read_text().partition("\n\n")
        # Others say how fast it is just now, or which of several.
        lines = [line for line in first.splitlines() if line.startswith(_KIND_OF_PROCESSOR)]
        if lines:
            return "\n".join(lines)
    return f"{platform.machine()} {platform.processor()}"  # not Linux


def _memory_bounds() -> Iterator[tuple[int, int]]:
    """The bytes that each of the process's groups may use, and does beyond what can be dropped."""
    for folder in _own_groups("memory"):
        for most, used, inactive in (
            ("memory.max", "memory.current", "inactive_file"),
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
        ):
            # No such file: another version, or nothing bounds the root. No number: "max".
            with contextlib.suppress(OSError, ValueError):
                bound = int((folder / most).read_text())
                stat = dict(map(str.split, (folder / "memory.stat").read_text().splitlines()))
                yield bound, int((folder / used).read_text()) - int(stat.get(inactive, 0))


def _core_bounds() -> Iterator[float]:
    for folder in _own_groups("cpu"):
        with contextlib.suppress(OSError, ValueError):
            quota, period = (folder / "cpu.max").read_text().split()
            yield int(quota) / int(period)
        with contextlib.suppress(OSError, ValueError):
            quota, period = (
                (folder / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period")
            )
            if int(quota) > 0:  # -1 is any
                yield int(quota) / int(period)


def _own_groups(controller: str) -> Iterator[Path]:
    """The folders of the groups that this process is in, each up to the root, in both versions."""
    try:
        lines = OWN_GROUPS.read_text().splitlines()
    except OSError:  # not Linux
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        root = GROUPS / controller if controllers else GROUPS
        own = PurePosixPath(path)
        # In a container the path may be the machine's, of which only the root is there.
        for group in (own, *own.parents):
            yield root / group.relative_to("/")
