"""How a release came about, invented: for tests of what is written about it."""

from __future__ import annotations

import datetime
from typing import Any

from instruct_rows import TYPES

from mminstruct import licenses, prompts
from mminstruct.releases.origin import Origin
from mminstruct.sources import SourceInfo

COCO = SourceInfo(
    name="COCO2017",
    title="COCO 2017",
    description="Invented facts about a real source.",
    homepage="https://example.org/coco",
    citation="@misc{coco,\n  title = {COCO}\n}",
    license="CC-BY-4.0",
    license_url="https://creativecommons.org/licenses/by/4.0/",
    attribution="The annotations are by the COCO Consortium, CC BY 4.0.",
    media_license="each image has its own licence",
    splits=("train", "validation"),
    version="1.0.0",
)
DAY = datetime.date(2026, 1, 31)


def origin(model: str = "mistralai/Mistral-7B-Instruct-v0.2", **changes: Any) -> Origin:
    """Of rows of COCO 2017 by a model, whose terms may be given as ``terms``."""
    registry = licenses.load()
    parts = [
        *licenses.annotation_parts(
            registry, source=COCO.name, title=COCO.title, license=COCO.license
        ),
        *changes.pop("terms", licenses.model_parts(registry, name=model, repo_id=model)),
    ]
    values: dict[str, Any] = {
        "sources": (COCO,),
        "configs": (prompts.load("llava"),),
        "types": TYPES,
        "backend": "openai",
        "model": model,
        "verdict": licenses.compose(registry, parts),
        "settings": {"backend": "openai", "model": model, "seed": "none"},
        "written_on": DAY,
    }
    return Origin(**{**values, **changes})
