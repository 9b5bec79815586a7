"""Mean power of a GPU at an operating point, from how busy its memory and its arithmetic are."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from planner.domain.precision import weight_bytes
from planner.profilers import roofline
from planner.profilers.power import power_fractions

if TYPE_CHECKING:
    from collections.abc import Sequence

    from planner.profilers.operating import Case, Points
    from planner.profilers.roofline import Array
    from planner.profilers.steady import Replica


def utilisation(cases: Sequence[Case], replica: Replica, points: Points) -> tuple[Array, Array]:
    """Return the shares of the data sheet's bandwidth and dense peak that are in use, shape (cases,).

    Memory: the weights once per step and the cache of every decoding sequence, over the step's time. Arithmetic:
    2 FLOPs per active parameter and token, prompts and output, and the attention of the prompts.
    """
    tp = np.array([case.config.gpus_per_replica for case in cases], dtype=np.float64)
    bandwidth = np.array([case.gpu.bandwidth_bytes_per_s for case in cases])
    peak = np.array(
        [case.gpu.peak_flops[roofline.math_format(case.config.precision, case.gpu) or "bf16"] for case in cases]
    )
    weights = np.array([weight_bytes(case.model, case.config.precision) for case in cases])
    cache_bytes = np.array(
        [
            roofline.kv_bytes_per_gpu(
                case.model,
                case.config,
                np.array([case.input_tokens + case.output_tokens / 2]),
                is_read=True,
            )[0]
            for case in cases
        ]
    )
    active = np.array([case.model.active_params for case in cases])
    attention = np.array(
        [roofline.prefill_attention_flops(case.model, np.array([case.input_tokens]))[0] for case in cases]
    )
    outputs = replica.decode_steps + 1.0
    read_per_s = (weights / tp + points.batch * cache_bytes) / np.maximum(points.step_s, 1e-9)
    flops_per_s = points.rate_rps * (2.0 * active * (replica.input_tokens + outputs) + attention) / tp
    return np.minimum(read_per_s / bandwidth, 1.0), np.minimum(flops_per_s / peak, 1.0)


def mean_power_w(cases: Sequence[Case], replica: Replica, points: Points) -> Array:
    """Return the mean draw of one GPU in watts: TDP x (awake + memory x m + arithmetic x sqrt(a)), at most the TDP."""
    memory, arithmetic = utilisation(cases, replica, points)
    fractions = [power_fractions(case.gpu) for case in cases]
    tdp = np.array([case.gpu.tdp_w for case in cases], dtype=np.float64)
    share = np.array([f.awake for f in fractions])
    share = share + np.array([f.memory for f in fractions]) * memory
    share = share + np.array([f.arithmetic for f in fractions]) * np.sqrt(arithmetic)
    drawn: Array = np.minimum(tdp * share, tdp)
    return drawn
