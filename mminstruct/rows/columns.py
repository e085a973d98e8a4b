"""The columns of a row."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
from datasets import Features, Value


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


FEATURES = RowFeatures(
    {
        "id": Value("string"),
        "source": Value("string"),
        "image_id": Value("string"),
        "modality": Value("string"),
        # The file's name in its release; of an image in ``image`` too, as trainers want it.
        "media": Value("string"),
        "image": Value("string"),
        "image_url": Value("string"),
        "width": Value("int32"),
        "height": Value("int32"),
        # By which the published file has to be turned; all else is about the upright image.
        "rotation_deg": Value("int32"),
        "image_license": Value("string"),
        # What naming the image's author takes, as far as its release tells.
        "image_credit": {
            "author": Value("string"),
            "author_url": Value("string"),
            "title": Value("string"),
            "landing_url": Value("string"),
            "license_url": Value("string"),
        },
        "type": Value("string"),
        "messages": [{"role": Value("string"), "content": Value("string")}],
        "license": Value("string"),
        # Text and image together, to train any model; None is not known.
        "commercial_use": Value("bool"),
        "provenance": {
            "backend": Value("string"),
            "model": Value("string"),
            "endpoint": Value("string"),
            "prompt_config": Value("string"),
            "prompt_version": Value("string"),
            "prompt_hash": Value("string"),
            "temperature": Value("float64"),
            "top_p": Value("float64"),
            "max_tokens": Value("int32"),
            "seed": Value("int64"),
            "few_shots": Value("int32"),
            "dropped_few_shots": Value("int32"),
            "dropped_boxes": Value("int32"),
            "finish_reason": Value("string"),
            "prompt_tokens": Value("int32"),
            "completion_tokens": Value("int32"),
            "notes": [Value("string")],
        },
    }
)
"""The columns of a row."""
RESULT = Features(
    {
        **FEATURES,
        # None for a row; else why there is none.
        "reason": Value("string"),
        "detail": Value("string"),
        # The answer, if there was one.
        "answer": Value("string"),
        "rejected": Value("bool"),
        "truncated": Value("bool"),
    }
)
COUNTED = ["id", "type", "reason", "detail", "answer", "rejected", "truncated"]
RESULT_SCHEMA = RESULT.arrow_schema
MESSAGE_FIELDS = list(RESULT_SCHEMA.field("messages").type.value_type)
PROVENANCE_FIELDS = list(RESULT_SCHEMA.field("provenance").type)
CREDIT_FIELDS = list(RESULT_SCHEMA.field("image_credit").type)

COLUMNS = {
    "id": "unique: source, image and type; the same in every run",
    "source": "whose annotations",
    "image_id": "the image's (motion's ...) identifier in its source",
    "modality": "what the annotations describe: `image`, `motion` ...",
    "media": "the file's name in its release",
    "image": "the same, of an image; null otherwise",
    "image_url": "where the publisher serves it, if anywhere",
    "width": "in pixels, if known",
    "height": "in pixels, if known",
    "rotation_deg": "degrees counter-clockwise by which the published file has to be turned; "
    "width, height and text are about the upright image",
    "image_license": "the image's own licence (SPDX where there is an id); null is not known",
    "image_credit": "author, title and pages, as far as the release of the images tells",
    "type": "the type of instruction, which is also the name of a config",
    "messages": "the conversation: `role` is `user` or `assistant`",
    "license": "of the text, as the Hub calls it",
    "commercial_use": "whether text and image together may train any model commercially; "
    "null is not known",
    "provenance": "backend, model, prompt config and its hash, sampling, examples shown, "
    "finish reason, tokens",
}
"""What the columns of a row hold."""
CREDIT_COLUMNS = (
    *("source", "image_id", "media", "title", "author", "author_url"),
    *("landing_url", "image_url", "license", "license_url"),
)
"""What is said of an image that has to be credited; each is text or None."""
