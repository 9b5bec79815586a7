"""Measured tables: what was measured of a model on a GPU, and how it corrects the estimate.

The same-engine policy: a measurement corrects estimates of the same engine family only, on the same GPU, parallelism
and precision. TensorRT-LLM figures say nothing certain of vLLM, so a plan for vLLM is not sped up by them.
Between measured sizes the correction is interpolated; outside of them there is none.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING

import numpy as np

from planner.files.bundled import bundled
from planner.files.slo import parse_slos, slo_text
from planner.profilers import capacity, points
from planner.profilers.efficiency import engine_family
from planner.profilers.schema import UNDER_SLO, parse_points, read_profile_file

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from planner.domain.hardware import EngineConfig, GpuSpec
    from planner.domain.model import ModelArchitecture
    from planner.domain.slo import Slo
    from planner.profilers.efficiency import EstimatorParams
    from planner.profilers.roofline import Array
    from planner.profilers.schema import MeasuredPoint

__all__ = [
    "Correction",
    "MeasuredStore",
    "MeasuredTable",
    "convex_hull",
    "correct",
    "estimated_rate_rps",
    "estimated_rates_rps",
    "has_objectives",
    "load_measured",
    "measured_config",
    "read_profile_file",
    "speed_factors",
]

LORA_FOLDER = "lora"
"""Adapter measurements have a schema of their own; they ship as data, and no plan uses them yet."""

BENCHMARK_MAX_NUM_SEQS = 2048
"""Batch limit assumed of published maximum-throughput runs, which do not state it (TensorRT-LLM's build default)."""

SAME_SIZE_TOLERANCE = 0.01
"""Sizes whose logarithms differ by less count as the measured size."""

WIDEST_SPEED = 16.0
SPEED_STEPS = 24
"""A speed is searched within 1 / WIDEST_SPEED .. WIDEST_SPEED by so many bisections: to 1 part in 10^6. A measurement
that is further from the estimate is of something else, and not used."""

FP8_KV_FAMILIES = frozenset({"tensorrt-llm"})
"""Engines whose published fp8 figures come with an fp8 KV cache (TensorRT-LLM performance overview)."""


def _precision_key(precision: str) -> str:
    return "bf16" if precision == "fp16" else precision


def _name_key(name: str) -> str:
    """Return a model's name without its organisation, in lower case."""
    return name.strip().rsplit("/", maxsplit=1)[-1].lower()


def _version_key(version: str) -> tuple[int, ...]:
    return tuple(int("".join(filter(str.isdigit, part)) or 0) for part in version.split("."))


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredTable:
    """Throughput of one configuration at several request sizes, one point per size."""

    points: tuple[MeasuredPoint, ...]

    @property
    def log_sizes(self) -> Array:
        """Logarithms of (input, output) tokens, shape (points, 2)."""
        return np.log([[point.input_tokens, point.output_tokens] for point in self.points])


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredStore:
    """All measured points that a plan may use."""

    points: tuple[MeasuredPoint, ...] = ()

    @classmethod
    def empty(cls) -> MeasuredStore:
        """Return a store without measurements: everything is then estimated."""
        return cls()

    @property
    def n_rows(self) -> int:
        """Number of measured points."""
        return len(self.points)

    def with_rows(self, more: Iterable[MeasuredPoint]) -> MeasuredStore:
        """Return a store with the user's points too; at equal sizes and versions they win over bundled ones."""
        return MeasuredStore(points=(*self.points, *more))

    def _matching(self, names: Iterable[str], gpu: str, config: EngineConfig) -> list[MeasuredPoint]:
        wanted = {_name_key(name) for name in names}
        return [
            point
            for point in self.points
            if point.gpu == gpu
            and point.tensor_parallel == config.tensor_parallel
            and point.pipeline_parallel == config.pipeline_parallel
            and _precision_key(point.precision) == _precision_key(config.precision)
            and _name_key(point.model) in wanted
        ]

    def engines(self, names: Iterable[str], gpu: str, config: EngineConfig) -> tuple[str, ...]:
        """Return the engine families with any figure for this model, GPU, parallelism and precision."""
        return tuple(sorted({engine_family(point.engine) for point in self._matching(names, gpu, config)}))

    def lookup(
        self, names: Iterable[str], gpu: str, config: EngineConfig, *, slos: Sequence[Slo] = ()
    ) -> MeasuredTable | None:
        """Return the throughput table for a configuration, or None.

        Parameters
        ----------
        names : the model's canonical name and its aliases; case and organisation do not matter.
        slos : the objectives that are asked for.

        Notes
        -----
        Of several points of one size the wanted engine version wins if it was measured, then the newest version, then
        a rate under just these objectives; with objectives one under others, without any an offline run comes next;
        then the other of the two, then a closed loop, then the larger load. Static batches and open-loop runs at a
        given rate are left out: they are no maxima.
        """
        family = engine_family(config.engine)
        best: dict[tuple[float, float], tuple[tuple[object, ...], MeasuredPoint]] = {}
        for index, point in enumerate(self._matching(names, gpu, config)):
            if engine_family(point.engine) != family or not point.rate_rps:
                continue
            worth = _worth(point, slos)
            if worth is None:
                continue
            rank = (
                bool(config.engine_version) and point.engine_version.startswith(config.engine_version),
                _version_key(point.engine_version),
                worth,
                point.load or 0.0,
                index,
            )
            size = (point.input_tokens, point.output_tokens)
            if size not in best or rank > best[size][0]:
                best[size] = (rank, point)
        return MeasuredTable(points=tuple(point for _, (_, point) in sorted(best.items()))) if best else None


def has_objectives(point: MeasuredPoint, slos: Sequence[Slo]) -> bool:
    """Return whether a point's rate was searched under just these objectives, in any order."""
    if point.load_kind != UNDER_SLO or not point.slo:
        return False
    return {slo_text(slo) for slo in parse_slos(point.slo)} == {slo_text(slo) for slo in slos}


def _worth(point: MeasuredPoint, slos: Sequence[Slo]) -> int | None:
    """Return how much a point says of a configuration under `slos`, more is better; None = nothing."""
    if point.load_kind == UNDER_SLO:
        if not point.slo:
            return None  # a rate under unknown objectives
        if has_objectives(point, slos):
            return 3
        return 2 if slos else 1
    return {"offline_max": 1 if slos else 2, "concurrency": 0}.get(point.load_kind)


@cache
def load_measured() -> MeasuredStore:
    """Return the bundled measurements (profiles/, one folder per model; origins in profiles/SOURCES.md).

    The folder of adapter measurements, `LORA_FOLDER`, is left out.
    """
    found: list[MeasuredPoint] = []
    for folder in sorted(bundled("profiles").iterdir(), key=lambda entry: entry.name):
        if not folder.is_dir() or folder.name == LORA_FOLDER:
            continue
        for file in sorted(folder.iterdir(), key=lambda entry: entry.name):
            if file.name.endswith(".csv"):
                text = file.read_text(encoding="utf-8")
                found.extend(parse_points(text, f"profiles/{folder.name}/{file.name}"))
    return MeasuredStore(points=tuple(found))


def measured_config(point: MeasuredPoint, config: EngineConfig) -> EngineConfig:
    """Return the configuration under which `point` was taken, as far as it is stated, else `config`'s."""
    is_fp8_cache = point.precision == "fp8" and engine_family(point.engine) in FP8_KV_FAMILIES
    return replace(
        config,
        kv_precision="fp8" if is_fp8_cache else "bf16",
        max_num_seqs=max(config.max_num_seqs, BENCHMARK_MAX_NUM_SEQS),
    )


def estimated_rate_rps(
    point: MeasuredPoint, model: ModelArchitecture, gpu: GpuSpec, config: EngineConfig, params: EstimatorParams
) -> float:
    """Return the bare estimate of a measured point's rate under the point's own load; 0 if it does not fit."""
    return estimated_rates_rps([point], model, gpu, config, params)[0]


def estimated_rates_rps(
    measured_points: Sequence[MeasuredPoint],
    model: ModelArchitecture,
    gpu: GpuSpec,
    config: EngineConfig,
    params: EstimatorParams,
) -> list[float]:
    """Return `estimated_rate_rps` of several points of one model, GPU and parallelism, the maxima all at once."""
    open_ended = replace(params, is_context_enforced=False)
    rates = [0.0] * len(measured_points)
    maxima: dict[EngineConfig, list[int]] = {}
    for index, point in enumerate(measured_points):
        own = measured_config(point, config)
        if point.load_kind in {"concurrency", "static_batch"} and point.load:
            rates[index] = _rate_at_load_rps(point, model, gpu, own, open_ended)
        else:
            maxima.setdefault(own, []).append(index)
    for own, indices in maxima.items():
        sizes = np.array([[measured_points[i].input_tokens, measured_points[i].output_tokens] for i in indices])
        found = capacity.estimate_buckets(
            model, gpu, own, input_tokens=sizes[:, 0], output_tokens=sizes[:, 1], slos=(), params=open_ended
        )
        for index, rate in zip(indices, found.rate_rps.tolist(), strict=True):
            rates[index] = rate
    return rates


def _rate_at_load_rps(
    point: MeasuredPoint, model: ModelArchitecture, gpu: GpuSpec, config: EngineConfig, params: EstimatorParams
) -> float:
    sizes, load = (point.input_tokens, point.output_tokens), point.load or 1.0
    prompt, output = np.array([sizes[0]]), np.array([sizes[1]])
    if any(capacity.refusals(model, gpu, config, input_tokens=prompt, output_tokens=output, params=params)):
        return 0.0
    if point.load_kind == "static_batch":
        return points.static_batch(model, gpu, config, sizes=sizes, batch=load, params=params).rate_rps
    return points.closed_loop(model, gpu, config, sizes=sizes, concurrency=load, params=params).rate_rps


def speed_factors(
    measured_points: Sequence[MeasuredPoint],
    model: ModelArchitecture,
    gpu: GpuSpec,
    config: EngineConfig,
    params: EstimatorParams,
) -> list[float]:
    """Return for each point how many times as fast as the bare estimate it says that every step is; 0 = nothing said.

    Of maxima and closed loops this is the measured over the estimated rate, which is proportional to the speed. A rate
    under objectives is not: where an objective binds, a replica that is 10% faster serves more than 10% more. So the
    speed is searched at which the estimate under the point's own objectives is the measured rate.
    """
    factors = [0.0] * len(measured_points)
    under = [index for index, point in enumerate(measured_points) if point.load_kind == UNDER_SLO]
    others = [index for index, point in enumerate(measured_points) if point.load_kind != UNDER_SLO]
    rates = estimated_rates_rps([measured_points[i] for i in others], model, gpu, config, params)
    for index, rate in zip(others, rates, strict=True):
        factors[index] = (measured_points[index].rate_rps or 0.0) / rate if rate > 0 else 0.0
    groups: dict[tuple[Slo, ...], list[int]] = {}
    for index in under:
        groups.setdefault(parse_slos(measured_points[index].slo), []).append(index)
    for slos, indices in groups.items():
        found = _speeds_under(
            [measured_points[i] for i in indices], slos, model=model, gpu=gpu, config=config, params=params
        )
        for index, speed in zip(indices, found.tolist(), strict=True):
            factors[index] = speed
    return factors


def _speeds_under(
    measured_points: Sequence[MeasuredPoint],
    slos: Sequence[Slo],
    *,
    model: ModelArchitecture,
    gpu: GpuSpec,
    config: EngineConfig,
    params: EstimatorParams,
) -> Array:
    """Return the speeds, shape (points,), at which the estimated rates under `slos` are the measured ones; 0 = none.

    The server's own limits on batches are not stated: those of `config` are taken.
    """
    sizes = np.array([[point.input_tokens, point.output_tokens] for point in measured_points])
    wanted = np.array([point.rate_rps or 0.0 for point in measured_points])
    open_ended = replace(params, is_context_enforced=False)

    def rates(speed: Array) -> Array:
        return capacity.estimate_buckets(
            model, gpu, config, input_tokens=sizes[:, 0], output_tokens=sizes[:, 1], slos=slos, params=open_ended,
            speed=speed,
        ).rate_rps  # fmt: skip

    low = np.full(len(wanted), -np.log(WIDEST_SPEED))
    high = -low
    is_within = (rates(np.exp(low)) <= wanted) & (rates(np.exp(high)) >= wanted)
    for _ in range(SPEED_STEPS):
        middle = (low + high) / 2.0
        is_low = rates(np.exp(middle)) < wanted
        low, high = np.where(is_low, middle, low), np.where(is_low, high, middle)
    return np.where(is_within, np.exp((low + high) / 2.0), 0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Correction:
    """How measurements correct the estimate at some sizes; arrays of shape (sizes,)."""

    speed: Array
    """Measured over estimated rate; 1 outside of the measured sizes."""
    nearest: tuple[int, ...]
    """Index of the nearest measured point."""
    is_exact: tuple[bool, ...]
    """The size is a measured one."""
    is_inside: tuple[bool, ...]
    """The size lies within the measured ones."""


def _cross(origin: Array, first: Array, second: Array) -> float:
    one, two = first - origin, second - origin
    return float(one[0] * two[1] - one[1] * two[0])


def convex_hull(corners: Array) -> Array:
    """Return the corners of the convex hull of points of shape (n, 2), counter-clockwise (Andrew's monotone chain)."""
    ordered = np.unique(corners, axis=0)
    if len(ordered) < 3:
        return ordered
    halves = []
    for sequence in (ordered, ordered[::-1]):
        half: list[Array] = []
        for corner in sequence:
            while len(half) >= 2 and _cross(half[-2], half[-1], corner) <= 0:
                half.pop()
            half.append(corner)
        halves += half[:-1]
    return np.array(halves)


def _is_inside(hull: Array, place: Array) -> bool:
    if len(hull) < 3:
        return False
    edges = zip(hull, np.roll(hull, -1, axis=0), strict=True)
    return all(_cross(start, end, place) >= -1e-9 for start, end in edges)


def correct(sizes: Array, table: MeasuredTable, ratios: Sequence[float]) -> Correction:
    """Return the correction at `sizes` (tokens, shape (n, 2)) from the table's measured / estimated `ratios`.

    Inside the convex hull of the measured (log input, log output) the logarithm of the ratio is the mean of the
    measured ones, weighted by 1 / distance^2 (Shepard's interpolation): exact at the measured sizes, never beyond
    the smallest and largest ratio.
    """
    known, places = table.log_sizes, np.log(sizes)
    hull = convex_hull(known)
    logs = np.log(ratios)
    speed = np.ones(len(sizes))
    nearest, exact, inside = [], [], []
    for i, place in enumerate(places):
        distance = np.sqrt(np.square(known - place).sum(axis=1))
        closest = int(distance.argmin())
        is_same = bool(np.abs(known[closest] - place).max() <= SAME_SIZE_TOLERANCE)
        is_in = is_same or _is_inside(hull, place)
        if is_same:
            speed[i] = float(np.exp(logs[closest]))
        elif is_in:
            weight = 1.0 / np.square(distance)
            speed[i] = float(np.exp((weight * logs).sum() / weight.sum()))
        nearest.append(closest)
        exact.append(is_same)
        inside.append(is_in)
    return Correction(speed=speed, nearest=tuple(nearest), is_exact=tuple(exact), is_inside=tuple(inside))
