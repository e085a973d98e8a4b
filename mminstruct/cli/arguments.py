"""The parser of the command line: words in any order, words from files, one line for what is wrong.

A flag of several values ends at the next flag, at a source, and before a word that it doesn't know
where the command still lacks one. ``@FILE`` stands for the words in a file, ``--config FILE`` for
the sources and flags in one.
"""

from __future__ import annotations

import argparse
import difflib
import importlib
import re
import shlex
import sys
from collections import deque
from collections.abc import Collection, Iterable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, NoReturn

from mminstruct.cli.console import find_width
from mminstruct.errors import UsageError, did_you_mean
from mminstruct.resources import fit, printable

USAGE = 2
_MODEL_SOURCE = ("--model_source", "--model-source")
_OF_SOURCES = ("generate", "estimate", "show", "license")
_Given = list[tuple[argparse.Action, list[str]]]


class Parser(argparse.ArgumentParser):
    """Of the whole command line, or of one command, whose module adds its arguments when needed."""

    def __init__(self, *args: Any, module: str | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._module = module

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """The values of a command and its flags, and this as ``parser``.

        Raises:
            UsageError: a file of words or flags can't be read, or has something unknown.
        """
        words = deque(args)
        if words and words[0].startswith("@"):
            words.extendleft(reversed(_words_in(words.popleft())))
        commands = self.commands()
        if words and words[0] in commands:
            if words[0] in _OF_SOURCES:
                _load_named(words)
            command = commands[words.popleft()].fill()
            given, others, unknown = command._sort(words)
            if unknown:
                hint = self._hint(command, unknown[0].partition("=")[0])
                command.error(f"unrecognized arguments: {unknown[0]}{hint}")
            rest = ["--", *others] if others else []
            found = super(Parser, command).parse_args([*_write_flags(given), *rest], namespace)
            found.parser = self
            return found
        if words and words[0].partition("=")[0] not in self._option_string_actions:
            flag, is_flag = words[0].partition("=")[0], words[0].startswith("-")
            hint = self._hint(self, flag) if is_flag else did_you_mean(flag, commands)
            self.error(f"{'unrecognized arguments:' if is_flag else 'no command'} {words[0]}{hint}")
        return super().parse_args(words, namespace)

    def error(self, message: str) -> NoReturn:
        """Say in a line what is wrong, and where to read on; exit."""
        message = re.sub(r"^argument ([-\w]+)[^:]*: ", r"\1: ", printable(message))
        message = message.replace("arguments: -- ", "arguments: ")  # which we put before words
        text = f"{self.prog}: error: {message}; see {self.prog} --help"
        width = find_width(sys.stderr) or self.get_default("width")
        self.exit(USAGE, fit(text, width, name="") + "\n")

    def commands(self) -> dict[str, Parser]:
        """The parsers of its commands."""
        groups = (a for a in self._actions if isinstance(a, argparse._SubParsersAction))
        return {name: parser for group in groups for name, parser in group.choices.items()}

    def fill(self) -> Parser:
        """This, with all its arguments."""
        if self._module is not None:
            module, self._module = self._module, None
            importlib.import_module(module).add_arguments(self)
        return self

    def flags(self) -> list[str]:
        """All long flags."""
        options = self.fill()._option_string_actions
        return [option for option in options if option.startswith("--")]

    def given(self, args: argparse.Namespace) -> set[str]:
        """The flags that have other values than their defaults, by their names in ``args``."""
        flags = (action for action in self._actions if action.option_strings)
        return {a.dest for a in flags if getattr(args, a.dest, a.default) != a.default}

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            hint = did_you_mean(str(value), map(str, action.choices))
            raise argparse.ArgumentError(action, f"got {value!r}{hint}")

    def _hint(self, command: Parser, flag: str) -> str:
        """What to do about a wrong flag, in brackets."""
        owners = [name for name, other in self.commands().items() if flag in other.flags()]
        if owners and command is self:
            return f" ({flag} has its place after the command)"
        if owners:
            return f" ({flag} is a flag of {', '.join(owners)})"
        near = difflib.get_close_matches(flag, command.flags(), n=1)
        return f" (did you mean {near[0]!r}?)" if near else ""

    def _sort(self, words: deque[str]) -> tuple[_Given, list[str], list[str]]:
        """Flags with their values, all other words, and flags that the command doesn't have."""
        given: _Given = []
        others: list[str] = []
        unknown: list[str] = []
        files: set[str] = set()
        while words:
            word = words.popleft()
            flag, is_whole, value = word.partition("=")
            action = self._option_string_actions.get(flag)
            if word == "--":
                others += words
                break
            if word.startswith("@"):
                if word in files:
                    raise UsageError(f"{word}: expected each file of words once, got it again")
                files.add(word)
                words.extendleft(reversed(_words_in(word)))
            elif action is None:
                (unknown if _is_flag(word) else others).append(word)
            elif is_whole:
                given.append((action, [value]))
            else:
                values: list[str] = []
                most = 0 if action.nargs == 0 else len(words) if action.nargs == "+" else 1
                ends = "@" if most > 1 else ()  # a model's name may begin with @
                while len(values) < most and words and not _is_flag(words[0]):
                    if words[0].startswith(ends):
                        break
                    values.append(words.popleft())
                given.append((action, values))
        from_file = self._deal(given, others)
        return given + from_file, others, unknown

    def _deal(self, given: _Given, others: list[str]) -> _Given:
        """Give words after a flag of several values back that aren't the flag's.

        Returns:
            The flags in files; the sources in them are among the other words then.
        """
        places = [action for action in self._actions if not action.option_strings]
        takes_sources = bool(places) and places[0].dest == "sources"
        several = [(action.dest, values) for action, values in given if action.nargs == "+"]
        for _, values in several:
            values[:] = _separate(values)
            if takes_sources:
                first = next((n for n, v in enumerate(values) if n and is_source(v)), len(values))
                others += values[first:]
                del values[first:]
        taken = {action.dest for action, _ in given}
        taken |= {places[0].dest for word in others if takes_sources and is_source(word)}
        files = [value for action, values in given if action.dest == "config" for value in values]
        found = [flag for file in files for flag in self._flags_in(file, taken)]
        others += [word for action, values in found if action in places for word in values]
        found = [(action, values) for action, values in found if action not in places]
        doubtful = [
            (values, value)
            for flag, values in several
            for value in values[1:]
            if value not in _known_values(flag, given + found)
        ]
        free = (1 if takes_sources and places[0].nargs == "+" else len(places)) - len(others)
        if 0 < free < len(doubtful):
            named = " and ".join(repr(value) for _, value in doubtful)
            place = places[-free].metavar or places[-free].dest
            self.error(f"{named}: can't tell which of them is {place}; put it before the flags")
        for values, value in doubtful if free > 0 else ():
            values.remove(value)
            others.append(value)
        if takes_sources:
            others.sort(key=lambda word: not is_source(word))
        return found

    def _flags_in(self, file: str, given: Collection[str]) -> Iterator[tuple[Any, list[str]]]:
        """Sources and flags in a YAML file that aren't given on the line, which goes before it."""
        from mminstruct import strict_yaml

        known = {flag[2:]: self._option_string_actions[flag] for flag in self.flags()}
        known |= {action.dest: action for action in self._actions if action.dest == "sources"}
        for key in ("config", "help"):
            known.pop(key, None)
        for key, value in strict_yaml.read(Path(file).expanduser()).items():
            action = known.get(key)
            values = value if isinstance(value, list) else [value]
            if action is None:
                raise UsageError(f"{file}: unknown key {key!r}{did_you_mean(str(key), known)}")
            is_switch = action.nargs == 0
            if any(isinstance(v, bool) is not is_switch or isinstance(v, dict) for v in values):
                expected = "true or false" if is_switch else "a text, a number or a list of them"
                raise UsageError(f"{file}: {key}: expected {expected}, got {value!r}")
            if action.dest not in given and value is not False:
                words = [] if is_switch else list(map(str, values))
                yield action, _separate(words) if action.nargs == "+" else words


def _write_flags(given: _Given) -> Iterator[str]:
    """Flags with their values, so that argparse can't take a value for something else."""
    for action, values in given:
        flag = action.option_strings[0]
        if action.nargs == "+" or not values:
            yield from (flag, *values)
        else:
            yield from (f"{flag}={value}" for value in values)


def _separate(words: list[str]) -> list[str]:
    """The values of a flag that takes several, with commas between them or without."""
    return [value.strip() for word in words for value in word.split(",") if value.strip()]


def _is_flag(word: str) -> bool:
    """Whether a word looks like a flag, and not like a number below zero."""
    return bool(re.match(r"-[^\d.]", word))


def _load_named(words: Iterable[str]) -> None:
    """Load the user's own sources and backends that are named: their options are flags."""
    from mminstruct import backends, sources

    for before, word in pairwise(words):
        flag, _, value = word.partition("=")
        if before in _MODEL_SOURCE or flag in _MODEL_SOURCE:
            backends.load_named(value or word)
        else:
            sources.load_named(word)


def is_source(word: str) -> bool:
    """Whether it is the name of a source, or of several joined."""
    from mminstruct import sources

    return sources.is_source(word)


def _known_values(flag: str, given: _Given) -> Collection[str]:
    """What a flag of several values is known to take."""
    from mminstruct import licenses, plugins, prompts, sources

    if flag == "splits":
        return sources.known_splits()
    if flag == "types":
        own = [
            name for action, values in given if action.dest == "prompt_config" for name in values
        ]
        ours = [name for name, where in prompts.names().items() if where == plugins.OURS]
        return {kind for name in own or ours for kind in prompts.load(name).types}
    return {"any", "commercial", *licenses.load().by_name}


def _words_in(word: str) -> list[str]:
    """The words in the file that ``@FILE`` names, as a shell would read them; # is a comment."""
    try:
        text = Path(word[1:]).expanduser().read_text(encoding="utf-8")
        return shlex.split(text, comments=True)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UsageError(f"{word}: expected a file of words for the line, got: {reason}") from error
