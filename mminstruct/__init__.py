"""Multimodal instruction data from any annotated source, with any LLM, under a licence that holds.

Importing it lets `datasets.load_dataset` find the builders:
``load_dataset("builders/coco2014_llava")``.
"""

from mminstruct.loading import register
from mminstruct.version import __version__

__all__ = ["__version__"]

register()
