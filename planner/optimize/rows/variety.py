"""At most so many GPU types, providers or offers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from planner.domain.problem import VarietyLimit
from planner.optimize.milp import always

if TYPE_CHECKING:
    from planner.domain.hardware import Offer
    from planner.domain.problem import Facet
    from planner.optimize.arrays import FleetArrays
    from planner.optimize.milp import FloatArray, IntArray, MilpBuilder


def group_offers(facet: Facet, offers: tuple[Offer, ...]) -> tuple[tuple[str, ...], IntArray]:
    """Return the groups by name, and every offer's group, shape (offers,)."""
    names = sorted({facet.of(offer) for offer in offers})
    index = {name: position for position, name in enumerate(names)}
    return tuple(names), np.array([index[facet.of(offer)] for offer in offers], dtype=np.int64)


def define_variety(
    builder: MilpBuilder,
    fleet: FleetArrays,
    m: IntArray,
    most: FloatArray,
    *,
    slack: dict[int, int] | None = None,
) -> None:
    """For every limit on variety with groups v:  m[p] <= M[p] y[v(p)] for every pool p,  sum_v y[v] <= K (+ s).

    y is binary: whether anything of the group is rented. M is the most instances of a pool that any plan needs, so a
    group that is not rented has none, and one that is rented is not held back. A limit that is no smaller than the
    number of groups has neither variables nor rows.

    m : columns of instances, shape (pools,).
    most : M, shape (pools,).
    slack : columns s by the rule's position: an elastic copy of the model.
    """
    slack = slack or {}
    pools = np.arange(len(fleet.pool_offer))
    for position, rule in enumerate(fleet.rules):
        if not isinstance(rule, VarietyLimit):
            continue
        names, group = group_offers(rule.facet, fleet.offers)
        if rule.bound >= len(names):
            continue
        y = builder.add_columns(f"some {rule.facet}", len(names), upper=1.0, is_integer=True, label=names.__getitem__)
        builder.add_rows(
            f"rented {rule.facet}",
            rows=np.concatenate([pools, pools]),
            columns=np.concatenate([m, y[group[fleet.pool_offer]]]),
            values=np.concatenate([np.ones(len(pools)), -most]),
            upper=np.zeros(len(pools)),
        )
        extra = [slack[position]] if position in slack else []
        builder.add_rows(
            "variety",
            rows=np.zeros(len(names) + len(extra), dtype=np.int64),
            columns=np.concatenate([y, np.array(extra, dtype=np.int64)]),
            values=np.concatenate([np.ones(len(names)), -np.ones(len(extra))]),
            upper=[float(rule.bound)],
            label=always(rule.name),
        )
