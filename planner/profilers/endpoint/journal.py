"""What has been measured so far, in an append-only file beside the output, so that nothing finished is ever lost.

One JSON object a line; every line is on the disk before the measurement goes on. The first line holds the settings that
decide results: a journal of others is refused. A line that a crash cut short is dropped.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import time
from dataclasses import asdict, dataclass, field, fields
from typing import IO, TYPE_CHECKING, Any

from planner.errors import InputError, Where

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path
    from types import TracebackType
    from typing import Self

KIND, VERSION = "gpuplan endpoint journal", 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Baseline:
    """What a lone request of a size takes, and from where the search for its rate begins."""

    subject: str
    """The size, or "mix"."""
    ttft_s: float
    tpot_s: float
    """0 = answers of one token."""
    e2e_s: float
    prompt_tokens: float
    """Mean, by the server's count."""
    output_tokens: float
    start_rps: float
    is_informed: bool
    """The start comes from a neighbour or an estimate."""
    unreachable: str = ""
    """Why the objectives cannot be met at any rate; "" = they may be."""
    spent_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRecord:
    """One judged run; latencies by statistic, in seconds, of the judged requests."""

    subject: str
    rate_rps: float
    holds: bool
    is_sure: bool
    reason: str
    n_judged: int
    n_sent: int
    served_rps: float
    span_s: float
    beyond: dict[str, int]
    """Judged requests beyond the bound, by objective."""
    ttft_s: dict[str, float] = field(default_factory=dict)
    tpot_s: dict[str, float] = field(default_factory=dict)
    e2e_s: dict[str, float] = field(default_factory=dict)
    prompt_tokens: float
    output_tokens: float
    sent_late_s: float = 0.0
    failures: dict[str, int] = field(default_factory=dict)
    server: dict[str, float] = field(default_factory=dict)
    """Largest gauges and growth of counters that the server itself reported."""
    is_broken: bool = False
    """It failed because requests failed for a reason that load does not explain."""
    spent_s: float = 0.0
    """With what came before it: settling, runs that did not count."""


Entry = Baseline | RunRecord
_ENTRIES: Mapping[str, type[Baseline | RunRecord]] = {"baseline": Baseline, "run": RunRecord}


def journal_path(output: Path) -> Path:
    """Return where the journal of an output lies."""
    return output.with_name(output.name + ".journal")


class Journal:
    """An open journal; use as `with Journal.open(...) as journal`."""

    def __init__(self, path: Path, stream: IO[bytes]) -> None:
        self.path = path
        self._stream = stream
        self._last_s = time.monotonic()
        self.entries: list[Entry] = []
        self.outputs: set[str] = set()
        """SHA-256 of every output that this measurement has written."""

    @classmethod
    def open(cls, path: Path, settings: Mapping[str, Any], *, restart: bool) -> Journal:
        """Open a journal, or begin one; lock it against a second measurement.

        Parameters
        ----------
        settings : what it must be of; for one that `is_begun`, those that are known suffice.

        Raises
        ------
        InputError: if it is in use, cannot be read or written, or is of other settings.
        """
        where = Where(path=str(path))
        try:
            stream = path.open("a+b")
        except OSError as error:
            raise InputError(f"Cannot open the journal: {error.strerror}.", where=where) from error
        journal = cls(path, stream)
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if restart:
                stream.truncate(0)
            journal._read(settings, where)
        except BlockingIOError as error:
            stream.close()
            raise InputError("Another measurement writes this journal.", where=where) from error
        except BaseException:
            stream.close()
            raise
        return journal

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stream.close()

    @property
    def spent_s(self) -> float:
        """Time that all finished parts took, in this and in earlier sittings."""
        return sum(entry.spent_s for entry in self.entries)

    def baseline(self, subject: str) -> Baseline | None:
        """Return the baseline of a size, or of the mix."""
        return next((one for one in self.entries if isinstance(one, Baseline) and one.subject == subject), None)

    def runs(self, subject: str) -> list[RunRecord]:
        """Return the runs of a size, or of the mix, in order."""
        return [one for one in self.entries if isinstance(one, RunRecord) and one.subject == subject]

    def since_last_s(self) -> float:
        """Return the time since the last entry: what the next one cost."""
        return time.monotonic() - self._last_s

    def add(self, entry: Entry) -> None:
        """Append an entry and put it on the disk."""
        kind = next(name for name, one in _ENTRIES.items() if isinstance(entry, one))
        self._write({"kind": kind} | asdict(entry))
        self.entries.append(entry)
        self._last_s = time.monotonic()

    def note_output(self, text: str) -> None:
        """Remember what is about to be written as the output, so that a later sitting may replace just that."""
        self.outputs.add(sha256(text))
        self._write({"kind": "output", "sha256": sha256(text)})

    def _write(self, document: Mapping[str, Any]) -> None:
        try:
            self._stream.write(json.dumps(document, allow_nan=False).encode() + b"\n")
            self._stream.flush()
            os.fsync(self._stream.fileno())
        except OSError as error:
            where = Where(path=str(self.path))
            raise InputError(f"Cannot write the journal: {error.strerror}.", where=where) from error

    def _read(self, settings: Mapping[str, Any], where: Where) -> None:
        self._stream.seek(0)
        data = self._stream.read()
        whole = data.rfind(b"\n") + 1
        if whole < len(data):  # the line that a crash cut short
            self._stream.truncate(whole)
        lines = data[:whole].splitlines()
        if not lines:
            self._write({"kind": KIND, "version": VERSION, "settings": dict(settings)})
            return
        _check_header(_document(lines[0], 1, where), settings, where)
        for number, line in enumerate(lines[1:], 2):
            document = _document(line, number, where)
            kind = document.pop("kind", None)
            if kind == "output":
                self.outputs.add(str(document.get("sha256", "")))
            else:
                self.entries.append(_entry(kind, document, Where(path=where.path, line=number)))


def is_begun(path: Path) -> bool:
    """Return whether there is a journal with its whole first line: a crash may have left less."""
    try:
        with path.open("rb") as stream:
            return stream.readline().endswith(b"\n")
    except OSError:
        return False


def sha256(text: str) -> str:
    """Return the SHA-256 of a text in UTF-8."""
    return hashlib.sha256(text.encode()).hexdigest()


def _document(line: bytes, number: int, where: Where) -> dict[str, Any]:
    try:
        document = json.loads(line)
    except ValueError as error:
        raise _damaged(Where(path=where.path, line=number)) from error
    if not isinstance(document, dict):
        raise _damaged(Where(path=where.path, line=number))
    return document


def _damaged(where: Where) -> InputError:
    return InputError("The journal is damaged.", hint="Use --restart to measure anew.", where=where)


def _entry(kind: object, document: dict[str, Any], where: Where) -> Entry:
    entry = _ENTRIES.get(str(kind))
    if entry is None or set(document) - {one.name for one in fields(entry)}:
        raise _damaged(where)
    try:
        return entry(**document)
    except TypeError as error:
        raise _damaged(where) from error


def _check_header(header: Mapping[str, Any], settings: Mapping[str, Any], where: Where) -> None:
    if header.get("kind") != KIND or header.get("version") != VERSION:
        raise InputError("This file is no journal of this version.", hint="Use another --output.", where=where)
    before: Mapping[str, Any] = header.get("settings") or {}
    changed = list(_changes(before, json.loads(json.dumps(dict(settings)))))
    if changed:
        raise InputError(
            f"The journal is of other settings: {'; '.join(changed)}.",
            hint="Use --restart to measure anew, or another --output.",
            where=where,
        )


def _changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    for name in now:
        if before.get(name) != now.get(name):
            yield f"{name} was {before.get(name)!r} and is {now.get(name)!r}"
