"""numba's compiler, with types that a checker understands: a compiled function has the signature that it was given."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

    F = TypeVar("F", bound=Callable[..., object])

    def compiled(function: F) -> F:
        """Return `function`, compiled when it is first called."""
        return function

    def compiled_to_disk(function: F) -> F:
        """Return `function`, compiled when it is first called and kept on disk for the next process."""
        return function

else:
    from numba import njit

    compiled = njit
    compiled_to_disk = njit(cache=True, nogil=True)  # so that replications run in threads
