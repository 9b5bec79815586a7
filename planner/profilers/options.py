"""What the planner asks: the throughput of every request size on one engine configuration, with its provenance."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from planner.domain.disaggregation import Role
from planner.domain.provenance import Provenance, ProvenanceKind
from planner.profilers import capacity, floor, measured, roofline
from planner.profilers.accuracy import error_fractions
from planner.profilers.capacity import ESTIMATE_SOURCE, BucketEstimates
from planner.profilers.efficiency import default_params, engine_family
from planner.profilers.power import capped, gpu_draw
from planner.profilers.stages import held_to_physics, stage_provenance
from planner.units import WattsPerReplica

if TYPE_CHECKING:
    from collections.abc import Sequence

    from planner.domain.hardware import EngineConfig, GpuSpec
    from planner.domain.model import ModelArchitecture
    from planner.domain.slo import Slo
    from planner.domain.workload import Bucket
    from planner.profilers.adapters import AdapterRoom
    from planner.profilers.efficiency import EstimatorParams
    from planner.profilers.measured import Correction, MeasuredStore, MeasuredTable
    from planner.profilers.roofline import Array
    from planner.profilers.stages import Stage
    from planner.units import WattsPerGpu

PEAK_POWER_FRACTION = 1.0
"""Peak power of a replica as a share of its GPUs' TDP. 1 is on the safe side: inference rows peak at 0.79 of what is
provisioned (POLCA, ASPLOS 2024)."""

UNLIMITED_MARGIN = 0.02
"""A measured maximum stands for a configuration whose own limits cost it at most this share of the estimate."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OptionProfile:
    """One engine configuration on one kind of GPU, for every bucket; arrays of shape (buckets,)."""

    throughput_rps: Array
    provenance: tuple[Provenance, ...]
    limiting: tuple[str, ...]
    power_w: WattsPerReplica | None
    """Peak power of a replica."""
    idle_power_w: WattsPerReplica
    """Mean draw of a replica that waits for requests."""
    busy_power_w: WattsPerReplica
    """Mean draw of a replica under its full load."""
    estimates: BucketEstimates
    """Latencies and batch at that rate; with adapters those of one engine, of the requests of all its adapters."""
    kv_bytes: Array
    """KV cache of one request when its prompt has been processed."""
    speed: Array
    """How many times as fast as the bare estimate measurements say that every step is; 1 where there are none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Measurements:
    table: MeasuredTable
    correction: Correction


def peak_power_w(gpu: GpuSpec, config: EngineConfig, cap_w: WattsPerGpu | None = None) -> WattsPerReplica:
    """Return the peak power of one replica's GPUs in W, each with the power limit `cap_w` if there is one."""
    return WattsPerReplica(min(gpu.tdp_w, cap_w or gpu.tdp_w) * config.gpus_per_replica * PEAK_POWER_FRACTION)


def _sizes(buckets: Sequence[Bucket]) -> Array:
    if any(bucket.input_tokens is None or bucket.output_tokens is None for bucket in buckets):
        msg = "buckets without token counts cannot be profiled: their throughput must be given"
        raise ValueError(msg)
    return np.array([[bucket.input_tokens, bucket.output_tokens] for bucket in buckets], dtype=np.float64).reshape(
        -1, 2
    )


def _measurements(
    model: ModelArchitecture,
    gpu: GpuSpec,
    config: EngineConfig,
    *,
    sizes: Array,
    table: MeasuredTable | None,
    params: EstimatorParams,
) -> _Measurements | None:
    if table is None or not len(sizes):
        return None
    floor.check_points(table.points, model, gpu)
    factors = measured.speed_factors(table.points, model, gpu, config, params)
    pairs = [(point, factor) for point, factor in zip(table.points, factors, strict=True) if factor > 0]
    if not pairs:
        return None
    usable = measured.MeasuredTable(points=tuple(point for point, _ in pairs))
    correction = measured.correct(np.maximum(sizes, 1.0), usable, [ratio for _, ratio in pairs])
    return _Measurements(table=usable, correction=correction)


def _is_free(estimates: BucketEstimates, unlimited: BucketEstimates, index: int) -> bool:
    """Return whether neither an SLO nor the configuration's own limits keep a bucket from its saturation rate."""
    return bool(estimates.rate_rps[index] >= unlimited.rate_rps[index] * (1.0 - UNLIMITED_MARGIN))


def profile_option(
    model: ModelArchitecture,
    gpu: GpuSpec,
    config: EngineConfig,
    buckets: Sequence[Bucket],
    slos: Sequence[Slo],
    *,
    store: MeasuredStore,
    params: EstimatorParams | None = None,
    aliases: Sequence[str] = (),
    shortfall: Array | None = None,
    stage: Stage | None = None,
    adapters: AdapterRoom | None = None,
) -> OptionProfile:
    """Return the largest steady rate of every bucket on ONE replica within `slos`, and where each figure comes from.

    Never raises for a configuration that cannot run: its rates are 0 and `limiting` says why.

    Parameters
    ----------
    params : the estimator's numbers; None = the bundled ones (profiles/efficiency.csv).
    aliases : other names under which the model was measured.
    shortfall : shape (buckets,), by what part each figure is too large; None = it is right. Every engine step then
        takes 1 / (1 - shortfall) as long, so where an objective binds the rate falls by more than that.
    stage : one part of serving, if the replica does only this; `slos` are those of whole requests.
    adapters : room for adapters that the replica has, all of them in use.

    Raises
    ------
    ValueError: if a bucket has no token counts.
    InputError: if a measurement that would be used is faster than physics allows.
    """
    params = params or default_params()
    cap_w, config = config.power_cap_w, replace(config, power_cap_w=None)
    sizes = _sizes(buckets)
    names = (model.name, *aliases)
    table = store.lookup(names, gpu.name, config, slos=slos)
    found = _measurements(model, gpu, config, sizes=sizes, table=table, params=params)
    kv_bytes = roofline.kv_transfer_bytes(model, config, np.maximum(sizes[:, 0], 1.0))

    def estimate(
        engine_config: EngineConfig,
        held: Sequence[Slo],
        kept: Array | None = None,
        on: GpuSpec = gpu,
        room: AdapterRoom | None = None,
    ) -> BucketEstimates:
        speed = None if found is None else found.correction.speed
        if kept is not None:
            speed = kept if speed is None else kept * speed
        return capacity.estimate_buckets(
            model,
            on,
            engine_config,
            input_tokens=sizes[:, 0],
            output_tokens=sizes[:, 1],
            slos=held,
            params=params,
            speed=speed,
            role=Role.BOTH if stage is None else stage.role,
            handover_s=None if stage is None else kv_bytes / stage.bytes_per_s,
            adapters=room,
        )

    bounds = slos if stage is None else stage.slos(slos)
    estimates = estimate(config, bounds)
    rates = estimates.rate_rps.copy()
    if found is None:
        unfitted = "" if params.is_fitted(gpu) else gpu.architecture
        origin = _why_estimated(store.engines(names, gpu.name, config), config, unfitted=unfitted)
        provenance = (origin,) * len(buckets)
    elif stage is not None:
        provenance = tuple(_provenance(found, i, is_as_measured=False) for i in range(len(buckets)))
        rates = held_to_physics(rates, stage, model, gpu, config, sizes=sizes)
    else:
        unlimited = estimate(measured.measured_config(found.table.points[0], config), ())
        as_measured = [
            _is_as_measured(found, i, is_free=_is_free(estimates, unlimited, i), slos=slos) for i in range(len(buckets))
        ]
        for i in np.flatnonzero(as_measured).tolist():
            rates[i] = found.table.points[found.correction.nearest[i]].rate_rps
        provenance = tuple(_provenance(found, i, is_as_measured=as_measured[i]) for i in range(len(buckets)))
        rates, provenance = _within_physics(rates, provenance, model, gpu, config, sizes=sizes)
    draw = gpu_draw(gpu)
    if shortfall is not None:
        slow = estimate(config, bounds, 1 - shortfall)
        rates = rates * np.minimum(_part_left(slow, estimates), 1 - shortfall)
    if stage is not None:
        provenance = tuple(stage_provenance(stage.role, origin) for origin in provenance)
    limiting = estimates.limiting
    if cap_w is not None:
        slow = estimate(config, bounds, on=capped(gpu, cap_w))
        part = np.minimum(_part_left(slow, estimates), 1.0)
        rates, limiting = rates * part, slow.limiting
        provenance = tuple(_under_cap(each, cap_w, left) for each, left in zip(provenance, part.tolist(), strict=True))
    if adapters is not None:
        cooled = gpu if cap_w is None else capped(gpu, cap_w)
        without = estimates if cap_w is None else estimate(config, bounds, on=cooled)
        slow = estimate(config, bounds, on=cooled, room=adapters)
        part = np.minimum(_part_left(slow, without), 1.0)
        rates, limiting, estimates = rates * part, slow.limiting, slow
        provenance = tuple(
            _beside_adapters(each, adapters, left) for each, left in zip(provenance, part.tolist(), strict=True)
        )
    return OptionProfile(
        throughput_rps=rates,
        provenance=_with_errors(provenance, is_fitted=params.is_fitted(gpu)),
        limiting=limiting,
        power_w=peak_power_w(gpu, config, cap_w),
        idle_power_w=WattsPerReplica(draw.idle_w * config.gpus_per_replica),
        busy_power_w=WattsPerReplica(min(draw.busy_w, cap_w or draw.busy_w) * config.gpus_per_replica),
        estimates=estimates,
        kv_bytes=kv_bytes,
        speed=np.ones(len(buckets)) if found is None else found.correction.speed,
    )


def _part_left(slow: BucketEstimates, estimates: BucketEstimates) -> Array:
    """Return the rate of every bucket as a part of what it would be, shape (buckets,)."""
    zeros = np.zeros(len(estimates.rate_rps))
    return np.divide(slow.rate_rps, estimates.rate_rps, out=zeros, where=estimates.rate_rps > 0)


def _under_cap(origin: Provenance, cap_w: WattsPerGpu, part: float) -> Provenance:
    """Return the origin of a rate that a power limit has lowered: no measurement any more."""
    kind = ProvenanceKind.ESTIMATED if origin.kind is ProvenanceKind.ESTIMATED else ProvenanceKind.CALIBRATED
    note = f"{origin.note}; x {part:.2f} at a power limit of {cap_w:g} W per GPU, as estimated"
    return replace(origin, kind=kind, note=note.removeprefix("; "))


def _beside_adapters(origin: Provenance, adapters: AdapterRoom, part: float) -> Provenance:
    """Return the origin of a rate that adapters have lowered: no measurement any more."""
    kind = ProvenanceKind.ESTIMATED if origin.kind is ProvenanceKind.ESTIMATED else ProvenanceKind.CALIBRATED
    note = f"{origin.note}; x {part:.2f} with {adapters.count} adapters ({adapters.isolation}), as estimated"
    return replace(origin, kind=kind, note=note.removeprefix("; "))


def _with_errors(provenance: Sequence[Provenance], *, is_fitted: bool) -> tuple[Provenance, ...]:
    """Return the origins with what is known of their errors."""
    errors = error_fractions()
    return tuple(replace(origin, error_fraction=errors[origin.kind, is_fitted]) for origin in provenance)


def _within_physics(
    rates: Array,
    provenance: tuple[Provenance, ...],
    model: ModelArchitecture,
    gpu: GpuSpec,
    config: EngineConfig,
    *,
    sizes: Array,
) -> tuple[Array, tuple[Provenance, ...]]:
    """Return calibrated rates no larger than `floor.rate_bounds_rps`; the notes of those that were say so.

    Measured points obey the floor, but a factor found at one load or size may promise too much at another one.
    """
    capped, notes = rates.copy(), list(provenance)
    for i, (origin, size) in enumerate(zip(provenance, np.maximum(sizes, 1.0).tolist(), strict=True)):
        most = min(
            floor.rate_bounds_rps(
                model,
                gpu,
                n_gpus=config.gpus_per_replica,
                precision=config.precision,
                input_tokens=size[0],
                output_tokens=size[1],
            )
        )
        if origin.kind is ProvenanceKind.CALIBRATED and rates[i] > most:
            capped[i] = most
            notes[i] = replace(origin, note=f"{origin.note}; held to the {most:.4g} requests/s that physics allows")
    return capped, tuple(notes)


def _is_as_measured(found: _Measurements, index: int, *, is_free: bool, slos: Sequence[Slo]) -> bool:
    """Return whether a bucket's rate is a measured one: of its size, at its maximum or under its own objectives."""
    if not found.correction.is_exact[index]:
        return False
    point = found.table.points[found.correction.nearest[index]]
    return (is_free and point.load_kind == "offline_max") or measured.has_objectives(point, slos)


def _why_estimated(engines: Sequence[str], config: EngineConfig, *, unfitted: str) -> Provenance:
    family = engine_family(config.engine)
    others = [engine for engine in engines if engine != family]
    note = f"no measurement of this model, GPU, parallelism and precision with {family}"
    if others:
        note += f"; those with {', '.join(others)} are not used for it (same-engine policy)"
    if unfitted:
        note += f"; the efficiencies are assumed: none was fitted on {unfitted}"
    return Provenance(kind=ProvenanceKind.ESTIMATED, source=ESTIMATE_SOURCE, note=note)


def _provenance(found: _Measurements, index: int, *, is_as_measured: bool) -> Provenance:
    correction = found.correction
    point = found.table.points[correction.nearest[index]]
    version = f"{point.engine} {point.engine_version}".strip()
    source = f"{point.where.path}: {point.source}"
    factor = f"x {correction.speed[index]:.2f} (measured / estimated)"
    if not correction.is_inside[index]:
        note = f"outside the sizes measured with {version} (nearest: {point.size})"
        return Provenance(kind=ProvenanceKind.ESTIMATED, source=ESTIMATE_SOURCE, note=note)
    if is_as_measured:
        return Provenance(
            kind=ProvenanceKind.MEASURED, source=source, as_of=point.as_of, note=f"{version} at {point.size}"
        )
    where = f"at {point.size}" if correction.is_exact[index] else f"interpolated, nearest {point.size}"
    return Provenance(
        kind=ProvenanceKind.CALIBRATED,
        source=source,
        as_of=point.as_of,
        note=f"estimate {factor}, {version}, {where}",
    )
