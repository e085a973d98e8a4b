"""All that rows depend on besides contexts and completions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import lru_cache
from pathlib import Path
from typing import Literal

from mminstruct.checks import Checker, Vocabulary
from mminstruct.prompts.config import PromptConfig
from mminstruct.schema import Sampling, digest
from mminstruct.sources import SourceInfo

MAKES_ROWS = (
    *("annotations/*.py", "sources/*.py", "prompts/*.py", "answers/*.py", "rows/*.py"),
    *("checks/*.py", "checks/*.yaml"),
    *("schema.py", "strict_yaml.py", "splits.py", "recipe.py", "builder.py"),
    *("completions/client.py", "completions/job.py", "completions/sending.py"),  # shorten prompts
)
"""The code between annotation files and rows, relative to the package."""

OnContradiction = Literal["report", "drop", "reask"]


@dataclass(frozen=True)
class Plan:
    """All that rows depend on besides contexts and completions.

    Attributes:
        source: where the contexts are from.
        config: the prompt config.
        sampling: as asked for; ``seed`` is the run's, from which each request derives its own.
        backend: name of the backend, for rows.
        model: name of the model, for rows.
        license: of the text, for rows.
        commercial: whether the text may be used commercially; None is unknown.
        image_use: image licence in lower case -> whether the image may be used commercially.
        endpoint: the APIs that answer, as `Registry.endpoint_names` has them; None in this process.
        check: what becomes of turns that the annotations contradict.
        checker: finds them; its vocabulary comes from the files that contexts come from.
    """

    source: SourceInfo
    config: PromptConfig
    sampling: Sampling
    backend: str
    model: str
    license: str
    commercial: bool | None = None
    image_use: Mapping[str, bool | None] = field(default_factory=dict)
    endpoint: str | None = None
    check: OnContradiction = "report"
    checker: Checker = field(default_factory=lambda: Checker(Vocabulary()), compare=False)

    def digest(self) -> str:
        """Changes whenever the same completions would give other rows."""
        keyed = [f.name for f in fields(self) if f.compare and f.name != "config"]
        others = [getattr(self, name) for name in keyed]
        return digest([code_version(), self.config.hash, *others])


@lru_cache(maxsize=1)
def code_version() -> str:
    """Digest of `MAKES_ROWS`, so that no cache goes stale.

    Of backends and licences rows take values, which are in keys themselves. Stored answers don't
    depend on it: what was paid for survives any change of the code.
    """
    return digest_of_code(Path(__file__).parents[1])


def digest_of_code(package: Path) -> str:
    """As `code_version`, of the package in a folder."""
    files = {f for pattern in MAKES_ROWS for f in package.glob(pattern)}
    return digest({str(f.relative_to(package)): f.read_text("utf-8") for f in sorted(files)})[:16]
