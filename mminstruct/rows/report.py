"""What became of the requests of a split, counted."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.compute as pc

from mminstruct.answers.repeats import Repeats, are_many
from mminstruct.completions.stats import NOT_SENT
from mminstruct.errors import NoRows, RunStopped, UsageError
from mminstruct.resources import count_of

REJECTED = "rejected.jsonl"
"""What gave no row, and why; with the answers, which stay on this machine."""

LEFT_OUT = "left_out.jsonl"
"""What reading the annotations left out, with examples, which stay on this machine."""

VIEW = "view.html"
"""The page of rows and of what gave none, which stays on this machine."""

_BY_TYPE = ("rejected", "failed", "repeated")


@dataclass
class Report:
    """What became of the requests of a split.

    Attributes:
        rows: by instruction type.
        truncated: rows whose last turn was cut off and left out.
        contradicted: turns left out of rows: one that the annotations contradict, and all after.
        rejected: answers that gave no row, by type and reason.
        failed: requests without an answer, by type and cause.
        repeated: rows with another row's "answers" or "questions", all of them word for word, by
            type; among those that were counted together. A text's questions are not its writer's.
        files: JSON lines about what gave no row; see `entries`.
    """

    rows: Counter[str] = field(default_factory=Counter)
    truncated: int = 0
    contradicted: int = 0
    rejected: dict[str, Counter[str]] = field(default_factory=dict)
    failed: dict[str, Counter[str]] = field(default_factory=dict)
    repeated: dict[str, Counter[str]] = field(default_factory=dict)
    files: list[Path] = field(default_factory=list)
    _repeats: Repeats = field(default_factory=Repeats, repr=False, compare=False)

    def count(self, result: dict[str, Any], lines: IO[str] | None = None) -> None:
        """Count one result, and write why it is no row.

        Args:
            result: a row of the result table.
            lines: where to write; what wasn't sent has nothing to tell.
        """
        kind, reason = result["type"], result["reason"]
        if reason is None:
            self.rows[kind] += 1
            self.truncated += result["truncated"]
            self.contradicted += result["contradicted"]
            self._count_repeats(kind, [message["content"] for message in result["messages"]])
            return
        side = self.rejected if result["rejected"] else self.failed
        side.setdefault(kind, Counter())[reason] += 1
        if lines is not None and reason != NOT_SENT:
            outcome = "rejected" if result["rejected"] else "failed"
            entry = {"id": result["id"], "type": kind, "outcome": outcome, "reason": reason}
            entry["detail"] = result["detail"]
            if result["answer"] is not None:
                entry["answer"] = result["answer"]
            lines.write(json.dumps(entry, ensure_ascii=False) + "\n")

    def entries(self) -> Iterator[dict[str, str]]:
        """What gave no row: id, type, outcome, reason, detail, and the answer if there was one."""
        for file in self.files:
            with file.open(encoding="utf-8") as lines:
                yield from map(json.loads, lines)

    def count_rows(self, results: pa.Table) -> None:
        """Count results that are all rows."""
        for kind in pc.value_counts(results.column("type")).to_pylist():
            self.rows[kind["values"]] += kind["counts"]
        self.truncated += pc.sum(results.column("truncated"), min_count=0).as_py()
        self.contradicted += pc.sum(results.column("contradicted"), min_count=0).as_py()
        messages = results.column("messages")
        contents = iter(pc.struct_field(pc.list_flatten(messages), "content").to_pylist())
        lengths = pc.list_value_length(messages).to_pylist()
        for kind, length in zip(results.column("type").to_pylist(), lengths, strict=True):
            self._count_repeats(kind, list(islice(contents, length)))

    def _count_repeats(self, kind: str, contents: list[str]) -> None:
        """Count what a row repeats of its questions and answers, which take turns."""
        for start, side in enumerate(("questions", "answers")):
            if self._repeats.is_repeat(f"{kind} {side}", "\n".join(contents[start::2])):
                self.repeated.setdefault(kind, Counter())[side] += 1

    @property
    def failures(self) -> Counter[str]:
        """Requests without an answer, by cause."""
        return sum(self.failed.values(), Counter())

    @property
    def unsent(self) -> int:
        """Requests of a partial run that were left for later."""
        return self.failures[NOT_SENT]

    @property
    def requests(self) -> int:
        """All of them."""
        return self.rows.total() + self.rejections.total() + self.failures.total()

    @property
    def rejections(self) -> Counter[str]:
        """Answers that gave no row, by reason."""
        return sum(self.rejected.values(), Counter())

    def add(self, other: Report) -> None:
        """Add another report's counts and files to this one's."""
        self.rows.update(other.rows)
        self.truncated += other.truncated
        self.contradicted += other.contradicted
        for name in _BY_TYPE:
            mine = getattr(self, name)
            for kind, counts in getattr(other, name).items():
                mine.setdefault(kind, Counter()).update(counts)
        self.files.extend(other.files)

    def write(self, path: Path) -> None:
        """The counts, as JSON."""
        counts = ("rows", "truncated", "contradicted", *_BY_TYPE)
        text = json.dumps({name: getattr(self, name) for name in counts})
        path.write_text(text, encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> Report:
        """What `write` wrote, and the lines beside it."""
        data = json.loads(path.read_text(encoding="utf-8"))
        lines = path.with_suffix(".jsonl")
        found = cls(
            files=[lines] if lines.is_file() else [],
            rows=Counter(data["rows"]),
            truncated=data["truncated"],
            contradicted=data["contradicted"],
        )
        for name in _BY_TYPE:
            counts = getattr(found, name)
            counts.update((kind, Counter(of_kind)) for kind, of_kind in data[name].items())
        return found

    @classmethod
    def read_all(cls, folder: Path, split: str) -> Report:
        """The sum of what was written about a split."""
        found = cls()
        for path in sorted(folder.glob(f"report-{split}-*.json")):
            found.add(cls.read(path))
        return found

    def explain_no_row(self, where: str) -> str:
        """What became of the requests of a split or a source instead."""
        first = next((f"; the first: {entry['detail']}" for entry in self.entries()), "")
        return f"no row in {where}: {summary(self)}{first}"

    def stop(
        self, words: str, where: str, ask: str = "leave out partial (--partial) to ask for them"
    ) -> Exception:
        """What to raise where no split has a row.

        Args:
            words: what became of the requests.
            where: where the answers are, as a sentence after a space; or nothing.
            ask: what to do where none was asked yet.
        """
        if self.failures.total() > self.unsent:
            return RunStopped(words)
        if not self.rejections:
            return UsageError(f"{words}; {ask}")
        return NoRows(
            f"{words}.{where} The same run gives the same again: take another model, context "
            "window, prompt config or sampling; or, if the server was at fault and is repaired, "
            "give another, new --response_store"
        )


def summary(report: Report, rows: str | None = None) -> str:
    """Rows, rejections and failures in a line; ``rows`` are the words about the first."""
    parts = [rows or count_of(report.rows.total(), "row")]
    if report.contradicted:
        parts.append(f"{count_of(report.contradicted, 'turn')} left out from a contradicted one on")
    if report.unsent:
        parts.append(f"{report.unsent:,} of {count_of(report.requests, 'request')} not asked yet")
    failures = Counter({c: n for c, n in report.failures.items() if c != NOT_SENT})
    for word, counts in (("rejected", report.rejections), ("failed", failures)):
        if counts:
            causes = ", ".join(f"{cause} {count}" for cause, count in counts.most_common())
            parts.append(f"{counts.total()} {word} ({causes})")
    for kind, counts in report.repeated.items():
        if are_many(counts["answers"], report.rows[kind]):
            share = counts["answers"] / report.rows[kind]
            parts.append(f"{share:.0%} of {kind!r} with another row's answers")
    return ", ".join(parts)


def explain_failures(report: Report, again: str) -> str:
    """How many requests have no answer, and what to do, which ``again`` says of some of them."""
    refused = report.failures["refused"]
    left = report.failures.total() - refused
    told = [f"{count_of(left, 'request')} got no answer; {again}"] if left else []
    one, many = "request was refused, as it would", "requests were refused, as they would"
    told += [f"{count_of(refused, one, many)} be again"] if refused else []
    return ". ".join(told)


def is_unfinished(report: Report) -> bool:
    """Whether the same command again would make more rows."""
    return bool(report.failures) or not report.rows.total()
