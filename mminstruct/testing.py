"""What every source must offer, to be checked in the tests of whoever writes one."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import fields
from itertools import pairwise
from pathlib import Path
from urllib.parse import urlsplit

from mminstruct.annotations import items as items_of
from mminstruct.errors import SourceError, UsageError
from mminstruct.schema import Context
from mminstruct.sources import ReadReport, Source, SourceInfo

_MAY_LACK = {"citation", "parts", "alike", "declared", "fitted"}


def check_source(source: Source, folder: str | Path) -> None:
    """Raise AssertionError with all that a source lacks.

    Args:
        source: such as ``sources.get("./birds.py")``.
        folder: with files of its first split; a few invented lines of each will do.
    """
    faults = (*_facts(source.info), *_downloads(source), *_contexts(source, Path(folder)))
    if wrong := [words for is_right, words in faults if not is_right]:
        raise AssertionError("\n".join(f"{source.info.name}: {words}" for words in wrong))


_Checks = Iterator[tuple[bool, str]]


def _facts(info: SourceInfo) -> _Checks:
    # Of what a user declares, the address is where the licence is registered.
    may_lack = _MAY_LACK | ({"license_url"} if info.declared else set())
    for name, value in ((field.name, getattr(info, field.name)) for field in fields(info)):
        yield value not in ("", ()) or name in may_lack, f"{name} is empty"
        texts = [value] if isinstance(value, str) else value if name == "splits" else []
        yield all(text == text.strip() for text in texts), f"{name} has white space around it"
    is_spdx = re.fullmatch(r"(?!(?i:unknown|other)$)[A-Za-z0-9][A-Za-z0-9.+-]*", info.license)
    yield bool(is_spdx), f"license: expected an SPDX identifier, got {info.license!r}"
    for url in filter(None, (info.homepage, info.license_url)):
        yield _is_web(url), f"expected a web address, got {url!r}"
    is_bibtex = info.citation[:1] == "@" and info.citation.count("{") == info.citation.count("}")
    yield is_bibtex or not info.citation, "citation: expected BibTeX"
    has_three = re.fullmatch(r"\d+\.\d+\.\d+", info.version)
    yield bool(has_three), f"version: expected three numbers, got {info.version!r}"
    yield len(set(info.splits)) == len(info.splits), "splits: one is there twice"


def _is_web(url: str) -> bool:
    return bool(re.match("https?$", urlsplit(url).scheme) and urlsplit(url).netloc)


def _downloads(source: Source) -> _Checks:
    for split in source.info.splits:
        try:
            for one in source.downloads(split):
                is_md5 = one.md5 is None or re.fullmatch("[0-9a-f]{32}", one.md5)
                is_size = one.size_bytes is None or one.size_bytes > 0
                yield bool(_is_web(one.url) and is_size and is_md5), f"downloads: got {one}"
        except SourceError as error:
            yield "https://" in str(error), "downloads: the error doesn't say where to get files"


def _contexts(source: Source, folder: Path) -> _Checks:
    try:
        nothing = source.locate([folder], "no-such-split")
        yield nothing is None, "locate: finds files of a split that there isn't"
    except UsageError as error:
        yield "no-such-split" in str(error), "locate: the error doesn't name the wrong split"
    files = source.locate([folder], source.info.splits[0])
    yield files is not None, f"locate: finds no files of the first split in {folder}"
    if files is None:
        return
    contexts = list(source.read(files, report := ReadReport.of(source.info.modality)))
    count = len(contexts)
    yield count > 0, f"read: gives no context, and left out {report.skipped}"
    yield report.contexts == count, f"read: report.contexts is {report.contexts} after {count}"
    yield contexts == list(source.read(files, ReadReport())), "read: gives others the second time"
    for one, next_one in pairwise(contexts):
        yield one.id < next_one.id, f"read: expected ids that ascend, got {one.id}, {next_one.id}"
    for context in contexts:
        yield from _one(context, source.info.modality)


def _one(context: Context, modality: str) -> _Checks:
    where, media = f"context {context.id}: ", context.media
    yield media.modality == modality, f"{where}expected a modality {modality!r}, got {media}"
    yield bool(media.file_name), f"{where}expected the name of its file, got none"
    tidy = [text.strip() for text in dict.fromkeys(context.captions) if text.strip()]
    yield tidy == list(context.captions), f"{where}captions that are empty, repeated or in space"
    for box in context.boxes:
        left, top, right, bottom = box.bbox_xyxy_norm
        is_box = 0 <= left < right <= 1 and 0 <= top < bottom <= 1
        yield is_box and bool(box.label), f"{where}expected a label and 0 <= min < max <= 1: {box}"
    for kind, items in context.annotations.items():
        yield items == items_of(kind, items), f"{where}{kind}: expected its Items"
