"""The images that benchmarks ask about: a file here is a list, by the benchmark's name.

Who trains on these can't report results of the benchmark. An image is known by its file's name, as
`image_key` has it. **Source:** each list names its own, and the day on which it was published.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Sequence
from functools import cached_property, lru_cache
from itertools import accumulate
from pathlib import Path
from typing import Literal

from mminstruct import strict_yaml
from mminstruct.errors import UsageError, did_you_mean
from mminstruct.strict_yaml import Strict

_FOLDER = Path(__file__).parent
_COCO_NAME = re.compile(r"(?:COCO_\w+_)?(\d{12})(?:\.\w+)?|0*(\d+)")
_FORMS = {"coco": "{}", "flickr30k": "{}.jpg"}


def image_key(name: str | int) -> str:
    """What an image is found by, whichever way it is named.

    COCO's files of any year, its ids with and without zeros have the same: the number. Others have
    their file's name.
    """
    last = re.split(r"[\\/]", str(name).partition("?")[0])[-1]
    number = _COCO_NAME.fullmatch(last)
    return str(int(number[1] or number[2])) if number else last


class Benchmark(Strict):
    """The images of a benchmark, as they were published.

    Attributes:
        title: in words.
        source_url: where the list is.
        published: the day of its last change.
        checked_on: when it was read.
        images: whose they are.
        ids: numbers in ascending order, each as its difference to the one before.
    """

    title: str
    source_url: str
    published: datetime.date
    checked_on: datetime.date
    images: Literal["coco", "flickr30k"]
    ids: str

    @cached_property
    def keys(self) -> frozenset[str]:
        """The images, as `image_key` has them."""
        numbers = accumulate(map(int, self.ids.split()))
        return frozenset(map(_FORMS[self.images].format, numbers))


@lru_cache(1)
def known() -> dict[str, Benchmark]:
    """All of them by name."""
    return {
        path.stem: strict_yaml.validate(Benchmark, strict_yaml.read(path), where=path.name)
        for path in sorted(_FOLDER.glob("*.yaml"))
    }


def find_images(names: Sequence[str]) -> dict[str, frozenset[str]]:
    """What some names stand for: title -> images, as `image_key` has them.

    Args:
        names: of benchmarks, of groups of them, such as ``karpathy`` for ``karpathy_val`` and
            ``karpathy_test``, or of text files with the name or number of an image a line.

    Raises:
        UsageError: one stands for nothing.
    """
    found: dict[str, frozenset[str]] = {}
    for name in (part.strip() for several in names for part in several.split(",")):
        own = {b.title: b.keys for n, b in known().items() if n == name or n.startswith(f"{name}_")}
        if not own and (path := Path(name).expanduser()).is_file():
            try:
                lines = path.read_text("utf-8").split("\n")
            except (OSError, UnicodeDecodeError) as error:
                raise UsageError(f"exclude: {name}: can't be read as text: {error}") from error
            own = {path.name: frozenset(image_key(line.strip()) for line in lines if line.strip())}
        if not own:
            raise UsageError(
                f"exclude: expected a benchmark, or a file with names of images, got {name!r}"
                f"{did_you_mean(name, known())}"
            )
        found |= own
    return found
