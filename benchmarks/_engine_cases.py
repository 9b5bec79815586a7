"""The loads put on the real engine: which calibrate the step-time model, and which it then predicts unseen."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from _engine_server import EngineSettings

from planner.simulate import arrivals

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from planner.simulate.steps import Floats

ENGINES = {
    "plain": EngineSettings(max_num_batched_tokens=512, max_num_seqs=16),
    "narrow": EngineSettings(max_num_batched_tokens=128, max_num_seqs=4),
    "caching": EngineSettings(max_num_batched_tokens=512, max_num_seqs=16, prefix_caching=True),
    "small memory": EngineSettings(max_num_batched_tokens=128, max_num_seqs=16, kv_blocks=65),
}
"""Servers, started one after the other; only the first one's measurements calibrate."""


@dataclass(frozen=True, slots=True)
class Load:
    """Requests to send; arrays of shape (requests,)."""

    at_s: Floats
    input_tokens: NDArray[np.int64]
    output_tokens: NDArray[np.int64]
    shared_tokens: NDArray[np.int64]
    """How many tokens at the head of a prompt are those of its family."""
    family: NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One load on one engine."""

    name: str
    sizes: str
    purpose: Literal["calibrate", "predict"]
    make: Callable[[np.random.Generator], Load]
    engine: str = "plain"
    times: int = 1
    """How often it is measured, with the same requests at the same times: the difference is the noise."""

    def load(self) -> Load:
        """Return its requests, the same ones whenever it is asked."""
        return self.make(np.random.default_rng(sum(self.name.encode())))


def _load(
    at_s: Floats, inputs: int | Floats, outputs: int | Floats, *, shared: int = 0, families: Floats | None = None
) -> Load:
    n = len(at_s)

    def whole(values: int | Floats) -> NDArray[np.int64]:
        return np.broadcast_to(np.asarray(values), (n,)).round().astype(np.int64)

    return Load(at_s, whole(inputs), whole(outputs), whole(shared), whole(0 if families is None else families))


def _poisson(inputs: int, outputs: int, rate_rps: float, n: int) -> Callable[[np.random.Generator], Load]:
    return lambda rng: _load(arrivals.poisson(rate_rps, n, rng), inputs, outputs)


def _bursty(inputs: int, outputs: int, rate_rps: float, n: int) -> Callable[[np.random.Generator], Load]:
    return lambda rng: _load(arrivals.gamma(rate_rps, n, rng, cv=3.0), inputs, outputs)


def _mixed(rate_rps: float, n: int, *, cv: float = 1.0) -> Callable[[np.random.Generator], Load]:
    def make(rng: np.random.Generator) -> Load:
        at_s = arrivals.gamma(rate_rps, n, rng, cv=cv)
        inputs = np.clip(rng.lognormal(np.log(160), 1.0, n), 8, 2000)
        return _load(at_s, inputs, np.clip(rng.lognormal(np.log(40), 0.8, n), 2, 250))

    return make


def _shared_heads(rate_rps: float, n: int) -> Callable[[np.random.Generator], Load]:
    def make(rng: np.random.Generator) -> Load:
        families = rng.integers(0, 6, n).astype(np.float64)
        return _load(arrivals.poisson(rate_rps, n, rng), 512, 40, shared=384, families=families)

    return make


def _one_by_one(rng: np.random.Generator) -> Load:
    """Requests so far apart that each is alone, from small to large and over again."""
    sizes = [(16, 16), (64, 24), (128, 8), (256, 32), (512, 8), (768, 24), (1280, 16), (2000, 24)]
    own_s = [0.1 + inputs * 1.3e-3 + outputs * 0.03 for inputs, outputs in sizes]
    at_s = np.cumsum([0.0, *own_s, *own_s])[:-1] + rng.random(2 * len(sizes)) * 0.02
    return _load(at_s, np.array([size[0] for size in sizes * 2]), np.array([size[1] for size in sizes * 2]))


CASES = (
    Case(name="one by one", sizes="16-2000 / 8-32", purpose="calibrate", make=_one_by_one),
    Case(name="short prompts", sizes="32 / 64", purpose="calibrate", make=_poisson(32, 64, 3.5, 120)),
    Case(name="medium prompts", sizes="128 / 64", purpose="calibrate", make=_poisson(128, 64, 2.0, 70)),
    Case(name="short answers", sizes="256 / 16", purpose="calibrate", make=_poisson(256, 16, 2.2, 80)),
    Case(name="long answers", sizes="16 / 200", purpose="calibrate", make=_poisson(16, 200, 1.6, 55)),
    Case(name="long prompts", sizes="1024 / 96", purpose="calibrate", make=_poisson(1024, 96, 0.5, 22)),
    Case(name="other small sizes", sizes="64 / 96", purpose="predict", make=_poisson(64, 96, 2.5, 90), times=2),
    Case(name="other medium sizes", sizes="320 / 40", purpose="predict", make=_poisson(320, 40, 1.4, 55)),
    Case(name="other long prompts", sizes="700 / 64", purpose="predict", make=_poisson(700, 64, 0.6, 26)),
    Case(name="longest prompts", sizes="1600 / 100", purpose="predict", make=_poisson(1600, 100, 0.25, 14)),
    Case(name="bursts", sizes="200 / 50", purpose="predict", make=_bursty(200, 50, 1.6, 70), times=2),
    Case(name="mixed sizes", sizes="8-2000 / 2-250", purpose="predict", make=_mixed(1.2, 55)),
    Case(name="mixed sizes in bursts", sizes="8-2000 / 2-250", purpose="predict", make=_mixed(0.9, 45, cv=2.5)),
    Case(name="near saturation", sizes="128 / 64", purpose="predict", make=_poisson(128, 64, 5.0, 200), times=2),
    Case(
        name="narrow batches", sizes="200 / 80", purpose="predict", make=_poisson(200, 80, 2.0, 80), engine="narrow"
    ),
    Case(
        name="prefix caching", sizes="512 (384 shared) / 40", purpose="predict", make=_shared_heads(3.0, 110),
        engine="caching",
    ),
    Case(
        name="little memory", sizes="256 / 128", purpose="predict", make=_poisson(256, 128, 1.6, 65),
        engine="small memory", times=2,
    ),
)  # fmt: skip
