"""Replicas that are plain queueing stations: a step takes a fixed time, memory is endless."""

import numpy as np

from planner.simulate.run import Pools, Router, Traffic
from planner.simulate.steps import KIND


def station(step_s: float, *, slots: int, sequence_s: float = 0.0) -> np.ndarray:
    """Return a kind whose step takes `step_s` (and `sequence_s` for every sequence in it): a request with n output
    tokens takes n steps."""
    kind = np.zeros(1, dtype=KIND)
    kind["fixed_s"] = step_s
    kind["sequence_s"] = sequence_s
    kind["stages"] = kind["speed"] = kind["lone_prefill_factor"] = 1.0
    kind["kv_room"] = np.inf
    kind["block_tokens"] = 16
    kind["max_seqs"] = slots
    kind["token_budget"] = 10 * slots
    kind["knots"] = np.inf
    kind["knots"][:, 0] = 0.0
    return kind


def pools_of(kind: np.ndarray, replicas: int = 1) -> Pools:
    return Pools(kinds=kind, replicas=(replicas,))


def one_row(pools: int = 1, **router) -> Router:
    return Router(weights=np.ones((1, pools)) / pools, rate_rps=np.ones((1, pools)), **router)


def traffic(arrival_s: np.ndarray, output_tokens: np.ndarray, input_tokens: np.ndarray | int = 1) -> Traffic:
    n = len(arrival_s)
    return Traffic(
        arrival_s=arrival_s,
        input_tokens=np.broadcast_to(np.asarray(input_tokens, dtype=np.int64), (n,)),
        output_tokens=np.asarray(output_tokens, dtype=np.int64),
        row=np.zeros(n, dtype=np.int64),
        service=np.zeros(n, dtype=np.int64),
    )
