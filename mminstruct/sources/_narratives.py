"""Localized Narratives: JSON lines with one spoken description of an image each.

Read are the published files with captions alone, and those with timings and mouse traces, too,
which nobody needs here: the typed decoder steps over them.

**Source:** https://google.github.io/localized-narratives/ (annotations: CC BY 4.0, Google LLC).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec

from mminstruct.errors import SourceError

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


_decoder = msgspec.json.Decoder(Narrative)


def read(path: Path) -> Iterator[Narrative]:
    """The narratives in the file's order, white space in their texts cleaned; empty lines skipped.

    Raises:
        SourceError: a line isn't a narrative.
    """
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if line.isspace():
                    continue
                try:
                    narrative = _decoder.decode(line)
                except (msgspec.DecodeError, UnicodeDecodeError) as error:
                    raise SourceError(
                        f"{path.name}, line {number}: not a narrative, got {line[:80]!r} "
                        f"({error}) against a JSON object with image_id and caption expected. "
                        "Fix that line or download the file again."
                    ) from error
                narrative.caption = " ".join(narrative.caption.split())
                yield narrative
    except OSError as error:
        raise SourceError(
            f"{path.name}: can't be read, got '{error.strerror}' against a readable file expected. "
            "Check that it exists and its permissions."
        ) from error
