"""Localized Narratives: JSON lines with one spoken description of an image each.

Read are the published files with captions alone, and those with timings and mouse traces, too,
which nobody needs here: the typed decoder steps over them.

**Source:** https://google.github.io/localized-narratives/ (annotations: CC BY 4.0, Google LLC).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import msgspec

from mminstruct.errors import SourceError
from mminstruct.sources._annotation_file import PART, find_first, find_parts, open_text
from mminstruct.sources._base import Files, ReadReport
from mminstruct.sources._tolerance import convert, loads

URL = "https://storage.googleapis.com/localized-narratives/annotations"
CITATION = """\
@inproceedings{PontTuset2020narratives,
  title     = {Connecting Vision and Language with Localized Narratives},
  author    = {Pont-Tuset, Jordi and Uijlings, Jasper and Changpinyo, Soravit and
               Soricut, Radu and Ferrari, Vittorio},
  booktitle = {European Conference on Computer Vision},
  year      = {2020}
}"""


class Narrative(msgspec.Struct, gc=False):
    """One line of the file, as far as it matters here."""

    image_id: str
    caption: str
    dataset_id: str = ""


# How the ``dataset_id`` of all that were published begins; Flickr30k is misspelt there.
_CORPORA = ("mscoco_", "open_images_", "flick30k_", "flickr30k_", "ade20k_")
_Id = TypeVar("_Id", int, str)
_UNREADABLE = (msgspec.DecodeError, ValueError, RecursionError)
_decoder = msgspec.json.Decoder(Narrative)


def locate(places: Sequence[Path], captions: str) -> dict[str, Path]:
    """Role -> file, of the file of captions alone, or the one with traces, which may be in parts.

    Each role begins with ``narratives``. Of the former, the published name is given.
    """
    full = captions.replace("_captions.", "_localized_narratives.")
    if path := find_first(places, captions) or find_first(places, full):
        return {"narratives": path}
    found = (path for place in reversed(places) for path in find_parts(place, full))
    parts = {path.name.removesuffix(".gz"): path for path in found}
    return {f"narratives{n or ''}": parts[name] for n, name in enumerate(sorted(parts))}


def read(
    files: Files, images: str, number: Callable[[str], _Id | None], form: str, report: ReadReport
) -> dict[_Id, list[str]]:
    """Image's number -> its narratives, distinct, white space cleaned, in the files' order.

    Args:
        files: some of them as from `locate`.
        images: how the ``dataset_id`` of the files' images begins.
        number: image id -> number or what else goes for it, or None if it can't be one.
        form: what an image id is, in words.
        report: counts what is left out; empty lines are not.

    Raises:
        SourceError: the narratives are of other images, or most lines of a file are none.
    """
    texts: dict[_Id, list[str]] = {}
    paths = [path for role, path in files.paths.items() if role.startswith("narratives")]
    for path in paths:
        found = ReadReport(kept={"narrative": 0})
        for narrative in _narratives(path, images, found):
            if (owner := number(narrative.image_id)) is None:
                found.skip(f"narrative whose image id isn't {form}", example=narrative.image_id)
                continue
            text, own = " ".join(narrative.caption.split()), texts.setdefault(owner, [])
            if not text:
                found.skip("empty narrative", example=narrative.image_id)
            elif text in own:
                found.skip("repeated narrative", example=narrative.image_id, harmless=True)
            else:
                own.append(text)
                found.kept["narrative"] += 1
        found.check(path.name)
        report.add(found)
    _report_missing(paths, report)
    return {owner: own for owner, own in texts.items() if own}


def _report_missing(paths: list[Path], report: ReadReport) -> None:
    """Count the parts of a file that aren't there, and name them."""
    there: dict[tuple[str, str], set[int]] = {}
    for path in paths:
        if part := PART.fullmatch(path.name):
            there.setdefault((part[1], part[3]), set()).add(int(part[2]))
    for (stem, of), numbers in there.items():
        if missing := [f"{n:05}" for n in range(int(of)) if n not in numbers]:
            named = f"{stem}: {', '.join(missing)} of {of}"
            report.skip("file of narratives that isn't there", len(missing), example=named)


def _narratives(path: Path, images: str, found: ReadReport) -> Iterator[Narrative]:
    """What a file has, but for what can't be read."""
    with open_text(path) as file:
        for line_number, line in enumerate(file, 1):
            if line.isspace():
                continue
            named = f"line {line_number}"
            try:
                narrative = _decoder.decode(line)
            except _UNREADABLE:
                try:
                    narrative = convert(loads(line), Narrative, "narrative", found, named)
                except _UNREADABLE:
                    found.skip("narrative that can't be read", example=named)
                    continue
            of_others = narrative.dataset_id.casefold()
            if of_others.startswith(_CORPORA) and not of_others.startswith(images):
                raise SourceError(
                    f"{path.name}, {named}: got the dataset_id {narrative.dataset_id!r} against "
                    f"{images}... expected: these narratives are of other images. Give the file "
                    "that this name belongs to."
                )
            yield narrative
