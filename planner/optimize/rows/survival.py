"""What is left after the loss of any one group of offers still serves the demand."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from planner.domain.problem import Survival
from planner.optimize.milp import always
from planner.optimize.rows.variety import group_offers

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from planner.optimize.arrays import FleetArrays
    from planner.optimize.milp import IntArray, MilpBuilder


def define_survival(
    builder: MilpBuilder, fleet: FleetArrays, n: IntArray, *, slack: dict[int, int] | None = None
) -> None:
    """For every group z that can be lost, with shares w of its own:

        sum_k w[z, b, k] >= f (- s)                                              for every bucket b
        sum_b lam[b] / (U X[k, b]) w[z, b, k] <= sum_{j in k, j not in z} n[j]   for every class k

    Requests are routed anew, without headroom. A class is all options of a service with equal throughputs; replicas of
    one class can stand for each other, so shares by class say the same as shares by option, in far fewer variables.

    n : columns of replicas, shape (options,).
    slack : columns s by the rule's position: an elastic copy of the model.
    """
    slack = slack or {}
    for position, rule in enumerate(fleet.rules):
        if not isinstance(rule, Survival) or rule.bound <= 0:
            continue
        names, group = group_offers(rule.facet, fleet.offers)
        covered = np.array([rule.scope.covers(offer) for offer in fleet.offers], dtype=np.bool_)
        for index in sorted(set(group[covered].tolist())):
            lost = covered & (group == index)
            extra = np.array([slack[position]] if position in slack else [], dtype=np.int64)
            loss = _Loss(name=names[index], is_lost=lost[fleet.option_offer], bound=rule.bound, slack=extra)
            _define_loss(builder, fleet, n, loss)


def _classes(fleet: FleetArrays) -> IntArray:
    """Return every option's class, shape (options,)."""
    seen: dict[tuple[str, bytes], int] = {}
    keys = ((option.service, option.throughput_rps.tobytes()) for option in fleet.options)
    return np.array([seen.setdefault(key, len(seen)) for key in keys], dtype=np.int64)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Loss:
    """One group that can be lost."""

    name: str
    is_lost: NDArray[np.bool_]
    """Shape (options,)."""
    bound: float
    slack: IntArray


def _define_loss(builder: MilpBuilder, fleet: FleetArrays, n: IntArray, loss: _Loss) -> None:
    """Add the shares and rows of one loss."""
    classes = _classes(fleet)
    left, slack = np.flatnonzero(~loss.is_lost), loss.slack
    first = {int(classes[j]): int(j) for j in reversed(left.tolist())}
    mine = np.isin(fleet.pair_option, sorted(first.values()))
    pair_class = classes[fleet.pair_option[mine]]
    n_buckets, n_classes = len(fleet.buckets), int(classes.max(initial=-1)) + 1
    w = builder.add_columns("share after loss", int(mine.sum()), upper=1.0)
    buckets = np.arange(n_buckets)
    builder.add_rows(
        "served after loss",
        rows=np.concatenate([fleet.pair_bucket[mine], np.tile(buckets, len(slack))]),
        columns=np.concatenate([w, np.repeat(slack, n_buckets)]),
        values=1.0,
        lower=np.full(n_buckets, loss.bound),
        label=always(f"without {loss.name}"),
    )
    builder.add_rows(
        "capacity after loss",
        rows=np.concatenate([pair_class, classes[left]]),
        columns=np.concatenate([w, n[left]]),
        values=np.concatenate([fleet.pair_load[mine] / (1 + fleet.headroom_fraction), -np.ones(len(left))]),
        upper=np.zeros(n_classes),
        label=always(f"without {loss.name}"),
    )
