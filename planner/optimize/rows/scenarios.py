"""The fleet also serves what may come instead of what is planned for."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from planner.optimize.milp import always
from planner.optimize.rows.presence import SMALL_LOAD

if TYPE_CHECKING:
    from planner.optimize.arrays import FleetArrays, ScenarioArrays
    from planner.optimize.milp import FloatArray, IntArray, MilpBuilder


def define_scenarios(
    builder: MilpBuilder, fleet: FleetArrays, n: IntArray, *, slack: dict[int, int] | None = None
) -> None:
    """For every scenario s, with shares w of its own:

        sum_k w[s, b, k] >= f[s] (- e)                                                     for every bucket b of s
        sum_b lam[s, b] (1 + rho[s]) / (U X[s, k, b]) w[s, b, k] <= sum_{j in k} n[j]      for every class k
        w[s, b, k] <= sum_{j in k} n[j]                                                    where a load is at most 1e-4

    The fleet is chosen before anybody knows what comes, its routing afterwards (a two-stage robust programme with
    recourse; Ben-Tal, Goryashko, Guslitzer and Nemirovski, Mathematical Programming 99, 2004). A class is all options
    of a service that are equally fast in s: their replicas can stand for each other.

    n : columns of replicas, shape (options,).
    slack : columns e by the rule's position: an elastic copy of the model.
    """
    for scenario in fleet.scenarios:
        extra = [slack[scenario.position]] if slack and scenario.position in slack else []
        _define_scenario(builder, scenario, n, np.array(extra, dtype=np.int64))


def _define_scenario(builder: MilpBuilder, scenario: ScenarioArrays, n: IntArray, slack: IntArray) -> None:
    """Add the shares and rows of one scenario."""
    bucket, option_class, load = _by_class(scenario)
    n_buckets, n_classes = len(scenario.buckets), int(scenario.option_class.max(initial=-1)) + 1
    name = always(scenario.name)
    w = builder.add_columns("share in scenario", len(bucket), upper=1.0)
    builder.add_rows(
        "served in scenario",
        rows=np.concatenate([bucket, np.tile(np.arange(n_buckets), len(slack))]),
        columns=np.concatenate([w, np.repeat(slack, n_buckets)]),
        values=1.0,
        lower=np.full(n_buckets, scenario.bound),
        label=name,
    )
    builder.add_rows(
        "capacity in scenario",
        rows=np.concatenate([option_class, scenario.option_class]),
        columns=np.concatenate([w, n]),
        values=np.concatenate([load, -np.ones(len(n))]),
        upper=np.zeros(n_classes),
        label=name,
    )
    small = np.flatnonzero(load <= SMALL_LOAD)
    rows, options = np.nonzero(option_class[small][:, None] == scenario.option_class[None, :])
    builder.add_rows(
        "presence in scenario",
        rows=np.concatenate([np.arange(len(small)), rows]),
        columns=np.concatenate([w[small], n[options]]),
        values=np.concatenate([np.ones(len(small)), -np.ones(len(rows))]),
        upper=np.zeros(len(small)),
        label=name,
    )


def _by_class(scenario: ScenarioArrays) -> tuple[IntArray, IntArray, FloatArray]:
    """Return bucket, class and load of every eligible pair of a bucket and a class of options."""
    n_classes = int(scenario.option_class.max(initial=-1)) + 1
    keys = scenario.pair_bucket * n_classes + scenario.option_class[scenario.pair_option]
    first = np.unique(keys, return_index=True)[1]
    pair_class = scenario.option_class[scenario.pair_option[first]]
    return scenario.pair_bucket[first], pair_class, scenario.pair_load[first]
