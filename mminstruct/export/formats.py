"""Rows in the forms that trainers read.

Trainers count ``<image>``, and some ``<video>`` and ``<audio>``, in all text. A model that wrote
one itself would ask for an image that isn't there, so these three are taken out of turns.

**Source:** docs/exports.md names the files of each trainer that read its form.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

Row = Mapping[str, Any]
Images = Literal["none", "url", "path", "embed"]
IMAGES: tuple[Images, ...] = get_args(Images)
"""``none``: file names as rows have them; ``url``: their addresses; ``path``: files in a folder;
``embed``: files fetched into a folder."""
_TAGS = re.compile("<(?:image|video|audio)>")


class LeftOut(Exception):
    """A row that can't be exported: the reason, and the file that it is about, if any."""


@dataclass(frozen=True, slots=True)
class Format:
    """A form that rows are written in.

    Attributes:
        reader: what reads it.
        suffix: the end of its name unless told.
        records: what a row becomes, given its image as the reader finds it, or None.
        layout: one JSON document a line, one array of them, or an array under the key ``all``;
            or files of several rows with images, which are tar or Parquet.
        root: what image paths are relative to: ``images`` the image folder, which the reader is
            told; ``output`` the folder of the output; ``here`` the working directory.
        prefix: what the reader puts before an image's name, so that files have it.
        images: the ways in which it can have images.
        any_modality: whether it holds motions ... too, whose files no trainer of images opens.
        entry: its entry in a ``dataset_info.json`` beside it, or None.
    """

    reader: str
    suffix: str
    records: Callable[[Row, str | None], list[dict[str, Any]]]
    layout: Literal["lines", "array", "all", "tar", "parquet"]
    root: Literal["images", "output", "here"] = "here"
    prefix: str = ""
    images: tuple[Images, ...] = IMAGES
    any_modality: bool = False
    entry: Mapping[str, Any] | None = None

    @property
    def is_folder(self) -> bool:
        """Whether it is a folder of shards, with the images in them."""
        return self.layout in ("tar", "parquet")

    def name(self, image: str) -> str:
        """The image as records name it."""
        return re.sub("^COCO_(train|val)2014_", "", image) if self.prefix else image

    def file_name(self, image: str) -> str:
        """The image in its folder."""
        return self.prefix + self.name(image)


def row_records(row: Row, image: str | None) -> list[dict[str, Any]]:
    """The row as it is, but for where its image is."""
    return [{**row, "image": image}]


def llava_records(row: Row, image: str | None) -> list[dict[str, Any]]:
    """The row for LLaVA: the image before the first question, on a line of its own."""
    shown = {} if image is None else {"image": image}
    turns = _rename_turns(row, _FROM_VALUE, "<image>\n" if shown else "")
    return [{"id": row["id"], **shown, "conversations": turns, **_uses(row)}]


def sharegpt_records(row: Row, image: str | None) -> list[dict[str, Any]]:
    """The row for LLaMA-Factory: as many images as there are ``<image>``."""
    images = _as_list(image)
    turns = _rename_turns(row, _FROM_VALUE, "<image>" * len(images))
    return [{"conversations": turns, "images": images, **_uses(row)}]


def swift_records(row: Row, image: str | None) -> list[dict[str, Any]]:
    """The row for ms-swift: messages of text, in which ``<image>`` stands for the image."""
    images = _as_list(image)
    turns = _rename_turns(row, _ROLE_CONTENT, "<image>" * len(images))
    return [{"messages": turns, "images": images, **_uses(row)}]


def messages_records(row: Row, image: str | None) -> list[dict[str, Any]]:
    """The row for TRL: messages in parts, one of which is an empty place for the image."""
    images = _as_list(image)
    messages = _split_turns(row, [{"type": "image"} for _ in images])
    return [{"messages": messages, "images": images, **_uses(row)}]


def axolotl_records(row: Row, image: str | None) -> list[dict[str, Any]]:
    """The row for Axolotl: messages in parts, one of which says where the image is.

    Without ``image_license``, which it would open as an image.
    """
    key = "url" if image and image.startswith(("http://", "https://")) else "path"
    messages = _split_turns(row, [{"type": "image", key: found} for found in _as_list(image)])
    uses = {name: value for name, value in _uses(row).items() if "image" not in name}
    return [{"messages": messages, **uses}]


def lavin_records(row: Row, image: str | None) -> list[dict[str, Any]]:
    """One record a turn: LaVIN has no conversations, and reads no image without a source."""
    texts = [turn["value"] for turn in _rename_turns(row, _FROM_VALUE)]
    return [
        {
            "qid": f"{row['id']}-{number}",
            "instruction": f"Instruction: {question}\nResponse:",
            "answer": answer,
            "options": None,
            "image": image,
            "image_source": None if image is None else "mscoco",
            **_uses(row),
        }
        for number, (question, answer) in enumerate(zip(texts[::2], texts[1::2], strict=True))
    ]


def _uses(row: Row) -> dict[str, Any]:
    """The row's licences and use, never null: readers tell a column's type from its first values.

    What isn't known to be free isn't free.
    """
    known = {name: row.get(name) or "unknown" for name in ("license", "image_license")}
    return {**known, "commercial_use": row.get("commercial_use") is True}


_FROM_VALUE = ("from", "value", {"user": "human", "assistant": "gpt"})
_ROLE_CONTENT = ("role", "content", {"user": "user", "assistant": "assistant"})
_FILES: tuple[Images, ...] = ("none", "path", "embed")  # of readers that open no address
FORMATS: dict[str, Format] = {
    "jsonl": Format("anything", ".jsonl", row_records, "lines", any_modality=True),
    "llava-instruct": Format("LLaVA", ".json", llava_records, "array", "images", images=_FILES),
    "sharegpt": Format(
        "LLaMA-Factory",
        ".json",
        sharegpt_records,
        "array",
        "output",
        images=_FILES,
        entry={
            "formatting": "sharegpt",
            "columns": {"messages": "conversations", "images": "images"},
            "tags": {
                "role_tag": "from",
                "content_tag": "value",
                "user_tag": "human",
                "assistant_tag": "gpt",
            },
        },
    ),
    "messages": Format("TRL", ".jsonl", messages_records, "lines"),
    "axolotl": Format("Axolotl", ".jsonl", axolotl_records, "lines"),
    "ms-swift": Format("ms-swift", ".jsonl", swift_records, "lines"),
    "lavin": Format(
        "LaVIN", ".json", lavin_records, "all", "images", "COCO_train2014_", images=_FILES
    ),
    "webdataset": Format("webdataset", "", row_records, "tar", "images", images=_FILES[1:]),
    "parquet": Format("load_dataset", "", row_records, "parquet", "images", images=_FILES[1:]),
}
"""The forms by name; one more is one more entry."""
FILE_FORMATS = tuple(name for name, form in FORMATS.items() if "none" in form.images)
"""Those that need no images."""


def _rename_turns(
    row: Row, names: tuple[str, str, Mapping[str, str]], mark: str = ""
) -> list[dict[str, str]]:
    """The row's messages under other names, the first one after a mark.

    Raises:
        LeftOut: they don't alternate, or one is empty.
    """
    messages = row["messages"] or []
    expected = ["user", "assistant"] * (len(messages) // 2)
    if not messages or [message["role"] for message in messages] != expected:
        raise LeftOut("messages don't alternate between user and assistant")
    texts = [_drop_tags(message["content"] or "") for message in messages]
    if not all(text.strip() for text in texts):
        raise LeftOut("an empty message")
    role, content, roles = names
    texts[0] = mark + texts[0]
    return [
        {role: roles[message["role"]], content: text}
        for message, text in zip(messages, texts, strict=True)
    ]


def _split_turns(row: Row, images: list[dict[str, str]]) -> list[dict[str, Any]]:
    """The row's messages in parts, the images' before the first text."""
    messages: list[dict[str, Any]] = [
        {"role": turn["role"], "content": [{"type": "text", "text": turn["content"]}]}
        for turn in _rename_turns(row, _ROLE_CONTENT)
    ]
    messages[0]["content"][:0] = images
    return messages


def _as_list(image: str | None) -> list[str]:
    return [] if image is None else [image]


def _drop_tags(text: str) -> str:
    # What is left may be one again: "<im<image>age>".
    while (shorter := _TAGS.sub("", text)) != text:
        text = shorter.strip()
    return text
