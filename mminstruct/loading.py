"""Teaches `datasets.load_dataset` to run builders; the one place that touches its internals.

`datasets` >= 4 refuses a script found in a directory, while `GeneratorBasedBuilder` itself is
alive. So the function that turns a path into a builder module is wrapped: ``builders/<name>`` is
ours, any other path goes to the original untouched. `datasets` takes a second to import, which who
asks for ``--help`` need not wait for: it is wrapped when it is imported, if it isn't yet.
"""

from __future__ import annotations

import functools
import hashlib
import sys
import types
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mminstruct import plugins, resources
from mminstruct.errors import UsageError, did_you_mean

if TYPE_CHECKING:
    from mminstruct.builder import InstructBuilder

_PACKAGE = "mminstruct_builders"
_FACTORY = "dataset_module_factory"
_LOAD = "datasets.load"


def register() -> None:
    """Wrap `datasets`' module factory, once: now, or when it is imported."""
    if _LOAD in sys.modules:
        import datasets.inspect

        _wrap_in(datasets.load)
        _wrap_in(datasets.inspect)
    elif _Watch not in sys.meta_path:
        sys.meta_path.insert(0, _Watch)


class _Watch:
    """Finds `datasets.load` as everybody does, and has it wrapped before anybody sees it."""

    @staticmethod
    def find_spec(
        name: str, path: Sequence[str] | None, target: types.ModuleType | None = None
    ) -> ModuleSpec | None:
        """The module as it is found on its path, with a loader that wraps; None for any other."""
        spec = PathFinder.find_spec(name, path, target) if name == _LOAD else None
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def execute_and_wrap(module: types.ModuleType) -> None:
                execute(module)
                _wrap_in(module)

            spec.loader.exec_module = execute_and_wrap  # type: ignore[method-assign]  # one loader, not its class
        return spec


def _wrap_in(module: types.ModuleType) -> None:
    original = getattr(module, _FACTORY)
    if not getattr(original, "_mminstruct", False):
        setattr(module, _FACTORY, _wrap(original))


def script_of(path: str) -> Path | None:
    """The builder script that ``builders/<name>`` stands for: in the working directory, or ours."""
    folder = Path(path)
    if folder.parent.name != "builders":
        return None
    here = folder / f"{folder.name}.py"
    if here.is_file():
        return here
    packaged = resources.folder("builders") / folder.name / f"{folder.name}.py"
    return packaged if folder.parent == Path("builders") and packaged.is_file() else None


def names() -> list[str]:
    """The builders that come with the package."""
    return sorted(p.parent.name for p in resources.folder("builders").glob("*/*.py"))


def builder_class(script: Path) -> type[InstructBuilder]:
    """The builder that a script defines."""
    from mminstruct.builder import InstructBuilder

    module = _import(script)
    found = [
        value
        for value in vars(module).values()
        if isinstance(value, type)
        and issubclass(value, InstructBuilder)
        and value.__module__ == module.__name__
    ]
    if len(found) != 1:
        raise ImportError(f"{script.name}: expected one InstructBuilder, found {len(found)}")
    return found[0]


def find(source: str, prompt_config: str) -> Path | None:
    """The script among ours that names this source and prompt config, or None."""
    found = find_builder(source, prompt_config)
    return found and found[0]


def find_builder(source: str, prompt_config: str) -> tuple[Path, type[InstructBuilder]] | None:
    """As `find`, with the builder that the script defines."""
    for name in names():
        script = script_of(f"builders/{name}")
        if script is not None and name.startswith(f"{source.lower().replace('+', '_')}_"):
            cls = builder_class(script)
            if (source, prompt_config) == (cls.SOURCE, cls.PROMPT_CONFIG):
                return script, cls
    return None


def script_hash(script: Path) -> str:
    """Digest of a builder script and of the code it runs on."""
    from mminstruct.rows.plan import code_version

    content = script.read_bytes() + code_version().encode()
    return hashlib.sha256(content).hexdigest()[:16]


def _wrap(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def dataset_module_factory(path: str, *args: Any, **kwargs: Any) -> Any:
        script = script_of(str(path))
        if script is None:
            folder = Path(path)
            if folder.parent == Path("builders") and not folder.exists():
                raise UsageError(
                    f"there is no builder {folder.name!r}{did_you_mean(folder.name, names())}; "
                    "`mminstruct list` shows all"
                )
            return original(path, *args, **kwargs)
        # `load_dataset` keeps these two to itself, and means the data where we mean the model.
        if kwargs.get("trust_remote_code"):
            raise UsageError(
                "trust_remote_code: a builder needs none; if it is the model whose code may run, "
                'give engine={"trust_remote_code": True}'
            )
        revision = args[0] if args else kwargs.get("revision")
        held_back = {"revision": revision, "split": _split_asked_for()}
        given = {name: value for name, value in held_back.items() if value is not None}
        from datasets.load import DatasetModule

        return DatasetModule(
            _import(script).__name__,
            script_hash(script),
            {"base_path": str(script.parent), **given},
        )

    dataset_module_factory._mminstruct = True  # type: ignore[attr-defined]  # a mark by which it is known again
    return dataset_module_factory


def _split_asked_for() -> Any:
    """The ``split`` of the `load_dataset` that is under way; None if there is none.

    It tells a builder of it when all is generated, and paid for. Who has imported `load_dataset`
    before this package calls the original, so it can't be wrapped, as the factory here is.
    """
    frame: types.FrameType | None = sys._getframe()
    while frame is not None:
        if frame.f_globals.get("__name__") == _LOAD and frame.f_code.co_name == "load_dataset":
            return frame.f_locals["split"]
        frame = frame.f_back
    return None


def _import(script: Path) -> types.ModuleType:
    """The script as a module named after its folder, run anew, as it may have been edited."""
    return plugins.run(script, _PACKAGE, script.read_bytes(), str(script))
