"""Multimodal instruction data from any annotated source, with any LLM, under a licence that holds.

Importing it lets `datasets.load_dataset` find the builders:
``load_dataset("builders/coco2014_llava")``.
"""

import importlib
import sys
from typing import TYPE_CHECKING, Any

# Of ``python -m mminstruct``, this is loaded first, and takes seconds.
if sys.argv[:1] == ["-m"] and sys.orig_argv[-len(sys.argv)] == "mminstruct":
    from mminstruct_command import end_in_peace

    end_in_peace()

from mminstruct.loading import register
from mminstruct.version import __version__

if TYPE_CHECKING:
    from mminstruct.generation import generate
    from mminstruct.releases.hub import push_to_hub

__all__ = ["__version__", "generate", "push_to_hub"]

register()


# Not needed to load a builder, and what they import takes a while.
_LAZY = {"generate": "mminstruct.generation", "push_to_hub": "mminstruct.releases.hub"}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_LAZY[name]), name)
