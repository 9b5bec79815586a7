"""The data that ships with gpuplan: `catalogs/`, `profiles/` and `examples/`.

In a wheel they lie inside the package (planner/_data); in a source checkout beside it.
"""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from importlib.resources.abc import Traversable


def bundled(*parts: str) -> Traversable:
    """Return the bundled file or folder `parts`, e.g. `bundled("catalogs", "gpus.csv")`."""
    packaged = resources.files("planner") / "_data"
    root: Traversable = packaged if packaged.is_dir() else Path(__file__).resolve().parents[2]
    return root.joinpath(*parts)
