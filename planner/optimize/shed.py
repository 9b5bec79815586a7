"""What to leave unserved where the limits do not hold all demand, and the cheapest fleet for the rest.

    for priority k = 1, 2, ...:  V[k] = min  sum_{b of priority k} lam[b] u[b]     with V[1] ... V[k - 1] kept
    then                                min  the fleet's cost                        with all of V kept

over the model in which every bucket's shares and its unserved share u[b] sum to 1. With the replicas of the last
programme u is made exact by linear programmes; what remains of the demand is a problem like any other.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from planner.domain.plan import Unserved
from planner.domain.provenance import Warning_
from planner.errors import InputError, SolverError, SolverUnavailableError
from planner.optimize.arrays import fleet_arrays
from planner.optimize.backends import solve_milp
from planner.optimize.backends.base import Capability
from planner.optimize.backends.registry import find_back_end
from planner.optimize.energy import budget_rows
from planner.optimize.milp import MilpBuilder
from planner.optimize.model import Objective, build_model, cost_objective
from planner.optimize.routing import LP_TIME_LIMIT_S, LP_TOLERANCE
from planner.optimize.rows.coverage import define_coverage
from planner.optimize.rows.disaggregation import define_handovers
from planner.optimize.rows.shedding import define_shed_limits
from planner.optimize.search import SearchResult, clean_bound, run, settle
from planner.optimize.settings import Assignment, SolverSettings
from planner.optimize.termination import Termination
from planner.optimize.verify import verify

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from planner.domain.problem import FleetProblem, ServingOption
    from planner.domain.workload import Bucket
    from planner.optimize.arrays import FleetArrays
    from planner.optimize.backends import RawSolution
    from planner.optimize.milp import FloatArray, IntArray
    from planner.optimize.search import Fleet
    from planner.optimize.verify import Verified

UNSERVED = "W401"
KEPT = 1e-7
"""Relative to a priority's demand: how far above its least unserved rate a later programme may go; a solver's noise."""
DUST = 1e-10
"""Shares of a bucket, served or not, below this are rounding noise and become 0."""
MARGINS = (0.0, 1e-8, 1e-6)
"""Shares of the demand that are given up, one after the other, where replicas would be overfull by rounding."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """The part of a problem that its limits hold."""

    problem: FleetProblem
    """With the rates that are served; buckets of which nothing is served are gone."""
    options: tuple[ServingOption, ...]
    """The original of each option of `fleet`, same order."""
    fleet: FleetArrays
    result: SearchResult


@dataclass(frozen=True, slots=True, kw_only=True)
class _Stages:
    """The last programme's fleet and how the programmes ended."""

    replicas: IntArray
    instances: IntArray
    bound: float | None
    termination: Termination
    raw: RawSolution
    seconds: float


def serve_most(problem: FleetProblem, settings: SolverSettings, assignment: Assignment) -> Served | None:
    """Return the part of `problem` that the limits hold, with its cheapest fleet; None if a limit stopped the search.

    Raises
    ------
    InputError: if buckets are sliced: an unserved part is no whole number of slices.
    SolverUnavailableError: if the solver cannot keep one stage exactly while it solves the next.
    SolverError: if the solver fails or its answer does not satisfy the model.
    """
    if assignment.slice_factor is not None:
        raise InputError(
            "Demand can only be shed where buckets may be split freely.",
            hint="Drop --assignment sliced, or constraints.shed.",
        )
    if Capability.FULL_PRECISION not in find_back_end(settings.solver).capabilities:
        raise SolverUnavailableError(
            f"The solver {settings.solver!r} prints too few digits to hold one stage while the next is solved, and was"
            " seen to leave more demand unserved than necessary.",
            hint="Use --solver highs with constraints.shed.",
        )
    fleet = fleet_arrays(problem, assignment)
    levels = _levels(problem, fleet)
    stages = _solve_stages(fleet, levels, settings)
    if stages is None:
        return None
    unserved = _exact_unserved(fleet, levels, stages.replicas)
    for margin in MARGINS:
        kept = _clean((1 - unserved) * (1 - margin))
        rest, originals = _reduced(problem, kept)
        arrays = fleet_arrays(rest, assignment)
        at = {id(option): index for index, option in enumerate(fleet.options)}
        order = np.array([at[id(originals[id(option)])] for option in arrays.options], dtype=np.int64)
        found = _settled(arrays, stages.replicas[order], stages.instances)
        if found is not None:
            options = tuple(fleet.options[index] for index in order.tolist())
            return Served(problem=rest, options=options, fleet=arrays, result=_result(stages, found))
    raise SolverError(
        "The solver's fleet does not hold the demand that it claims to serve.",
        hint="Try another solver with --solver.",
    )


def _result(stages: _Stages, found: Fleet) -> SearchResult:
    return SearchResult(
        fleet=found,
        bound_usd_per_hour=clean_bound(stages.bound, found),
        termination=stages.termination,
        seconds=stages.seconds,
        solver=stages.raw.solver,
        version=stages.raw.version,
    )


def _levels(problem: FleetProblem, fleet: FleetArrays) -> list[IntArray]:
    """Return the buckets of each priority, most important first."""
    priority = {} if problem.shed is None else problem.shed.priority
    ranks = np.array([priority.get(service, 1) for service, _ in fleet.buckets], dtype=np.int64)
    return [np.flatnonzero(ranks == rank) for rank in np.unique(ranks)]


def _rates(fleet: FleetArrays) -> FloatArray:
    return np.array([bucket.rate_rps for _, bucket in fleet.buckets], dtype=np.float64)


def _solve_stages(fleet: FleetArrays, levels: Sequence[IntArray], settings: SolverSettings) -> _Stages | None:
    """Return the cheapest fleet that leaves least unserved; the best one so far where a limit stops the search."""
    rates, deadline = _rates(fleet), time.monotonic() + settings.time_limit_s
    nothing = Objective(per_replica=np.zeros(len(fleet.options)), per_instance=np.zeros(len(fleet.pool_offer)))
    least: list[float] = []
    seconds = 0.0
    best: _Stages | None = None
    for stage in range(len(levels) + 1):
        is_last = stage == len(levels)
        weights = np.zeros(len(rates))
        if not is_last:
            weights[levels[stage]] = rates[levels[stage]]
        model = build_model(fleet, cost_objective(fleet) if is_last else nothing, unserved_cost=weights)
        if model.u is not None and least:
            define_shed_limits(model.builder, model.u, rates, levels[:stage], least)
        milp = model.freeze()
        raw = run(milp, replace(settings, time_limit_s=max(deadline - time.monotonic(), 0.0)))
        seconds += raw.seconds
        if raw.values is None:
            return best and replace(best, bound=None, termination=raw.termination, seconds=seconds)
        verified = verify(milp, raw.values, stated_objective=raw.objective, bound=raw.bound)
        was_proven = best is None or best.termination is Termination.OPTIMAL
        best = _Stages(
            replicas=_whole(verified, model.n),
            instances=_whole(verified, model.m),
            bound=raw.bound if is_last and was_proven else None,
            termination=raw.termination if best is None or was_proven else best.termination,
            raw=raw,
            seconds=seconds,
        )
        if not is_last:
            # Not the solver's own value: its tolerance may claim a little less than these replicas can serve.
            exact = _exact_unserved(fleet, levels[: stage + 1], best.replicas)[levels[stage]]
            least.append(float(rates[levels[stage]] @ exact) + KEPT * float(rates[levels[stage]].sum()))
    return best


def _whole(verified: Verified, columns: IntArray) -> IntArray:
    return verified.values[columns].round().astype(np.int64)


def _exact_unserved(fleet: FleetArrays, levels: Sequence[IntArray], replicas: IntArray) -> FloatArray:
    """Return u, shape (buckets,), that these replicas leave unserved at least, more important buckets first."""
    rates = _rates(fleet)
    settings = SolverSettings(solver="highs", time_limit_s=LP_TIME_LIMIT_S, feasibility_tolerance=LP_TOLERANCE)
    least: list[float] = []
    values = np.ones(len(rates))
    n_buckets, n_options = len(rates), len(fleet.options)
    for stage, level in enumerate(levels):
        builder = MilpBuilder()
        weights = np.zeros(n_buckets)
        weights[level] = rates[level]
        x = builder.add_columns("x", len(fleet.pair_bucket), upper=np.minimum(replicas[fleet.pair_option], 1.0))
        u = builder.add_columns("unserved", n_buckets, upper=1.0, cost=weights)
        define_coverage(builder, fleet, x, u=u)
        define_handovers(builder, fleet, x)
        networks = (fleet.pair_load * fleet.pair_transfer,) if fleet.is_disaggregated else ()
        for load in (fleet.pair_load, *networks):
            builder.add_rows(
                "capacity",
                rows=fleet.pair_option,
                columns=x,
                values=load,
                upper=np.asarray(replicas, dtype=np.float64).reshape(n_options),
            )
        for row in budget_rows(fleet):
            size = row.bound or 1.0
            left = row.bound - float(row.per_replica @ replicas)
            builder.add_rows(
                "energy budget",
                rows=np.zeros(len(x), dtype=np.int64),
                columns=x,
                values=row.per_pair / size,
                upper=[max(left, 0.0) / size],
            )
        define_shed_limits(builder, u, rates, levels[:stage], least)
        raw = solve_milp(builder.freeze(), settings)
        if raw.values is None:
            raise SolverError(
                f"The linear programme of unserved demand ended with {raw.termination.value!r}.",
                hint="Try another solver with --solver.",
            )
        values = np.clip(raw.values[u], 0.0, 1.0)
        least.append(float(rates[level] @ values[level]))
    return np.asarray(values, dtype=np.float64)


def _clean(kept: FloatArray) -> FloatArray:
    return np.where(kept < DUST, 0.0, np.where(kept > 1 - DUST, 1.0, kept))


def _reduced(problem: FleetProblem, kept: FloatArray) -> tuple[FleetProblem, dict[int, ServingOption]]:
    """Return `problem` with the `kept` part of every bucket, and the original of every option by its id.

    kept : shape (buckets,), services by name, as in `FleetArrays.buckets`.
    """
    shares: dict[str, FloatArray] = {}
    start = 0
    for demand in sorted(problem.demands, key=lambda item: item.service):
        shares[demand.service] = kept[start : start + len(demand.buckets)]
        start += len(demand.buckets)
    demands = tuple(
        replace(
            demand,
            buckets=tuple(
                replace(bucket, rate_rps=bucket.rate_rps * share)
                for bucket, share in zip(demand.buckets, shares[demand.service].tolist(), strict=True)
                if share > 0
            ),
        )
        for demand in problem.demands
    )
    pairs = [(_without_buckets(option, shares[option.service] > 0), option) for option in problem.options]
    reduced = replace(problem, demands=demands, options=tuple(option for option, _ in pairs), shed=None)
    return reduced, {id(option): original for option, original in pairs}


def _without_buckets(option: ServingOption, served: NDArray[np.bool_]) -> ServingOption:
    """Return a copy of `option` that knows only the buckets that are `served`."""
    keep = np.flatnonzero(served).tolist()
    return replace(
        option,
        throughput_rps=option.throughput_rps[keep],
        provenance=tuple(option.provenance[i] for i in keep) if len(option.provenance) > 1 else option.provenance,
        limiting=tuple(option.limiting[i] for i in keep) if option.limiting else (),
        handover=option.handover and replace(option.handover, kv_bytes=option.handover.kv_bytes[keep]),
    )


def _settled(fleet: FleetArrays, replicas: IntArray, instances: IntArray) -> Fleet | None:
    """Return the fleet with its routing, without what nothing needs."""
    return settle(fleet, replicas=replicas, instances=instances, assigned=np.zeros(len(fleet.pair_bucket)))


def unserved_buckets(problem: FleetProblem, served: FleetProblem) -> tuple[Unserved, ...]:
    """Return what `served` lacks of `problem`, in the order of the request."""
    return tuple(_unserved(problem, served))


def _unserved(problem: FleetProblem, served: FleetProblem) -> Iterator[Unserved]:
    priority = {} if problem.shed is None else problem.shed.priority
    rates = {
        (demand.service, bucket.row, bucket.column): bucket.rate_rps
        for demand in served.demands
        for bucket in demand.buckets
    }
    for demand in problem.demands:
        for bucket in demand.buckets:
            left = bucket.rate_rps - rates.get((demand.service, bucket.row, bucket.column), 0.0)
            if left > 0:
                yield _entry(demand.service, bucket, left, priority.get(demand.service, 1))


def _entry(service: str, bucket: Bucket, rate_rps: float, priority: int) -> Unserved:
    return Unserved(
        service=service,
        input_tokens=bucket.input_range,
        output_tokens=bucket.output_range,
        row=bucket.row,
        column=bucket.column,
        rate_rps=rate_rps,
        fraction=min(rate_rps / bucket.rate_rps, 1.0),
        priority=priority,
    )


def unserved_warning(problem: FleetProblem, unserved: Sequence[Unserved]) -> Warning_:
    """Return the warning that names what each service lacks, least important first."""
    total = sum(demand.total_rate_rps for demand in problem.demands)
    parts = []
    for demand in sorted(problem.demands, key=lambda item: item.service):
        mine = [item for item in unserved if item.service == demand.service]
        if mine:
            rate = sum(item.rate_rps for item in mine)
            whole = demand.total_rate_rps
            text = f"{demand.service} {rate:.4g} of {whole:.4g} req/s (priority {mine[0].priority})"
            parts.append((-mine[0].priority, text))
    left = sum(item.rate_rps for item in unserved)
    services = "; ".join(text for _, text in sorted(parts))
    message = f"{left:.4g} of {total:.4g} req/s are not served: {services}."
    return Warning_(code=UNSERVED, message=message, observed=left, threshold=0)
