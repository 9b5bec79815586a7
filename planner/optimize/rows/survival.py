"""What is left after a loss still serves the demand: of any one group of offers, of instances, or of replicas (N+k)."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field
from itertools import combinations_with_replacement
from typing import TYPE_CHECKING

import numpy as np

from planner.domain.problem import InstanceLoss, ReplicaLoss, Survival
from planner.errors import InputError
from planner.optimize.alike import option_classes
from planner.optimize.arrays import replicas_per_instance
from planner.optimize.milp import always
from planner.optimize.rows.disaggregation import define_handovers
from planner.optimize.rows.variety import group_offers

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from planner.domain.problem import Rule
    from planner.optimize.arrays import FleetArrays
    from planner.optimize.milp import IntArray, MilpBuilder

MOST_SHARES = 3_000_000
"""Shares after losses, over all losses: what fits into 2 GB with the rest of the programme."""


def define_survival(
    builder: MilpBuilder,
    fleet: FleetArrays,
    n: IntArray,
    *,
    u: IntArray | None = None,
    slack: dict[int, int] | None = None,
) -> None:
    """For every loss z that a rule names, with shares w of its own:

        sum_k w[z, b, k] >= f (- s)                                         for every bucket b of the rule's services
        sum_b lam[b] / (U X[k, b]) w[z, b, k] <= sum_{j in k} left[z, j]    for every class k

    Requests are routed anew, without headroom. A class is all options of a service with equal throughputs; replicas of
    one class can stand for each other, so shares by class say the same as shares by option, in far fewer variables.
    Where prefill and decode are apart, a class is of one role and meeting point, and handovers and network rates hold
    for w as they do for x.
    With a horizon buckets and options are those of all periods, so that a loss is survived whenever it comes. Where
    demand may be shed, what is left serves f of what the whole fleet serves:  f (1 - u[b])  in the place of f.

    left[z, j] is n[j] where z takes nothing and 0 where it takes all: the groups of offers of `Survival`. Where z takes
    d replicas, or all if there are fewer, it is max(0, n[j] - d), with a binary y that says "all":

        left <= n[j] - d (1 - y),   left <= (N[j] - d) (1 - y),   left >= 0         N[j]: replicas nobody needs more of

    `InstanceLoss`: k[o] instances of the offers o, K in all, each with up to G[o] / g[j] replicas of j; one loss for
    every way to choose them. `ReplicaLoss`: d[k] replicas of the classes of a service, K in all, with the class's sum
    of replicas in the place of n[j].

    n : columns of replicas, shape (options,).
    u : columns of unserved shares, shape (buckets,), where the request lets demand be shed.
    slack : columns s by the rule's position: an elastic copy of the model.

    Raises
    ------
    InputError: if there are too many losses to plan for.
    """
    if not any(isinstance(rule, Survival | InstanceLoss | ReplicaLoss) and rule.bound > 0 for rule in fleet.rules):
        return
    slack = slack or {}
    rows = _Rows(builder=builder, fleet=fleet, n=n, u=u, classes=option_classes(fleet))
    for position, rule in enumerate(fleet.rules):
        if isinstance(rule, Survival | InstanceLoss | ReplicaLoss) and rule.bound > 0:
            _check_size(rule, fleet, rows.classes)
            extra = np.array([slack[position]] if position in slack else [], dtype=np.int64)
            for loss in _losses(rule, fleet, rows.classes):
                rows.add(loss, bound=rule.bound, slack=extra)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Loss:
    """What can be lost at once."""

    name: str
    is_lost: NDArray[np.bool_]
    """Options that are gone whole, shape (options,)."""
    fewer: tuple[tuple[tuple[int, ...], int], ...] = ()
    """Options that lose so many replicas together, or all that they have."""
    service: str | None = None
    """The one service that loses something; None = all."""


def _losses(rule: Rule, fleet: FleetArrays, classes: IntArray) -> Iterator[_Loss]:
    """Yield every loss that `rule` names."""
    nothing = np.zeros(len(fleet.options), dtype=np.bool_)
    if isinstance(rule, Survival):
        names, group = group_offers(rule.facet, fleet.offers)
        covered = np.array([rule.scope.covers(offer) for offer in fleet.offers], dtype=np.bool_)
        for index in sorted(set(group[covered].tolist())):
            yield _Loss(name=names[index], is_lost=(covered & (group == index))[fleet.option_offer])
    elif isinstance(rule, InstanceLoss):
        for chosen in combinations_with_replacement(range(len(fleet.offers)), rule.count):
            fewer = [
                ((j,), count * replicas_per_instance(fleet.options[j]))
                for offer, count in Counter(chosen).items()
                for j in np.flatnonzero(fleet.option_offer == offer).tolist()
            ]
            words = (f"{count} x {fleet.offers[offer].name}" for offer, count in Counter(chosen).items())
            yield _Loss(name=" and ".join(words), is_lost=nothing, fewer=tuple(fewer))
    elif isinstance(rule, ReplicaLoss):
        kinds = _kinds(fleet, classes)
        for chosen in combinations_with_replacement(_kinds_of(rule.service, fleet, kinds), rule.count):
            few = tuple(
                (tuple(np.flatnonzero((kinds == kind) & (fleet.option_period == period)).tolist()), count)
                for kind, count in Counter(chosen).items()
                for period in range(fleet.n_periods)
            )
            name = f"{rule.count} of {rule.service}"
            yield _Loss(name=name, is_lost=nothing, fewer=few, service=rule.service)


def _kinds(fleet: FleetArrays, classes: IntArray) -> IntArray:
    """Return every option's class in the first period, shape (options,): what is lost is lost in all periods alike."""
    return np.tile(classes[: len(classes) // fleet.n_periods], fleet.n_periods)


def _kinds_of(service: str, fleet: FleetArrays, kinds: IntArray) -> list[int]:
    """Return the kinds of a service's options."""
    return sorted(
        {int(k) for option, k in zip(fleet.options, kinds.tolist(), strict=True) if option.service == service}
    )


def _check_size(rule: Survival | InstanceLoss | ReplicaLoss, fleet: FleetArrays, classes: IntArray) -> None:
    """Refuse a rule of so many losses that their shares would not fit into memory."""
    if isinstance(rule, Survival):
        return
    many = (
        len(fleet.offers)
        if isinstance(rule, InstanceLoss)
        else len(_kinds_of(rule.service, fleet, _kinds(fleet, classes)))
    )
    n_losses = math.comb(many + rule.count - 1, rule.count)
    n_shares = len(set(zip(fleet.pair_bucket.tolist(), classes[fleet.pair_option].tolist(), strict=True)))
    if n_losses * n_shares > MOST_SHARES:
        kinds = "offers" if isinstance(rule, InstanceLoss) else "kinds of replicas"
        raise InputError(
            f"{rule.count} lost at once of {many} {kinds} are {n_losses:,} losses to survive ({rule.name}).",
            hint="Lose fewer at once, or name the GPU types, regions and providers that matter in the catalog.",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Rows:
    """Adds the shares and rows of losses, and what they share: the replicas that a loss leaves."""

    builder: MilpBuilder
    fleet: FleetArrays
    n: IntArray
    u: IntArray | None
    classes: IntArray
    left: dict[tuple[tuple[int, ...], int], int] = field(default_factory=dict)
    """Column of what is left of some options after the loss of so many replicas."""

    def add(self, loss: _Loss, *, bound: float, slack: IntArray) -> None:
        """Add the shares and rows of one loss."""
        fleet, classes, builder = self.fleet, self.classes, self.builder
        concerned = np.array([loss.service in {None, option.service} for option in fleet.options], dtype=np.bool_)
        hit = {option for options, _ in loss.fewer for option in options}
        whole = np.flatnonzero(concerned & ~loss.is_lost & ~np.isin(np.arange(len(concerned)), sorted(hit)))
        parts = [(int(classes[options[0]]), self._left(options, count)) for options, count in loss.fewer]
        usable = concerned & ~loss.is_lost
        first = {int(classes[j]): int(j) for j in reversed(np.flatnonzero(usable).tolist())}
        mine = np.isin(fleet.pair_option, sorted(first.values()))
        pair_class = classes[fleet.pair_option[mine]]
        asked = np.array([loss.service in {None, service} for service, _ in fleet.buckets], dtype=np.bool_)
        row = np.cumsum(asked) - 1
        n_buckets, n_classes = int(asked.sum()), int(classes.max(initial=-1)) + 1
        w = builder.add_columns("share after loss", int(mine.sum()), upper=1.0)
        covers = fleet.pair_covers[mine]
        unserved = np.zeros(0, dtype=np.int64) if self.u is None else self.u[asked]
        builder.add_rows(
            "served after loss",
            rows=np.concatenate(
                [
                    row[fleet.pair_bucket[mine][covers]],
                    np.tile(np.arange(n_buckets), len(slack)),
                    np.arange(len(unserved)),
                ]
            ),
            columns=np.concatenate([w[covers], np.repeat(slack, n_buckets), unserved]),
            values=np.concatenate([np.ones(int(covers.sum()) + n_buckets * len(slack)), np.full(len(unserved), bound)]),
            lower=bound * fleet.served_shares[asked],
            label=always(f"without {loss.name}"),
        )
        columns = np.array([column for _, column in parts], dtype=np.int64)
        of_class = np.array([k for k, _ in parts], dtype=np.int64)
        loads = [fleet.pair_load]
        if fleet.is_disaggregated:
            x = np.zeros(len(fleet.pair_bucket), dtype=np.int64)
            x[mine] = w
            define_handovers(builder, fleet, x, among=mine)
            loads.append(fleet.pair_load * fleet.pair_transfer)
        for load in loads:
            builder.add_rows(
                "capacity after loss",
                rows=np.concatenate([pair_class, classes[whole], of_class]),
                columns=np.concatenate([w, self.n[whole], columns]),
                values=np.concatenate([load[mine] / (1 + fleet.headroom_fraction), -np.ones(len(whole) + len(parts))]),
                upper=np.zeros(n_classes),
                label=always(f"without {loss.name}"),
            )

    def _left(self, options: tuple[int, ...], count: int) -> int:
        """Return the column of max(0, sum of n over `options` - count)."""
        known = self.left.get((options, count))
        if known is not None:
            return known
        most = max(float(self.fleet.replicas_upper[list(options)].sum()) - count, 0.0)
        left = self.builder.add_columns("left", 1, upper=most)
        all_gone = self.builder.add_columns("all gone", 1, upper=1.0, is_integer=True)
        size = len(options)
        self.builder.add_rows(
            "left",
            rows=np.concatenate([np.zeros(size + 2, dtype=np.int64), [1, 1]]),
            columns=np.concatenate([left, all_gone, self.n[list(options)], left, all_gone]),
            values=np.concatenate([[1.0, -float(count)], -np.ones(size), [1.0, most]]),
            upper=[-float(count), most],
        )
        self.left[options, count] = int(left[0])
        return int(left[0])
