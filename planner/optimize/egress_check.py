"""Part of the independent check of a plan: the traffic to its users, request by request from its own routes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from planner.errors import SolverLiedError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from planner.domain.plan import PeriodRoute, Plan, Route
    from planner.domain.problem import FleetProblem, ServingOption

TOLERANCE = 1e-6
"""Relative: what solvers accept of shares."""


def check_egress_of(problem: FleetProblem, plan: Plan, by_key: Mapping[tuple[str, str], ServingOption]) -> None:
    """Return if the plan sends to other regions, and pays for, what its routes come to.

    Raises
    ------
    SolverLiedError: if it says something else.
    """
    egress = problem.egress
    gb_per_hour = cost = None
    if egress is not None and egress.users:
        tokens = {
            (demand.service, bucket.row, bucket.column): (bucket.input_tokens or 0) + (bucket.output_tokens or 0)
            for demand in problem.demands
            for bucket in demand.buckets
        }
        periods: list[Sequence[Route | PeriodRoute]] = [part.routing for part in plan.schedule or (plan,)]
        gb_per_hour = 0.0
        for routing in periods:
            for route in routing:
                users = egress.users.get(route.service, {})
                for key, weight in route.weights.items():
                    region = by_key[route.service, key].offer.region
                    away_rps = route.rate_rps * weight * (sum(users.values()) - users.get(region, 0.0))
                    size = tokens[route.service, route.row, route.column] * egress.bytes_per_token
                    gb_per_hour += away_rps * 3600 * size / 1e9 / len(periods)
        cost = gb_per_hour * egress.usd_per_gb
    for what, expected, stated in (
        ("GB/h to other regions", gb_per_hour, plan.egress_gb_per_hour),
        ("USD/h for them", cost, plan.egress_usd_per_hour),
    ):
        if (expected is None) != (stated is None) or abs((expected or 0) - (stated or 0)) > TOLERANCE * max(
            expected or 0, 1e-3
        ):
            raise SolverLiedError(
                f"The plan does not hold: its routes come to {expected or 0:g} {what}, and it says {stated}.",
                hint="Try another solver with --solver.",
            )
