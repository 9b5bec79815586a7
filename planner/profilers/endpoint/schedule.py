"""Which sizes are measured first, and when requests are sent."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import count
from typing import TYPE_CHECKING

import numpy as np

from planner.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

MOST_SIZES = 400

MOST_TOKENS = 10_000_000
"""Of a prompt or an answer: no model's context is longer."""

BLOCK = 256
"""Requests of a stretch of arrivals, see `arrivals`."""


@dataclass(frozen=True, slots=True, order=True)
class Size:
    """Tokens of one kind of request."""

    input_tokens: int
    output_tokens: int

    def __str__(self) -> str:
        return f"{self.input_tokens}x{self.output_tokens}"

    def distance(self, other: Size) -> float:
        """Return how far apart two sizes are: the Euclidean distance of the logarithms of their tokens."""
        return math.hypot(
            math.log(self.input_tokens / other.input_tokens), math.log(self.output_tokens / other.output_tokens)
        )


def parse_sizes(text: str) -> tuple[Size, ...]:
    """Return the sizes that "128x128,512x256" lists, input x output tokens, without repetitions.

    Raises
    ------
    InputError: if one of them is not two whole numbers above zero.

    Examples
    --------
    >>> [str(size) for size in parse_sizes("128x128, 512x256")]
    ['128x128', '512x256']
    """
    sizes = []
    for part in filter(None, (part.strip() for part in text.split(","))):
        tokens = part.lower().replace("×", "x").split("x")
        if len(tokens) != 2 or not all(number.strip().isdecimal() and int(number) > 0 for number in tokens):
            raise InputError(
                f"{part!r} is not a request size.", hint="Write input x output tokens: --sizes 128x128,512x256."
            )
        size = Size(int(tokens[0]), int(tokens[1]))
        if max(size.input_tokens, size.output_tokens) > MOST_TOKENS:
            raise InputError(f"The request size {part!r} is longer than any model's context ({MOST_TOKENS:,} tokens).")
        sizes.append(size)
    if not sizes:
        raise InputError("No request size is given.", hint="Write --sizes 128x128,512x256.")
    if len(sizes) > MOST_SIZES:
        raise InputError(f"{len(sizes):,} request sizes are too many to measure; {MOST_SIZES} at most.")
    return tuple(dict.fromkeys(sizes))


def measuring_order(sizes: Sequence[Size], weights: Mapping[Size, float] | None = None) -> tuple[Size, ...]:
    """Return the sizes in the order in which measuring them says most about the others.

    First the corners, the sizes nearest to the smallest and largest inputs and outputs: between them the others are
    interpolated. Then, again and again, the size with the largest gap to those before it, times its weight.

    Parameters
    ----------
    weights : requests per second or any share of demand, by size; None = all alike.

    Examples
    --------
    >>> grid = [Size(i, o) for i in (10, 100, 1000) for o in (10, 100, 1000)]
    >>> [str(size) for size in measuring_order(grid)][:5]
    ['10x10', '1000x1000', '10x1000', '1000x10', '100x100']
    """
    left = sorted(dict.fromkeys(sizes))
    inputs, outputs = [size.input_tokens for size in left], [size.output_tokens for size in left]
    ends = [(min, min), (max, max), (min, max), (max, min)]
    order: list[Size] = []
    for corner in (Size(first(inputs), second(outputs)) for first, second in ends):
        nearest = min(left, key=lambda size: (size.distance(corner), size))
        if nearest not in order:
            order.append(nearest)

    def worth(size: Size) -> float:
        weight = 1.0 if weights is None else weights.get(size, 0.0)
        return weight * min(size.distance(known) for known in order)

    while rest := [size for size in left if size not in order]:
        order.append(max(rest, key=lambda size: (worth(size), [-size.input_tokens, -size.output_tokens])))
    return tuple(order)


def arrivals(rate_rps: float, shares: Mapping[Size, float], rng: np.random.Generator) -> Iterator[tuple[float, Size]]:
    """Yield the times in seconds and the sizes of requests that come at random, without end.

    A Poisson process, given that `BLOCK` requests come in every stretch of `BLOCK` mean gaps: given their number, the
    arrivals of a Poisson process are independent and uniform. So the arrivals are as bursty as Poisson ones within a
    stretch, and a run has the rate that it is said to have: plain Poisson counts scatter by 1 / sqrt(n), 7% in a run of
    200 requests, more than the resolution of a search.

    Parameters
    ----------
    shares : the sizes' parts of the requests; they sum to 1.
    """
    sizes, parts = list(shares), np.array(list(shares.values()))
    length_s = BLOCK / rate_rps
    for number in count():
        times = (number + np.sort(rng.random(BLOCK))) * length_s
        picks = rng.choice(len(sizes), size=BLOCK, p=parts / parts.sum())
        for at_s, pick in zip(times.tolist(), picks.tolist(), strict=True):
            yield at_s, sizes[pick]
