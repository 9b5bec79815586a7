"""Opening a trace file: what it is, its hash, its text; whatever fails is an error with the file's name."""

from __future__ import annotations

import gzip
import hashlib
import io
import zlib
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, cast

from planner.errors import InputError, UnsupportedFormatError, Where
from planner.files.bundled import bundled

if TYPE_CHECKING:
    from collections.abc import Iterator

BUNDLED_PREFIX = "bundled:"
_HEAD_BYTES = 1 << 16
_BLOCK_BYTES = 1 << 20
_GZIP_MAGIC = b"\x1f\x8b"
_PARQUET_MAGIC = b"PAR1"


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceFile:
    """A file that exists and can be opened."""

    path: Path
    label: str
    """How the user named it."""
    is_gzip: bool
    head: bytes
    """Its first bytes, unpacked."""

    @property
    def is_parquet(self) -> bool:
        """Whether it is a Parquet file."""
        return self.head.startswith(_PARQUET_MAGIC)

    def where(self, *, line: int | None = None, field: str | None = None) -> Where:
        """Return a place in this file."""
        return Where(path=self.label, line=line, field=field)

    @contextmanager
    def open_binary(self) -> Iterator[IO[bytes]]:
        """Open its unpacked bytes.

        Raises
        ------
        InputError: if it cannot be read, or its compression is broken.
        """
        with (
            _readable(self.label),
            gzip.open(self.path, "rb") if self.is_gzip else self.path.open("rb") as stream,
        ):
            yield cast("IO[bytes]", stream)

    @contextmanager
    def open_text(self) -> Iterator[IO[str]]:
        """Open its text, line ends as they are; a byte that is not UTF-8 becomes a mark that no number contains."""
        with (
            self.open_binary() as stream,
            io.TextIOWrapper(stream, encoding="utf-8-sig", errors="replace", newline="") as text,
        ):
            yield text


@dataclass(frozen=True, slots=True, kw_only=True)
class ByteFacts:
    """What one pass over a file's bytes tells."""

    sha256: str
    n_delimiters: int
    has_quotes: bool


@contextmanager
def _readable(label: str) -> Iterator[None]:
    where = Where(path=label)
    try:
        yield
    except FileNotFoundError as error:
        hint = f"Check the path; bundled traces: {', '.join(bundled_traces())}."
        raise InputError("There is no such file.", hint=hint, where=where) from error
    except PermissionError as error:
        raise InputError("The file may not be read.", hint="Check its permissions.", where=where) from error
    except (gzip.BadGzipFile, zlib.error, EOFError) as error:
        hint = "The file is cut short or damaged; fetch it again."
        raise InputError("The gzip compression is broken.", hint=hint, where=where) from error
    except OSError as error:
        raise InputError(f"The file cannot be read: {error.strerror or error}.", where=where) from error


def bundled_traces() -> tuple[str, ...]:
    """Return the names of the traces that ship with gpuplan, as `resolve_trace` takes them."""
    folder = bundled("examples", "traces")
    if not folder.is_dir():
        return ()
    stems = (entry.name.removesuffix(".csv") for entry in folder.iterdir() if entry.name.endswith(".csv"))
    return tuple(f"{BUNDLED_PREFIX}{stem}" for stem in sorted(stems))


def resolve_trace(name: Path | str, *, base_dir: Path | None = None) -> Path:
    """Return the path of a trace: "bundled:NAME" is one that ships with gpuplan, all else is a path.

    Parameters
    ----------
    base_dir : where a relative path begins; the current folder if not given.

    Raises
    ------
    InputError: if no bundled trace has that name; lists those there are.
    """
    text = str(name)
    if not text.startswith(BUNDLED_PREFIX):
        return Path(name) if base_dir is None else base_dir / name
    if text not in bundled_traces():
        raise InputError(f"No bundled trace is called {text!r}.", hint=f"There are {', '.join(bundled_traces())}.")
    return Path(str(bundled("examples", "traces", f"{text.removeprefix(BUNDLED_PREFIX)}.csv")))


def open_source(name: Path | str) -> SourceFile:
    """Return the file, checked to be readable and not empty.

    Raises
    ------
    InputError: if it is missing, a folder, not allowed, empty, or broken.
    UnsupportedFormatError: if it is neither text nor Parquet.
    """
    path = resolve_trace(name)
    label = _label(name, path)
    where = Where(path=label)
    with _readable(label):
        if path.is_dir():
            raise InputError("This is a folder, not a trace file.", hint="Give one file.", where=where)
        if path.exists() and not path.is_file():
            raise InputError("This is not a regular file.", hint="Give one file.", where=where)
        with path.open("rb") as stream:
            is_gzip = stream.read(len(_GZIP_MAGIC)) == _GZIP_MAGIC
        with gzip.open(path, "rb") if is_gzip else path.open("rb") as stream:
            head = stream.read(_HEAD_BYTES)
    source = SourceFile(path=path, label=label, is_gzip=is_gzip, head=head)
    if not head.strip(b"\xef\xbb\xbf \t\r\n"):
        raise InputError("The file is empty.", hint="A trace has one row per request.", where=where)
    if not source.is_parquet and not _is_text(head):
        hint = "Traces are CSV, JSON lines (plain or gzip) or Parquet, in UTF-8."
        raise UnsupportedFormatError("The file is not text and not Parquet.", hint=hint, where=where)
    return source


def _label(name: Path | str, path: Path) -> str:
    """Return how the user named a file; a bundled one is not called by where this installation keeps it."""
    bundled_name = f"{BUNDLED_PREFIX}{path.stem}"
    is_bundled = str(path) == str(bundled("examples", "traces", path.name)) and bundled_name in bundled_traces()
    return bundled_name if is_bundled else str(name)


def _is_text(head: bytes) -> bool:
    if b"\0" in head:
        return False
    try:
        head.decode("utf-8")
    except UnicodeDecodeError as error:
        # A character may be cut by the end of the head; a few stray bytes in some free-text column are forgiven
        # later, but the first line decides what the columns are.
        first_line_end = head.find(b"\n")
        return error.start > first_line_end >= 0 or error.start >= len(head) - 3
    return True


def scan_bytes(source: SourceFile, *, delimiter: str = ",") -> ByteFacts:
    """Return the file's SHA-256 (of what lies on disk) and counts over its unpacked bytes."""
    digest = hashlib.sha256()
    n_delimiters, has_quotes, mark = 0, False, delimiter.encode()
    with source.open_binary() as stream:
        while block := stream.read(_BLOCK_BYTES):
            n_delimiters += block.count(mark)
            has_quotes = has_quotes or b'"' in block
            if not source.is_gzip:
                digest.update(block)
    if source.is_gzip:
        with _readable(source.label), source.path.open("rb") as packed:
            while block := packed.read(_BLOCK_BYTES):
                digest.update(block)
    return ByteFacts(sha256=digest.hexdigest(), n_delimiters=n_delimiters, has_quotes=has_quotes)
