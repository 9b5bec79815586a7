"""What every plan with adapters costs at least, whichever of their requests go where and however they were searched.

The programme over kin (`coarser.with_kin`) with all sizes apart is a relaxation of every placement of whole adapters:
`planner.domain.adapter_groups.group_adapters` has the proof. Relaxations of it are solved one after the other, the
copies of adapters always in parts: the linear one, with whole instances, and with whole replicas too. Whatever the time
ends, what was proven until then holds. At last only plans cheaper than the one that is known are looked for: if there
are none, its cost is the bound.
"""

from __future__ import annotations

import math
from dataclasses import replace
from enum import Enum
from typing import TYPE_CHECKING

import numpy as np

from planner.optimize.arrays import fleet_arrays
from planner.optimize.milp import Block
from planner.optimize.model import build_model
from planner.optimize.prune import prune
from planner.optimize.search import run
from planner.optimize.termination import Termination

if TYPE_CHECKING:
    from planner.domain.problem import FleetProblem
    from planner.optimize.milp import FloatArray, Milp
    from planner.optimize.settings import Assignment, SolverSettings

DUST = 1e-9
"""Relative: a plan that is cheaper by less is not."""


MOST_COLUMNS = 10_000
"""Of a programme of which relaxations with whole numbers are solved: of larger ones they prove no more in a minute."""


class Whole(Enum):
    """What is whole in a relaxation; each is dearer to solve than the one before."""

    NOTHING = 0
    INSTANCES = 1
    REPLICAS = 2
    """And instances."""


class Proof:
    """What is proven of the cost of all plans, by relaxations that are solved one after the other."""

    def __init__(self, problem: FleetProblem, assignment: Assignment) -> None:
        """Build the programme of `problem`, over kin, all sizes of their requests apart."""
        self.total_usd_per_hour = 0.0
        """No plan has less of what the search minimises; infinite if there is no plan at all."""
        self.seconds = 0.0
        self.is_interrupted = False
        """Then nothing more is proven."""
        self._model = build_model(fleet_arrays(prune(problem), assignment))
        self._cost = self._model.freeze().cost

    def relax(self, whole: Whole, settings: SolverSettings, *, known_usd_per_hour: float = math.inf) -> None:
        """Solve a relaxation for plans that are cheaper than the one that is known."""
        milp = self._model.freeze()
        is_large = whole is not Whole.NOTHING and milp.n_columns > MOST_COLUMNS
        if settings.time_limit_s <= 0 or is_large or self.is_interrupted:
            return
        columns = {
            Whole.NOTHING: self._model.m[:0],
            Whole.INSTANCES: self._model.m,
            Whole.REPLICAS: np.concatenate([self._model.m, self._model.n]),
        }[whole]
        is_integer = np.zeros(milp.n_columns, dtype=np.bool_)
        is_integer[columns] = True
        milp = replace(milp, is_integer=is_integer)
        if math.isfinite(known_usd_per_hour):
            milp = with_price(milp, self._cost, known_usd_per_hour * (1 - DUST))
        raw = run(milp, settings)
        self.seconds += raw.seconds
        self.is_interrupted = raw.termination is Termination.INTERRUPTED
        if raw.termination is Termination.INFEASIBLE:
            self.total_usd_per_hour = known_usd_per_hour
            return
        is_solved = whole is Whole.NOTHING and raw.termination is Termination.OPTIMAL
        found = raw.objective if is_solved else raw.bound
        self.total_usd_per_hour = min(max(self.total_usd_per_hour, found or 0.0), known_usd_per_hour)


def with_price(milp: Milp, cost: FloatArray, most: float) -> Milp:
    """Return the programme with one more row: all that it costs is at most this."""
    priced = np.flatnonzero(cost)
    return replace(
        milp,
        row_starts=np.append(milp.row_starts, milp.row_starts[-1] + len(priced)),
        columns=np.concatenate([milp.columns, priced]),
        values=np.concatenate([milp.values, cost[priced]]),
        row_lower=np.append(milp.row_lower, -np.inf),
        row_upper=np.append(milp.row_upper, most),
        row_blocks=(*milp.row_blocks, Block(name="price", start=milp.n_rows, size=1)),
    )
