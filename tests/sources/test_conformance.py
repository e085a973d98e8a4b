"""What every source must offer: each module in ``mminstruct/sources``, and data of your own."""

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec
import pytest
from dummy_data import own_files, write_all

from mminstruct import sources
from mminstruct.errors import SourceError, UsageError
from mminstruct.schema import Box, Context, Media
from mminstruct.sources import Download, Files, ReadReport, Source
from mminstruct.testing import check_source

NAMES = sorted(sources.names())
OWN = "own data"


@pytest.fixture(params=[*NAMES, OWN])
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def source(name: str, tmp_path: Path) -> Source:
    return sources.get(str(own_files(tmp_path, 3)) if name == OWN else name)


def test_there_are_sources() -> None:
    assert {"COCO2014", "COCO2017"} <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_the_source_is_called_as_it_is_typed(name: str) -> None:
    source = sources.get(name)
    assert source.info.name.upper() == name
    assert sources.get(name.lower()).info == source.info


def test_the_source_offers_what_every_source_must(source: Source, tmp_path: Path) -> None:
    check_source(source, write_all(tmp_path, 3))


class Wrong:
    """A source with faults of all kinds."""

    info = dataclasses.replace(
        sources.get("SAMPLE").info,
        license="other",
        homepage="example.org",
        title=" Sample",
        citation="Sample, 2026",
        version="1",
        splits=("train", "train"),
        description="",
    )

    def downloads(self, split: str) -> tuple[Download, ...]:
        if split == "train":
            return (Download("ftp://example.org", 0, "A"),)
        raise SourceError("no files")

    def locate(self, places: Sequence[Path], split: str) -> Files:
        return Files({}, "")

    def file_names(self, split: str) -> dict[str, str]:
        return {}

    def read(self, files: Files, report: ReadReport) -> Iterator[Context]:
        yield Context("2", Media("", "motion"), ("A gull. ",), (Box("", (0.1, 0.2, 0.1, 0.4)),))
        yield Context("1", Media(str(id(report))), annotations={"facts": ({"name": "a"},)})


def test_all_faults_of_a_source_are_told_at_once() -> None:
    with pytest.raises(UsageError, match="an item has name, value"):
        check_source(Wrong(), ".")
    with pytest.raises(AssertionError) as raised:
        check_source(Without(), ".")
    told = [line.removeprefix("SAMPLE: ") for line in str(raised.value).splitlines()]
    assert [line.partition(",")[0].partition(" Download(")[0] for line in told] == [
        "title has white space around it",
        "description is empty",
        "license: expected an SPDX identifier",
        "expected a web address",
        "citation: expected BibTeX",
        "version: expected three numbers",
        "splits: one is there twice",
        "downloads: got",
        "downloads: got",
        "locate: finds files of a split that there isn't",
        "read: report.contexts is 0 after 2",
        "read: gives others the second time",
        "read: expected ids that ascend",
        "context 2: expected a modality 'image'",
        "context 2: expected the name of its file",
        "context 2: captions that are empty",
        "context 2: expected a label and 0 <= min < max <= 1: Box(label=''",
    ]


class Without(Wrong):
    """The same without annotations that can't be read at all."""

    def read(self, files: Files, report: ReadReport) -> Iterator[Context]:
        for context in super().read(files, report):
            yield msgspec.structs.replace(context, annotations={})
