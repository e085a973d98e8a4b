"""What the ``split`` of `load_dataset` stands for: whole splits, or parts of them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import datasets

ALL = "all"
"""What `datasets` calls all splits together."""


def specs(split: Any) -> list[str]:
    """The splits and parts of splits, such as ``train[:5]``, in any form that `datasets` takes."""
    if isinstance(split, Mapping):
        split = list(split.values())
    if isinstance(split, (list, tuple)):
        return [spec for one in split for spec in specs(one)]
    if split is None:
        return []
    text = split.to_spec() if isinstance(split, datasets.ReadInstruction) else str(split)
    return [spec.strip() for spec in text.split("+")]


def name_of(spec: str) -> str:
    """The split that a spec is all of, or a part; it may be a wrong one."""
    return re.split(r"[\[(]", spec)[0]
