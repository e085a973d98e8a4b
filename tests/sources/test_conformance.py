"""What every source must offer: each module in ``mminstruct/sources``, and data of your own."""

import dataclasses
import re
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from dummy_data import own_files, write_all

from mminstruct import annotations, sources
from mminstruct.errors import SourceError, UsageError
from mminstruct.sources import ReadReport, Source

SPDX_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9.+-]*")
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


def test_facts_that_every_source_has_are_given_and_without_stray_white_space(
    source: Source, name: str
) -> None:
    absent = {"citation", "parts", "alike", "declared", *(["license_url"] if name == OWN else [])}
    facts = dataclasses.asdict(source.info)
    facts["alike"] = [label for pair in source.info.alike for label in pair]
    for field, value in facts.items():
        assert value or field in absent, f"{field} is empty"
        for text in [value] if isinstance(value, str) else value:
            assert text == text.strip(), f"{field} has white space around it"


def test_the_licence_is_an_spdx_identifier(source: Source) -> None:
    assert SPDX_ID.fullmatch(source.info.license)
    assert source.info.license.lower() not in {"unknown", "other"}


def test_addresses_are_web_addresses(source: Source, name: str) -> None:
    # Of what a user declares, the address is where the licence is registered.
    for url in [source.info.homepage, *([source.info.license_url] if name != OWN else [])]:
        parts = urlsplit(url)
        assert parts.scheme in {"http", "https"}
        assert parts.netloc


def test_the_citation_is_bibtex_where_there_is_something_to_cite(source: Source) -> None:
    assert source.info.citation.startswith("@") or not source.info.citation
    assert source.info.citation.count("{") == source.info.citation.count("}")


def test_the_version_has_three_numbers(source: Source) -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+", source.info.version)


def test_splits_are_distinct(source: Source) -> None:
    assert len(set(source.info.splits)) == len(source.info.splits)


def test_sizes_and_md5s_of_downloads_look_like_some(
    source: Source,
) -> None:
    for split in source.info.splits:
        try:
            downloads = source.downloads(split)
        except SourceError as error:
            assert "https://" in str(error)  # where to get it by hand
            continue
        for download in downloads:
            assert urlsplit(download.url).scheme in {"http", "https"}
            assert download.size_bytes is None or download.size_bytes > 0
            assert download.md5 is None or re.fullmatch(r"[0-9a-f]{32}", download.md5)


def test_an_unknown_split_is_never_found(source: Source, tmp_path: Path) -> None:
    try:
        assert source.locate([tmp_path], "no-such-split") is None
    except UsageError as error:
        assert "no-such-split" in str(error)


def test_contexts_are_about_what_the_source_says(source: Source, tmp_path: Path) -> None:
    files = source.locate([write_all(tmp_path, 3)], source.info.splits[0])
    assert files is not None
    contexts = list(source.read(files, ReadReport()))
    assert [context.id for context in contexts] == sorted({context.id for context in contexts})
    for context in contexts:
        assert context.media.modality == source.info.modality
        assert context.media.file_name
        for kind, items in context.annotations.items():
            assert all(isinstance(item, type(annotations.items(kind, [item])[0])) for item in items)
