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

from mminstruct.errors import MMInstructError, UsageError, fault_of
from mminstruct.schema import Option

OURS = "mminstruct"


@dataclass(frozen=True, slots=True)
class Found:
    """Something that has a name.

    Attributes:
        name: as its file is called, without the suffix.
        where: it is from, for people: ``mminstruct``, a path, or a package with its version.
        path: its file; None where an installed package says where it is.
        entry: what that says.
    """

    name: str
    where: str
    path: Path | None = None
    entry: EntryPoint | None = None

    def file(self, suffix: str) -> Path:
        """The file; an installed package has it in its module's folder, which isn't run for it."""
        if self.path is not None:
            return self.path
        assert self.entry is not None
        spec = find_spec(self.entry.module)
        return Path(spec and spec.origin or self.entry.module).parent / f"{self.name}{suffix}"


@dataclass(frozen=True, slots=True)
class Loaded:
    """The module of what was asked for.

    Attributes:
        found: as what.
        module: with what registers it.
        code: digest of it; None for the package's own, which has a version.
    """

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
        asked: modules of others that were asked for in this process, by name.
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
        ours = (path for path in self._files(self.home) if path.stem not in self.others)
        found = [Found(path.stem, OURS, path) for path in ours]
        if here.is_dir() and not here.samefile(self.home):
            found += [Found(path.stem, str(path), path) for path in self._files(here)]
        by_name: dict[str, list[Found]] = {}
        for one in (*found, *_installed(self.home.name)):
            by_name.setdefault(self.case(one.name), []).append(one)
        return dict(sorted(by_name.items()))

    def _files(self, folder: Path) -> list[Path]:
        return sorted(folder.glob(f"[!_]*{self.suffix}"))

    def names(self) -> dict[str, str]:
        """Name -> where it is from."""
        return {n: " and ".join(one.where for one in f) for n, f in self.find().items()}

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
            where = " and in ".join(one.where for one in found)
            raise UsageError(
                f"{found[0].name}: this name is in {where}; rename the file that is yours, as its "
                "name is the registration"
            )
        return found[0] if found else None

    def load(self, name: str) -> Loaded | None:
        """The module of that name or path, run again once its file has been edited; or None.

        Raises:
            UsageError: there are several, or a user's own raises an error or lacks what it needs.
        """
        found = self.choose(name)
        if found is None:
            return None
        if found.where == OURS:
            return self._ours(found)
        before = self.asked.get(self.case(found.name))
        loaded = _run_once(found, self.home.name, before) if found.path else _import(found)
        if not hasattr(loaded.module, self.needs):
            raise UsageError(f"{found.where}: expected {self.needs} in it, got none")
        self.asked[self.case(found.name)] = loaded
        return loaded

    def _ours(self, found: Found) -> Loaded:
        return Loaded(found, importlib.import_module(f"{OURS}.{self.home.name}.{found.name}"))

    def modules(self) -> dict[str, ModuleType]:
        """The package's modules, and those of others that were asked for, by name."""
        first = ((name, found[0]) for name, found in self.find().items())
        ours = {name: self._ours(one) for name, one in first if one.where == OURS}
        return {name: loaded.module for name, loaded in (ours | self.asked).items()}


def collect_options(
    modules: Mapping[str, ModuleType],
) -> dict[str, tuple[Option, tuple[str, ...]]]:
    """The options in the modules' ``OPTIONS``, each with the names of those that have it."""
    found: dict[str, tuple[Option, tuple[str, ...]]] = {}
    for name, module in modules.items():
        for option_name, option in options_of(module).items():
            _, owners = found.get(option_name, (option, ()))
            found[option_name] = (option, (*owners, name))
    return found


def options_of(module: ModuleType) -> Mapping[str, Option]:
    """What a module's object can be asked for beyond its defaults."""
    options: Mapping[str, Option] = getattr(module, "OPTIONS", {})
    return options


@cache
def _installed(kind: str) -> tuple[Found, ...]:
    entries = {(e.name, e.value): e for e in entry_points(group=f"{OURS}.{kind}")}.values()
    return tuple(
        Found(e.name, f"{e.dist.name} {e.dist.version}" if e.dist else e.module, entry=e)
        for e in entries
    )


def _run_once(found: Found, kind: str, before: Loaded | None) -> Loaded:
    assert found.path is not None
    path, content = found.path.resolve(), found.path.read_bytes()
    code = hashlib.sha256(content).hexdigest()
    if before is not None and (before.found.path, before.code) == (path, code):
        return before
    module = run(path, f"{OURS}_{kind}", content, found.where)
    return Loaded(Found(found.name, found.where, path), module, code)


def _import(found: Found) -> Loaded:
    assert found.entry is not None
    name = found.entry.module
    modules: list[ModuleType] = []
    fault = fault_of(lambda: modules.append(importlib.import_module(name)))
    if fault is not None:
        raise _told(fault, f"{found.where}: ") from fault
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
            raise _told(fault, where, path) from fault
        sys.modules[name] = module
        return module


def _told(error: Exception, where: str, path: Path | None = None) -> MMInstructError:
    """The error of a user's module with its line."""
    if isinstance(error, MMInstructError):
        return error
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if path and frame.filename == str(path)]
    file, line, message = (own or frames)[-1].filename, (own or frames)[-1].lineno, str(error)
    if isinstance(error, SyntaxError):
        file, line, message = error.filename or file, error.lineno, error.msg
    place = where if path and file == str(path) else f"{where}{file}"
    return UsageError(f"{place}, line {line}: {type(error).__name__}: {message}. Mend it there")
