"""Operating points without queueing: a closed loop of so many clients, and one static batch. For comparisons."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from planner.profilers.operating import first_tokens_s
from planner.profilers.steady import SMALLEST_LOAD, Replica, make_replica, steady_state

if TYPE_CHECKING:
    from planner.domain.hardware import EngineConfig, GpuSpec
    from planner.domain.model import ModelArchitecture
    from planner.profilers.efficiency import EstimatorParams
    from planner.profilers.roofline import Array

SMALLEST_SHARE = 1e-6
"""Smallest load tried, as a share of the largest."""

LOADS_TRIED = 400
"""Points of the load curve that a closed loop is read off."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OperatingPoint:
    """What one replica does at a given load."""

    rate_rps: float
    ttft_s: float
    tpot_s: float


def _replica(
    model: ModelArchitecture, gpu: GpuSpec, config: EngineConfig, sizes: tuple[float, float], params: EstimatorParams
) -> Replica:
    prompt, output = (np.array([size], dtype=np.float64) for size in sizes)
    return make_replica(model, gpu, config, input_tokens=prompt, output_tokens=output, params=params)


def closed_loop(
    model: ModelArchitecture,
    gpu: GpuSpec,
    config: EngineConfig,
    *,
    sizes: tuple[float, float],
    concurrency: float,
    params: EstimatorParams,
) -> OperatingPoint:
    """Return the point at which `concurrency` requests of (input, output) = `sizes` are always under way.

    Clients beyond the replica's slots wait: the rate stays, TTFT takes up the rest (Little's law).
    """
    replica = _replica(model, gpu, config, sizes, params)
    highest = replica.token_budget / float((replica.input_tokens + replica.decode_steps)[0])
    loads = np.geomspace(SMALLEST_SHARE * highest, highest, LOADS_TRIED)[:, None]
    load = steady_state(replica, loads)
    wanted = min(concurrency, float(replica.slots[0]))
    occupancy, rates, paces = load.occupancy[:, 0], load.rate_rps[:, 0], load.mean_step_s[:, 0]
    rate = float(np.interp(wanted, np.maximum.accumulate(occupancy), rates))
    pace = float(np.interp(wanted, np.maximum.accumulate(occupancy), paces))
    ttft = max(0.0, concurrency / rate - float(replica.decode_steps[0]) * pace)
    return OperatingPoint(rate_rps=rate, ttft_s=ttft, tpot_s=pace)


def lone_request(
    model: ModelArchitecture,
    gpu: GpuSpec,
    config: EngineConfig,
    *,
    sizes: tuple[float, float],
    params: EstimatorParams,
) -> OperatingPoint:
    """Return what a single request gets from an idle replica."""
    replica = _replica(model, gpu, config, sizes, params)
    load = steady_state(replica, np.array([[SMALLEST_LOAD]]))
    ttft, pace = float(load.ttft_s[0, 0]), float(load.tpot_s[0, 0])
    total = ttft + float(replica.decode_steps[0]) * pace
    return OperatingPoint(rate_rps=1.0 / total, ttft_s=ttft, tpot_s=pace)


def static_batch(
    model: ModelArchitecture,
    gpu: GpuSpec,
    config: EngineConfig,
    *,
    sizes: tuple[float, float],
    batch: float,
    params: EstimatorParams,
) -> OperatingPoint:
    """Return the point of one batch of identical requests: all prefilled, then all decoded in step."""
    replica = _replica(model, gpu, config, sizes, params)
    zero: Array = np.zeros(1)
    ttft = float(first_tokens_s(replica, np.array([batch]))[0])
    pace = float(replica.step_s(np.array([batch]), zero)[0])
    total = ttft + float(replica.decode_steps[0]) * pace
    return OperatingPoint(rate_rps=batch / total, ttft_s=ttft, tpot_s=pace)
