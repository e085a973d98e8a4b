"""What is registered by a name: in the package, in the working folder, by installed packages.

Names are those of files and of entry points, for which nothing is run; only what is asked for is
imported.
"""

from __future__ import annotations

import hashlib
import importlib
import sys
import threading
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

from mminstruct.errors import MMInstructError, UsageError, fault_of
from mminstruct.schema import Option

OURS = "mminstruct"
Options = dict[str, tuple[Option, tuple[str, ...]]]
"""Options by name, each with the names of what has it."""


class Found(NamedTuple):
    """What has a name; an installed package has no file of it, but an entry point.

    ``where`` it is from is for people: ``mminstruct``, a path, or a package with its version.
    """

    name: str
    where: str
    path: Path | None = None
    entry: EntryPoint | None = None

    def file(self, suffix: str) -> Path:
        """The file; beside an installed package's module, which isn't run for it."""
        if self.entry is None or self.path is not None:
            return self.path or Path()
        spec = find_spec(self.entry.module)
        return Path(spec and spec.origin or self.entry.module).parent / f"{self.name}{suffix}"


class Loaded(NamedTuple):
    """The module of what was found; a digest of its code, unless it is the package's."""

    found: Found
    module: ModuleType
    code: str | None = None


@dataclass(frozen=True, slots=True)
class Plugins:
    """All that is registered in one folder.

    Attributes:
        home: the package's folder. Its name is also that of the one in the working folder, and the
            group of the entry points is ``mminstruct.`` and that name.
        needs: the attribute that registers a module.
        suffix: of the files.
        case: in which names are written.
        others: modules in ``home`` that register nothing.
        asked: what was loaded in this process that isn't the package's, by name.
    """

    home: Path
    needs: str = ""
    suffix: str = ".py"
    case: Callable[[str], str] = str.lower
    others: tuple[str, ...] = ()
    asked: dict[str, Loaded] = field(default_factory=dict)

    def find(self) -> dict[str, list[Found]]:
        """Name, sorted -> all that is called so, the package's own first."""
        here = Path(self.home.name)
        folders = [self.home, *([here] if here.is_dir() and not here.samefile(self.home) else [])]
        files = [file for f in folders for file in sorted(f.glob(f"[!_]*{self.suffix}"))]
        by_name: dict[str, list[Found]] = {}
        for file in files:
            if (is_ours := file.parent == self.home) and file.stem in self.others:
                continue
            found = Found(file.stem, OURS if is_ours else str(file), file)
            by_name.setdefault(self.case(file.stem), []).append(found)
        for found in _installed(self.home.name):
            by_name.setdefault(self.case(found.name), []).append(found)
        return dict(sorted(by_name.items()))

    def names(self) -> dict[str, str]:
        """Name -> where it is from."""
        return {n: " and ".join(one.where for one in found) for n, found in self.find().items()}

    def choose(self, name: str) -> Found | None:
        """What has that name, or is the file of that path; None if there is nothing.

        Raises:
            UsageError: there are several.
        """
        path = Path(name).expanduser()
        is_file = path.suffix == self.suffix and path.is_file()
        found = self.find().get(self.case(path.stem if is_file else name), [])
        if is_file:
            others = (one for one in found if one.path is None or not one.path.samefile(path))
            found = [*others, Found(path.stem, str(path), path)]
        if len(found) > 1:
            raise UsageError(
                f"{found[0].name}: this name is in {' and in '.join(one.where for one in found)}; "
                "rename the file that is yours, as its name is the registration"
            )
        return found[0] if found else None

    def load(self, name: str) -> Loaded | None:
        """The module of that name or path, run again once its file has been edited; or None.

        Raises:
            UsageError: there are several, or a user's own raises an error or lacks what it needs.
        """
        found = self.choose(name)
        if found is None or found.where == OURS:
            return None if found is None else Loaded(*self._ours(found))
        key, kind = self.case(found.name), f"{OURS}_{self.home.name}"
        if found.path is not None:
            found = found._replace(path=found.path.resolve())
            content = found.file("").read_bytes()
            code = hashlib.sha256(content).hexdigest()
            before = self.asked.get(key)
            if before is not None and (before.found, before.code) == (found, code):
                return before
            loaded = Loaded(found, run(found.file(""), kind, content, found.where), code)
        else:
            loaded = _import(found)
        if not hasattr(loaded.module, self.needs):
            raise UsageError(f"{found.where}: expected {self.needs} in it, got none")
        self.asked[key] = loaded
        return loaded

    def _ours(self, found: Found) -> tuple[Found, ModuleType]:
        return found, importlib.import_module(f"{OURS}.{self.home.name}.{found.name}")

    def modules(self) -> dict[str, ModuleType]:
        """The package's modules, and those of others that were asked for, by name."""
        found = ((name, found[0]) for name, found in self.find().items())
        ours = {name: self._ours(one)[1] for name, one in found if one.where == OURS}
        return ours | {name: loaded.module for name, loaded in self.asked.items()}


def options_of(module: ModuleType) -> Mapping[str, Option]:
    """What a module's object can be asked for beyond its defaults."""
    options: Mapping[str, Option] = getattr(module, "OPTIONS", {})
    return options


def collect_options(modules: Mapping[str, ModuleType]) -> Options:
    """The options of modules, which have names."""
    found: Options = {}
    for name, module in modules.items():
        for option_name, option in options_of(module).items():
            _, owners = found.get(option_name, (option, ()))
            found[option_name] = (option, (*owners, name))
    return found


@cache
def _installed(kind: str) -> list[Found]:
    entries = {(e.name, e.value): e for e in entry_points(group=f"{OURS}.{kind}")}.values()
    dists = [f"{entry.dist.name} {entry.dist.version}" if entry.dist else "" for entry in entries]
    return [Found(e.name, where, entry=e) for e, where in zip(entries, dists, strict=True)]


def _import(found: Found) -> Loaded:
    modules: list[ModuleType] = []
    name = found.entry.module if found.entry else ""
    fault = fault_of(lambda: modules.append(importlib.import_module(name)))
    if fault is not None:
        raise _tell(fault, f"{found.where}: ") from fault
    file = Path(modules[0].__file__ or "")
    code = [found.where.encode(), file.read_bytes() if file.is_file() else b""]
    return Loaded(found, modules[0], hashlib.sha256(b" ".join(code)).hexdigest())


# One thread at a time runs a file.
_running = threading.Lock()


def run(path: Path, package: str, content: bytes, where: str) -> ModuleType:
    """A Python file with this content as a module of that package, which is made up.

    Other threads, which look it up by its name, find a whole one.

    Raises:
        UsageError: it raises an error.
    """
    name = f"{package}.{path.stem}"
    with _running:
        if package not in sys.modules:
            sys.modules[package] = parent = ModuleType(package)
            parent.__path__ = []
        spec = spec_from_file_location(name, path)
        assert spec is not None
        module = module_from_spec(spec)
        # Dataclasses look up their module. Nobody else does before it was there once.
        is_first = sys.modules.setdefault(name, module) is module
        # Not by its loader: that takes what it compiled a moment ago for it.
        fault = fault_of(lambda: exec(compile(content, path, "exec"), vars(module)))
        if fault is not None:
            if is_first:
                del sys.modules[name]
            raise _tell(fault, where, path) from fault
        sys.modules[name] = module
        return module


def _tell(error: Exception, where: str, path: Path | None = None) -> MMInstructError:
    """The error of a user's module with its line."""
    if isinstance(error, MMInstructError):
        return error
    frames = traceback.extract_tb(error.__traceback__)
    frame = [f for f in frames if f.filename == str(path)][-1:] or frames[-1:]
    file, line, message = frame[0].filename, frame[0].lineno, str(error)
    if isinstance(error, SyntaxError):
        file, line, message = error.filename or file, error.lineno, error.msg
    place = where if file == str(path) else f"{where}{file}"
    return UsageError(f"{place}, line {line}: {type(error).__name__}: {message}. Mend it there")
