"""The messages of three contexts of each source, as files that a person has read.

After a wanted change: ``python tests/test_goldens.py`` writes them anew; read the difference.
"""

from __future__ import annotations

import re
import tempfile
from collections import Counter
from itertools import islice
from pathlib import Path

import pytest
from dummy_data import write_all

from mminstruct import loading, prompts, sources
from mminstruct.rows.requests import prompts_of
from mminstruct.sources import ReadReport

FOLDER = Path(__file__).parent / "goldens"
NAMES = [*sources.names(), "COCO2017+LVIS+LN"]


def rendered(name: str, data: Path) -> str:
    """What comes last in the messages of the first three contexts, after the system prompts."""
    source = sources.get(name)
    files = source.locate([data], source.info.splits[0])
    assert files is not None
    config = prompts.load(source.info.prompt_config)
    contexts = list(islice(source.read(files, ReadReport()), 3))
    parts = []
    made = source.info, config, 0
    for kind in config.types:
        one, *others = config.fit(contexts[0]).drawn
        parts.append(f"=== {kind}, system, 1 of {1 + len(others)}\n{one.types[kind].system}")
    for context in contexts:
        for kind in config.types:
            message = next(prompts_of(context, kind, *made)).messages[-1]
            parts.append(f"=== {context.id}, {kind}, {message.role}\n{message.content}")
    return "\n\n".join(parts) + "\n"


def path_of(name: str) -> Path:
    return FOLDER / f"{name.lower().replace('+', '_')}.txt"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_all(tmp_path_factory.mktemp("data"), 3)


@pytest.mark.parametrize("name", NAMES)
def test_the_messages_of_a_source_are_those_that_were_read(name: str, data: Path) -> None:
    assert rendered(name, data) == path_of(name).read_text(encoding="utf-8")


@pytest.mark.parametrize("name", NAMES)
def test_no_line_of_a_context_is_repeated_and_none_shows_a_column_of_a_table(
    name: str, data: Path
) -> None:
    for part in rendered(name, data).split("=== "):
        lines = [line for line in part.splitlines() if line.strip()]
        assert not [line for line, count in Counter(lines).items() if count > 1]
        assert not re.search(r"ImageID|LabelName|IsGroupOf|image_id|/m/|\b(nan|None)\b", part)


def test_every_builder_has_a_source_with_a_golden_file() -> None:
    for name in loading.names():
        script = loading.script_of(f"builders/{name}")
        assert script is not None
        assert loading.builder_class(script).SOURCE in {*NAMES, ""}  # your own has no name


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        write_all(Path(folder), 3)
        for name in NAMES:
            path_of(name).write_text(rendered(name, Path(folder)), encoding="utf-8")
