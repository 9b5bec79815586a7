"""The data that ships with gpuplan: `catalogs/`, `profiles/` and `examples/`.

In a wheel they lie inside the package (planner/_data); in a source checkout beside it.
"""

from __future__ import annotations

import hashlib
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from importlib.resources.abc import Traversable


def bundled(*parts: str) -> Traversable:
    """Return the bundled file or folder `parts`, e.g. `bundled("catalogs", "gpus.csv")`."""
    packaged = resources.files("planner") / "_data"
    root: Traversable = packaged if packaged.is_dir() else Path(__file__).resolve().parents[2]
    return root.joinpath(*parts)


def bundled_sha256(*folders: str) -> str:
    """Return one SHA-256 over the tables (*.csv) that ship in `folders`: it changes when any figure does."""
    digest = hashlib.sha256()
    for folder in folders:
        for name, content in sorted(_tables(bundled(folder), folder)):
            digest.update(name.encode())
            digest.update(content)
    return digest.hexdigest()


def _tables(folder: Traversable, path: str) -> Iterator[tuple[str, bytes]]:
    for entry in folder.iterdir():
        name = f"{path}/{entry.name}"
        if entry.is_dir():
            yield from _tables(entry, name)
        elif name.endswith(".csv"):
            yield name, entry.read_bytes()
