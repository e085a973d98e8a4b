"""Multimodal instruction data from any annotated source, with any LLM, under a licence that holds.

Importing it lets `datasets.load_dataset` find the builders:
``load_dataset("builders/coco2014_llava")``.
"""

import importlib
from typing import TYPE_CHECKING, Any

from mminstruct.loading import register

if TYPE_CHECKING:
    from mminstruct.generation import generate, merge
    from mminstruct.releases.hub import push_to_hub
    from mminstruct.version import __version__

__all__ = ["__version__", "generate", "merge", "push_to_hub"]

register()

# What is imported when it is asked for, as it takes a while.
_HOMES = {"__version__": "version", "push_to_hub": "releases.hub"}
_HOMES |= {"generate": "generation", "merge": "generation"}
_MODULES = {"annotations", "backends", "builder", "errors", "export", "licenses", "prompts"}
_MODULES |= {"schema", "sources"}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    if name in _MODULES:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
