"""The whole programme: variables, row families and the objective, put together.

minimise  sum_p c[o(p)] m[p] (+ changes)     over  x[b, j] >= 0,  n[j] integer,  m[p] integer

With a horizon, buckets, options and pools are repeated per period, and the objective is the mean over the periods.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from planner.optimize.energy import price_coefficients
from planner.optimize.milp import MilpBuilder
from planner.optimize.periods import instance_periods
from planner.optimize.problem_check import offer_gpus
from planner.optimize.rows.capacity import define_capacity
from planner.optimize.rows.changes import change_usd_per_hour, define_changes
from planner.optimize.rows.coverage import define_coverage
from planner.optimize.rows.deferrable import define_work
from planner.optimize.rows.disaggregation import define_handovers, define_transfers
from planner.optimize.rows.energy import define_energy_budgets
from planner.optimize.rows.limits import all_limits, define_limits
from planner.optimize.rows.minimums import define_minimums, instances_for_minimums
from planner.optimize.rows.packing import define_packing
from planner.optimize.rows.presence import define_presence
from planner.optimize.rows.residence import define_residence
from planner.optimize.rows.scenarios import define_scenarios
from planner.optimize.rows.shares import define_share_caps
from planner.optimize.rows.survival import define_survival
from planner.optimize.rows.transitions import define_instances, define_lease, define_starts, needs_starts
from planner.optimize.rows.variety import define_variety

if TYPE_CHECKING:
    from collections.abc import Mapping

    from planner.optimize.arrays import FleetArrays
    from planner.optimize.milp import FloatArray, IntArray, Milp


FOLLOWER_DUST = 1e-9
"""A linear relaxation's zero may be this large."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetModel:
    """A fleet as a programme that can still be added to, and where its variables stand."""

    fleet: FleetArrays
    builder: MilpBuilder
    x: IntArray
    """Columns of shares (or of slices), shape (pairs,)."""
    n: IntArray
    """Columns of replicas, shape (options,)."""
    m: IntArray
    """Columns of instances, shape (pools,)."""
    up: IntArray | None
    """Columns of instances started for a period, shape (pools,), -1 where committed; None if starts do not matter."""
    slack: IntArray | None
    """Columns by which limits are exceeded, shape (limits,); only in an elastic model."""
    changes: IntArray
    """Columns of replicas started and stopped, shape (2 x options,); empty where nothing is said of today's fleet."""
    relaxations: Mapping[int, int]
    """Columns by which rules are missed, by the rule's position; only in an elastic model."""
    u: IntArray | None = None
    """Columns of unserved shares, shape (buckets,); only where demand may be shed."""
    short: IntArray = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    """Columns of the parts of jobs that are not done, shape (jobs,); only in an elastic model."""

    def freeze(self) -> Milp:
        """Return the programme as it stands."""
        return self.builder.freeze()

    def with_followers(self, values: FloatArray, milp: Milp) -> FloatArray:
        """Return a solution in which replicas and instances were rounded up, with the variables that follow from them.

        Whether something is rented is rounded up as well, and changes are what the replicas say. Limits and rules may
        then be broken; that is for the caller to check.
        """
        rounded = values.copy()
        first = np.concatenate([self.x, self.n, self.m])
        others = milp.is_integer.copy()
        others[first] = False
        rounded[others] = np.ceil(rounded[others] - FOLLOWER_DUST)
        if len(self.changes):
            difference = rounded[self.n] - self.fleet.running
            rounded[self.changes] = np.concatenate([np.maximum(difference, 0), np.maximum(-difference, 0)])
        return rounded


@dataclass(frozen=True, slots=True, kw_only=True)
class Objective:
    """What to minimise: a coefficient per column family."""

    per_replica: FloatArray
    per_instance: FloatArray
    per_pair: FloatArray | None = None
    """Of a whole bucket served; None = nothing."""
    per_change: float = 0.0
    """Of a USD/h that changes to today's fleet cost."""

    def without_shares(self, fleet: FleetArrays, replicas: IntArray, instances: IntArray) -> float:
        """Return what replicas (shape (options,)) and instances (pools,) come to, with their starts and changes."""
        return float(
            self.per_replica @ replicas
            + self.per_instance @ instance_periods(fleet, instances)
            + self.per_change * change_usd_per_hour(fleet, replicas)
        )


def pool_prices(fleet: FleetArrays) -> FloatArray:
    """Return the price of one instance of every pool in USD/h."""
    return np.array([float(fleet.offers[offer].price_usd_per_hour) for offer in fleet.pool_offer.tolist()])


def cost_objective(fleet: FleetArrays) -> Objective:
    """Return the objective of the model: what is rented, priced energy and changes, in USD/h; mean over the periods."""
    per_instance = pool_prices(fleet) / fleet.n_periods
    energy = price_coefficients(fleet)
    if energy is None:
        return Objective(per_replica=np.zeros(len(fleet.options)), per_instance=per_instance, per_change=1.0)
    return Objective(per_replica=energy[0], per_instance=per_instance, per_pair=energy[1], per_change=1.0)


def build_model(
    fleet: FleetArrays,
    objective: Objective | None = None,
    *,
    slack_cost: FloatArray | None = None,
    slack_upper: FloatArray | None = None,
    unserved_cost: FloatArray | None = None,
    relaxed_rules: Mapping[int, float] | None = None,
    short_cost: FloatArray | None = None,
) -> FleetModel:
    """Return the model of `fleet`, minimising its cost unless another `objective` is given.

    Parameters
    ----------
    slack_cost, slack_upper : make limits elastic: the price of exceeding each by 1 and by how much it may be, shape
        (limits,).
    unserved_cost : lets buckets be left unserved, at this price for all of a bucket, shape (buckets,).
    relaxed_rules : make rules elastic: the price of missing a rule by 1 by its position.
    short_cost : lets jobs be left undone, at this price for all of a job, shape (jobs,); inf = not this one.
    """
    builder = MilpBuilder()
    aim = objective or cost_objective(fleet)
    x = builder.add_columns(
        "x",
        len(fleet.pair_bucket),
        upper=fleet.units_per_bucket,
        cost=0.0 if aim.per_pair is None else aim.per_pair / fleet.units_per_bucket,
        is_integer=fleet.is_sliced,
        label=lambda i: f"{fleet.pair_bucket[i]},{fleet.pair_option[i]}",
    )
    n = builder.add_columns(
        "n",
        len(fleet.options),
        upper=fleet.replicas_upper,
        cost=aim.per_replica,
        is_integer=True,
        label=lambda j: f"{fleet.options[j].service} on {fleet.options[j].offer.name}",
    )
    m = define_instances(builder, fleet, upper=instances_upper(fleet), cost=aim.per_instance)
    slack = None
    if slack_cost is not None:
        slack = builder.add_columns(
            "excess",
            len(slack_cost),
            upper=np.inf if slack_upper is None else slack_upper,
            cost=slack_cost,
            label=lambda i: all_limits(fleet)[i].name,
        )
    u = None
    if unserved_cost is not None:
        u = builder.add_columns("unserved", len(fleet.buckets), upper=1.0, cost=unserved_cost)
    relaxations = {
        position: int(builder.add_columns("missed", 1, cost=price)[0])
        for position, price in (relaxed_rules or {}).items()
    }
    define_coverage(builder, fleet, x, u=u)
    define_capacity(builder, fleet, x, n)
    define_handovers(builder, fleet, x)
    define_transfers(builder, fleet, x, n)
    define_presence(builder, fleet, x, n)
    define_residence(builder, fleet, x, n)
    define_packing(builder, fleet, n, m)
    up = None
    if fleet.horizon is not None and needs_starts(fleet):
        ahead = fleet.horizon.start_up_s / fleet.horizon.step_s
        up = define_starts(builder, fleet, m, cost=ahead * aim.per_instance)
        if fleet.horizon.lease_periods > 1:
            define_lease(builder, fleet, m, up)
    define_limits(builder, fleet, n, m, up=up, slack=slack)
    define_variety(builder, fleet, m, instances_upper(fleet), slack=relaxations)
    define_minimums(builder, fleet, m, slack=relaxations)
    define_share_caps(builder, fleet, x, u=u, slack=relaxations)
    define_survival(builder, fleet, n, u=u, slack=relaxations)
    define_scenarios(builder, fleet, n, slack=relaxations)
    define_energy_budgets(builder, fleet, x, n, slack=relaxations)
    short = define_work(builder, fleet, x, n, short_cost=short_cost) if fleet.jobs else np.zeros(0, dtype=np.int64)
    changes = define_changes(builder, fleet, n, weight=aim.per_change)
    return FleetModel(
        fleet=fleet,
        builder=builder,
        x=x,
        n=n,
        m=m,
        up=up,
        slack=slack,
        changes=changes,
        relaxations=relaxations,
        u=u,
        short=short,
    )


def instances_upper(fleet: FleetArrays) -> FloatArray:
    """Return the instances per pool that no plan needs more of, shape (pools,)."""
    upper = np.zeros(len(fleet.pool_offer))
    for option, pool in enumerate(fleet.option_pool.tolist()):
        gpus = offer_gpus(fleet.options[option].offer)
        upper[pool] += np.ceil(fleet.replicas_upper[option] / (gpus // fleet.option_gpus[option]))
    upper = np.maximum(upper, instances_for_minimums(fleet))
    if fleet.n_periods == 1:
        return upper
    # Between two busy periods an instance may be kept although nothing needs it.
    return np.tile(upper.reshape(fleet.n_periods, -1).max(axis=0), fleet.n_periods)
