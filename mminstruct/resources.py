"""Where the folders beside the package (builders, prompt_configs, cards) are found.

In a checkout they stand beside ``mminstruct/``; a wheel carries them inside it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

_PACKAGE = Path(__file__).parent


def folder(name: Literal["builders", "prompt_configs", "cards"]) -> Path:
    """The folder as installed with the package, else the one of the checkout."""
    packaged = _PACKAGE / name
    return packaged if packaged.is_dir() else _PACKAGE.parent / name
