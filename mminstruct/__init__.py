"""Multimodal instruction data from any annotated source, with any LLM, under a licence that holds.

Importing it lets `datasets.load_dataset` find the builders:
``load_dataset("builders/coco2014_llava")``.
"""

import sys
from typing import TYPE_CHECKING, Any

# Of ``python -m mminstruct``, this is loaded first, and takes seconds.
if sys.argv[:1] == ["-m"] and sys.orig_argv[-len(sys.argv)] == "mminstruct":
    from mminstruct_command import end_in_peace

    end_in_peace()

from mminstruct.loading import register
from mminstruct.version import __version__

if TYPE_CHECKING:
    from mminstruct.releases.hub import push_to_hub

__all__ = ["__version__", "push_to_hub"]

register()


def __getattr__(name: str) -> Any:
    # Not needed to load a builder, and what it imports takes a while.
    if name == "push_to_hub":
        from mminstruct.releases.hub import push_to_hub

        return push_to_hub
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
