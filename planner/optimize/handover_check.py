"""Part of the independent check of a plan: what one replica prefills another one decodes, and networks carry it."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

from planner.domain.disaggregation import Role
from planner.errors import SolverLiedError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from planner.domain.plan import Plan
    from planner.domain.problem import FleetProblem, ServingOption

TOLERANCE = 2e-9
"""Of a bucket's requests, and of a network's rate."""


def check_handovers(problem: FleetProblem, plan: Plan, by_key: Mapping[tuple[str, str], ServingOption]) -> None:
    """Return if every route prefills and decodes the same requests, in one place, and no network is overfull.

    Raises
    ------
    SolverLiedError: naming what does not hold.
    """
    position = {
        (demand.service, bucket.row, bucket.column): index
        for demand in problem.demands
        for index, bucket in enumerate(demand.buckets)
    }
    sent: dict[tuple[str, str], float] = defaultdict(float)
    for route in plan.routing:
        left: dict[object, float] = defaultdict(float)
        for weights, allowed, sign in (
            (route.weights, (Role.BOTH, Role.PREFILL), 1.0),
            (route.decode_weights, (Role.DECODE,), -1.0),
        ):
            for key, weight in weights.items():
                option = by_key[route.service, key]
                if option.role not in allowed or weight < 0:
                    _fail(f"{key} gets requests of {route.service} for a part of serving that it does not do")
                if option.handover is None:
                    continue
                left[option.meeting_point] += sign * weight
                size = float(option.handover.kv_bytes[position[route.service, route.row, route.column]])
                sent[route.service, key] += route.rate_rps * weight * size
        if any(abs(value) > TOLERANCE for value in left.values()):
            _fail(f"requests of {route.service} are prefilled where they are not decoded, or the other way round")
    _check_networks(problem, plan, by_key, sent)


def _check_networks(
    problem: FleetProblem,
    plan: Plan,
    by_key: Mapping[tuple[str, str], ServingOption],
    sent: Mapping[tuple[str, str], float],
) -> None:
    usable = problem.utilization_cap / (1 + problem.headroom_fraction)
    for item in plan.allocation:
        option = by_key[item.service, item.option]
        if option.role is not item.role:
            _fail(f"{item.option} is said to serve {item.role}, and serves {option.role}")
        if option.handover is None:
            continue
        used, most = sent.get((item.service, item.option), 0.0), item.replicas * option.handover.bytes_per_s * usable
        if used > most * (1 + TOLERANCE):
            _fail(f"KV caches of {used:.6g} bytes/s pass through {item.option}, whose network carries {most:.6g}")
        stated = item.transfer_bytes_per_s or 0.0
        if problem.horizon is None and abs(stated - used) > 1e-6 * max(used, 1.0):
            _fail(f"{item.option} transfers {used:.6g} bytes/s, and the plan says {stated:.6g}")


def _fail(what: str) -> None:
    raise SolverLiedError(f"The plan does not hold: {what}.", hint="Try another solver with --solver.")
