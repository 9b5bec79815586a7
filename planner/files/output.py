"""Writing files so that nothing of the user's is lost."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from planner.errors import InputError, OutputExistsError, Where


def check_writable(path: Path, *, force: bool) -> None:
    """Raise before any long work if `path` cannot be written or would be overwritten without `force`.

    Raises
    ------
    OutputExistsError: if the file exists and `force` is false.
    InputError: if the folder does not exist or `path` is a folder.
    """
    where = Where(path=str(path))
    if path.is_dir():
        raise InputError("The output is a folder.", hint="Give a file name.", where=where)
    if not path.absolute().parent.is_dir():
        raise InputError("The output's folder does not exist.", hint="Create it first.", where=where)
    if path.exists() and not force:
        raise OutputExistsError("The file exists.", hint="Use --force to overwrite it.", where=where)
    if not os.access(path.absolute().parent, os.W_OK):
        raise InputError("The output's folder is not writable.", hint="Choose another one.", where=where)


def write_text(path: Path, text: str, *, force: bool) -> None:
    """Write `text` to `path` atomically: readers see the old file or the whole new one, never a part.

    Raises
    ------
    OutputExistsError, InputError: as `check_writable`, and if the disk refuses.
    """
    check_writable(path, force=force)
    try:
        descriptor, temporary = tempfile.mkstemp(dir=path.absolute().parent, prefix=f".{path.name}.", suffix=".tmp")
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8", newline="\n") as stream:
                stream.write(text)
            umask = os.umask(0)
            os.umask(umask)
            Path(temporary).chmod(0o666 & ~umask)
            Path(temporary).replace(path)
        finally:
            Path(temporary).unlink(missing_ok=True)  # still there only if something failed
    except OSError as error:
        raise InputError(f"Cannot write the file: {error.strerror}.", where=Where(path=str(path))) from error
