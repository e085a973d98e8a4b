"""The columns of a row, each described once.

Cards, Croissant, exports, credits and the checks of rows that come back read them from here. A new
column is an entry in `ROW`, and values for it in `assembly`.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import pyarrow as pa
from datasets import Features, Value

from mminstruct.schema import Sampling

_TEXT, _INT, _FLOAT = Value("string"), Value("int32"), Value("float64")
_BOOL = Value("bool")
_FOUND = dict.fromkeys(("kind", "verdict", "said", "label", "known"), _TEXT)
SAMPLING = tuple(f.name for f in dataclasses.fields(Sampling) if f.name != "seed")
"""What all answers of a run are drawn with; a seed is each request's own."""
OF_RUN = {
    "backend": _TEXT,
    "model": _TEXT,
    "endpoint": _TEXT,
    "prompt_config": _TEXT,
    "prompt_version": _TEXT,
    "prompt_hash": _TEXT,
    **{name: _FLOAT if isinstance(getattr(Sampling(), name), float) else _INT for name in SAMPLING},
}
"""What all rows of a run have in common in their provenance; cards list the values."""


@dataclasses.dataclass(frozen=True, slots=True)
class Column:
    """A column of a row.

    Attributes:
        type: as `Features` has it.
        about: what it holds, as cards say it.
        needed_by: what can't be made of rows without it.
    """

    type: Any
    about: str
    needed_by: Literal["neither", "release", "export", "both"] = "neither"


ROW = {
    "id": Column(_TEXT, "unique: source, image and type; the same in every run", "both"),
    "source": Column(_TEXT, "whose annotations", "release"),
    "image_id": Column(_TEXT, "the image's (motion's ...) identifier in its source", "release"),
    "modality": Column(_TEXT, "what the annotations describe: `image`, `motion` ...", "both"),
    "media": Column(_TEXT, "the file's name in its release", "release"),
    "image": Column(_TEXT, "the same, of an image; null otherwise", "export"),
    "image_url": Column(_TEXT, "where the publisher serves it, if anywhere", "both"),
    "width": Column(_INT, "in pixels, if known"),
    "height": Column(_INT, "in pixels, if known"),
    "rotation_deg": Column(
        _INT,
        "degrees counter-clockwise by which the published file has to be turned; "
        "width, height and text are about the upright image",
    ),
    "image_license": Column(
        _TEXT, "the image's own licence (SPDX where there is an id); null is not known", "both"
    ),
    "image_credit": Column(
        dict.fromkeys(("author", "author_url", "title", "landing_url", "license_url"), _TEXT),
        "author, title and pages, as far as the release of the images tells",
        "release",
    ),
    "type": Column(_TEXT, "the type of instruction, which is also the name of a config", "both"),
    "messages": Column(
        [{"role": _TEXT, "content": _TEXT}],
        "the conversation: `role` is `user` or `assistant`",
        "both",
    ),
    "checks": Column(
        {
            "version": _TEXT,
            "verdicts": [_TEXT],
            "findings": [{"turn": _INT, **_FOUND}],
        },
        "what the annotations say to each turn: `supported`, `contradicted`, `supposed` or "
        "`unknown`; what was found in it, turns counted from 0; the version of the checks",
    ),
    "license": Column(_TEXT, "of the text, as the Hub calls it"),
    "commercial_use": Column(
        _BOOL,
        "whether text and image together may train any model commercially; null is not known",
        "release",
    ),
    "provenance": Column(
        {
            **OF_RUN,
            "seed": Value("int64"),
            "few_shots": _INT,
            "dropped_few_shots": _INT,
            "dropped_boxes": _INT,
            "finish_reason": _TEXT,
            "prompt_tokens": _INT,
            "completion_tokens": _INT,
            "notes": [_TEXT],
        },
        "backend, model, prompt config and its hash, sampling, examples shown, "
        "finish reason, tokens",
        "release",
    ),
}
"""The columns by name, in their order."""
NEEDED_BY_RELEASES = [n for n, column in ROW.items() if column.needed_by in ("release", "both")]
NEEDED_BY_EXPORTS = [n for n, column in ROW.items() if column.needed_by in ("export", "both")]
CREDITS = {
    **{name: name for name in ("source", "image_id", "media")},
    **{name: f"image_credit.{name}" for name in ("title", "author", "author_url", "landing_url")},
    "image_url": "image_url",
    "image_license": "image_license",
    "license_url": "image_credit.license_url",
}
"""What is said of an image that has to be credited -> where a row has it, as a text or None."""


class RowFeatures(Features):
    """Features that take Arrow arrays in the place of values as they are.

    `ArrowWriter` concatenates such arrays, while encoding and casting Python values again would
    cost as much as all the rest of a rerun from the store.
    """

    def __reduce__(self) -> tuple[type[RowFeatures], tuple[dict[str, Any]]]:
        """Those of a builder that goes to another process stay what they are."""
        return RowFeatures, (dict(self),)

    def encode_example(self, example: dict[str, Any]) -> dict[str, Any]:
        """The values as Arrow takes them; arrays as they are."""
        if isinstance(example["id"], pa.Array):
            return example
        encoded: dict[str, Any] = super().encode_example(example)
        return encoded


FEATURES = RowFeatures({name: column.type for name, column in ROW.items()})
"""The columns of a row."""
OUTCOME = {
    "reason": _TEXT,  # why there is no row; None for a row
    "detail": _TEXT,
    "answer": _TEXT,  # if there was one
    "rejected": _BOOL,
    "truncated": _BOOL,
    "contradicted": _INT,  # turns left out
}
"""What is noted of a request beside its row."""
RESULT = Features({**FEATURES, **OUTCOME})
RESULT_SCHEMA = RESULT.arrow_schema
