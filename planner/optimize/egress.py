"""Egress as coefficients of the programme: what serving a bucket away from its users costs.

    sum_b,j  p G[b] a[s(b), r(j)] x[b, j],    G[b] = 3600 lam[b] (tokens in + out) B / 10^9 GB/h

p: price of a gigabyte; B: bytes per token; a: the part of the service's users who are not in the option's region. The
weights of a plan are the same for all users, so each option serves users from everywhere in proportion.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from planner.domain.disaggregation import Role
from planner.errors import InputError

if TYPE_CHECKING:
    from planner.domain.egress import Egress
    from planner.domain.hardware import Offer
    from planner.domain.problem import FleetProblem
    from planner.optimize.arrays import FleetArrays
    from planner.optimize.milp import FloatArray

ALL = 1e-6
"""How far the parts of a service's users may sum from 1."""


def check_egress(problem: FleetProblem) -> None:
    """Return if what is said of users and their traffic makes sense.

    Raises
    ------
    InputError: if parts do not sum to 1, a number is negative, or a bucket does not say how long its requests are.
    """
    egress = problem.egress
    if egress is None:
        return
    if not (egress.usd_per_gb >= 0 and egress.bytes_per_token >= 0):
        raise InputError(
            f"Egress costs {egress.usd_per_gb!r} USD/GB at {egress.bytes_per_token!r} bytes per token.",
            hint="Neither must be negative.",
        )
    demands = {demand.service: demand for demand in problem.demands}
    for service, users in egress.users.items():
        if service not in demands:
            raise InputError(f"Users are stated for {service!r}, for which there is no demand.")
        if min(users.values(), default=-1.0) < 0 or abs(sum(users.values()) - 1) > ALL:
            raise InputError(
                f"The users of {service} sum to {sum(users.values()):.4g} of them.", hint="Parts sum to 100%."
            )
        if any(bucket.input_tokens is None or bucket.output_tokens is None for bucket in demands[service].buckets):
            raise InputError(
                f"The users of {service} are in stated regions, and the sizes of its requests are not known.",
                hint="Give a workload with tokens, or leave its users out.",
            )


def is_priced(egress: Egress | None) -> bool:
    """Return whether any traffic costs something."""
    return egress is not None and egress.usd_per_gb > 0 and egress.bytes_per_token > 0 and bool(egress.users)


def egress_gb(problem: FleetProblem, fleet: FleetArrays) -> FloatArray | None:
    """Return the GB/h that leave the users' region where an option serves a whole bucket, shape (pairs,).

    None where nobody said where users are.
    """
    egress = problem.egress
    if egress is None or not egress.users:
        return None
    whole = np.array([egress.gb_per_hour(bucket) for _, bucket in fleet.buckets])
    # Who decodes sits in the region of who prefilled, to whom the requests are routed: they count there.
    away = np.array(
        [0.0 if option.role is Role.DECODE else egress.away(option.service, option.offer) for option in fleet.options]
    )
    return np.asarray(whole[fleet.pair_bucket] * away[fleet.pair_option], dtype=np.float64)


def is_as_near(better: Offer, worse: Offer, problem: FleetProblem) -> bool:
    """Return whether serving from `better` never costs more traffic than serving from `worse`."""
    egress = problem.egress
    if egress is None or not is_priced(egress):
        return True
    return all(egress.away(service, better) <= egress.away(service, worse) for service in egress.users)
