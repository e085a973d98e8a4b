"""Heavy packages, imported when something of them is used first.

Type checkers are shown the usual import beside it.
"""

from __future__ import annotations

from importlib import import_module
from types import ModuleType
from typing import Any


class Late(ModuleType):
    """What stands for a module of that name until something of it is used."""

    def __getattr__(self, name: str) -> Any:
        value = getattr(import_module(self.__name__), name)
        setattr(self, name, value)  # so that it is asked for once
        return value
