"""The table of back ends, and the one function that the rest of `optimize` calls."""

from __future__ import annotations

import time
from dataclasses import replace
from importlib import import_module
from threading import Event, Thread
from types import MappingProxyType
from typing import TYPE_CHECKING

import numpy as np

from planner.errors import SolverError, SolverLiedError, SolverUnavailableError
from planner.optimize.backends.base import BackEnd, Capability, RawSolution
from planner.optimize.termination import Termination
from planner.optimize.verify import verify

if TYPE_CHECKING:
    from collections.abc import Mapping

    from planner.optimize.backends.base import SolveFunction
    from planner.optimize.milp import Milp
    from planner.optimize.settings import SolverSettings

INTERRUPT_GRACE_S = 3.0
"""After Ctrl-C, how long a solver that can be interrupted gets to hand over its best solution."""

BACK_ENDS: Mapping[str, BackEnd] = MappingProxyType(
    {
        back_end.name: back_end
        for back_end in (
            BackEnd(
                name="highs",
                title="HiGHS, inside ortools (MathOpt)",
                module="planner.optimize.backends.mathopt",
                capabilities=frozenset(
                    {
                        Capability.CONTINUOUS,
                        Capability.NODE_LIMIT,
                        Capability.TOLERANCE,
                        Capability.FULL_PRECISION,
                    }
                ),
            ),
            BackEnd(
                name="cbc",
                title="CBC, through PuLP",
                module="planner.optimize.backends.cbc",
                capabilities=frozenset(
                    {Capability.CONTINUOUS, Capability.NODE_LIMIT, Capability.TOLERANCE, Capability.INTERRUPT}
                ),
            ),
            BackEnd(
                name="scip",
                title="SCIP, inside ortools (MathOpt)",
                module="planner.optimize.backends.mathopt",
                capabilities=frozenset(
                    {
                        Capability.CONTINUOUS,
                        Capability.NODE_LIMIT,
                        Capability.FULL_PRECISION,
                        Capability.THREADS,
                    }
                ),
            ),
            BackEnd(
                name="cp-sat",
                title="CP-SAT, inside ortools (MathOpt): sliced assignment only",
                module="planner.optimize.backends.mathopt",
                capabilities=frozenset({Capability.INTERRUPT, Capability.FULL_PRECISION, Capability.THREADS}),
            ),
        )
    }
)


LINEAR = BackEnd(
    name="glop",
    title="GLOP, inside ortools (MathOpt): linear programmes that go on from a basis",
    module="planner.optimize.backends.mathopt",
    capabilities=frozenset({Capability.CONTINUOUS, Capability.FULL_PRECISION}),
)
"""Not one that a request can name: it takes no integers."""


def solve_linear(milp: Milp, settings: SolverSettings) -> RawSolution:
    """Return GLOP's answer to a linear programme, with the basis from which the next one, with more rows, can go on."""
    started = time.perf_counter()
    settings = replace(settings, solver=LINEAR.name, threads=1, presolve=milp.basis is None)
    module = import_module(LINEAR.module)
    raw = _run_interruptibly(module.solve, milp, settings, LINEAR)
    if raw is None:
        module.abandon()
        return _interrupted(LINEAR, started)
    return raw


def solve_milp(milp: Milp, settings: SolverSettings) -> RawSolution:
    """Return the answer of the solver that `settings` names.

    Rows without any variable are judged here, and programs that they make impossible are never handed to a solver:
    back ends differ in what they make of an empty row.

    Raises
    ------
    SolverUnavailableError: if there is no such solver, or it is not installed.
    SolverError: if the solver refuses the program.
    """
    started = time.perf_counter()
    back_end = find_back_end(settings.solver)
    _check_abilities(back_end, milp, settings)
    if _is_trivially_infeasible(milp):
        return RawSolution(
            values=None,
            objective=None,
            bound=None,
            termination=Termination.INFEASIBLE,
            seconds=time.perf_counter() - started,
            solver=back_end.name,
            version="",
            detail="a row or a bound that no value satisfies",
        )
    module = import_module(back_end.module)
    raw = _run_interruptibly(module.solve, milp, settings, back_end)
    if raw is None:
        module.abandon()
        return _interrupted(back_end, started)
    return _second_opinion(milp, settings, raw) if back_end.name in SECOND_LOOKS and settings.presolve else raw


def _second_opinion(milp: Milp, settings: SolverSettings, raw: RawSolution) -> RawSolution:
    """Return the answer without presolve where the first one is untrue, or worse than it and the programme small.

    With presolve HiGHS 1.14 and CBC 2.10.3 call a worse plan optimal, or break a row, on about one random fleet in
    5,000 that SCIP and enumeration agree on; all of those were small, where a second look costs next to nothing.
    """
    left_s = settings.time_limit_s - raw.seconds
    is_small = milp.n_columns <= SECOND_OPINION_COLUMNS and bool(milp.is_integer.any())
    is_final = raw.termination in {Termination.OPTIMAL, Termination.INFEASIBLE}
    is_true = _is_true(milp, raw)
    if left_s <= 0 or (is_true and not (is_small and is_final)):
        return raw
    nodes = SECOND_OPINION_NODES if settings.node_limit is None else min(settings.node_limit, SECOND_OPINION_NODES)
    limit = settings.node_limit if not is_true else nodes
    try:
        again = solve_milp(milp, replace(settings, presolve=False, time_limit_s=left_s, node_limit=limit))
    except SolverError:  # CBC breaks down without preprocessing on some programmes that have no solution
        return raw
    if not is_true:
        return again
    if again.values is None or again.objective is None or not _is_true(milp, again):
        return raw
    gained = np.inf if raw.objective is None else raw.objective - again.objective
    allowed = max(settings.relative_gap, SAME_OBJECTIVE) * max(abs(again.objective), 1.0)
    return again if gained > allowed else raw


SECOND_LOOKS = frozenset({"highs", "cbc"})
SECOND_OPINION_COLUMNS = 500
SECOND_OPINION_NODES = 1000
"""Bounds the second look by something that is the same on every machine."""
SAME_OBJECTIVE = 1e-6
"""Relative; objectives this close are equal to a branch-and-bound."""


def _is_true(milp: Milp, raw: RawSolution) -> bool:
    """Return whether the values satisfy the programme."""
    if raw.values is None:
        return True
    try:
        verify(milp, raw.values)
    except SolverLiedError:
        return False
    return True


def abandon(name: str) -> None:
    """Give back what solves of the back end `name` hold that nobody waits for any more."""
    import_module(find_back_end(name).module).abandon()


def find_back_end(name: str) -> BackEnd:
    """Return the back end called `name`.

    Raises
    ------
    SolverUnavailableError: if there is none.
    """
    if name not in BACK_ENDS:
        raise SolverUnavailableError(f"There is no solver {name!r}.", hint=f"Choose one of: {', '.join(BACK_ENDS)}.")
    return BACK_ENDS[name]


def _check_abilities(back_end: BackEnd, milp: Milp, settings: SolverSettings) -> None:
    if Capability.CONTINUOUS not in back_end.capabilities and not milp.is_integer.all():
        able = [other.name for other in BACK_ENDS.values() if Capability.CONTINUOUS in other.capabilities]
        raise SolverUnavailableError(
            f"The solver {back_end.name!r} has integer variables only: it cannot split buckets, nor plan for start-up,"
            " leases, losses, scenarios, jobs or priced changes.",
            hint=f"Choose one of: {', '.join(able)}; or use --assignment sliced with it, without any of these.",
        )
    if settings.threads > 1 and Capability.THREADS not in back_end.capabilities:
        able = [other.name for other in BACK_ENDS.values() if Capability.THREADS in other.capabilities]
        raise SolverUnavailableError(
            f"The solver {back_end.name!r} runs on one thread here, not on {settings.threads}.",
            hint=f"Leave --threads at 1, or choose one of: {', '.join(able)}.",
        )


def _is_trivially_infeasible(milp: Milp) -> bool:
    """Return whether a row without entries or a pair of bounds admits no value at all."""
    empty = np.diff(milp.row_starts) == 0
    return bool(
        np.any(milp.row_lower[empty] > 0)
        or np.any(milp.row_upper[empty] < 0)
        or np.any(milp.col_lower > milp.col_upper)
        or np.any(milp.row_lower > milp.row_upper)
    )


def _run_interruptibly(
    solve: SolveFunction, milp: Milp, settings: SolverSettings, back_end: BackEnd
) -> RawSolution | None:
    """Run the solver beside the main thread, so that Ctrl-C is heard while native code is at work.

    None: the solver was interrupted and has not handed anything over; its thread works on, unheard, until its limit.
    """
    interrupt, done = Event(), Event()
    answers: list[RawSolution] = []
    failures: list[BaseException] = []

    def work() -> None:
        try:
            answers.append(solve(milp, settings, interrupt))
        except BaseException as error:  # noqa: BLE001 - handed over to the caller's thread, where it is raised again
            failures.append(error)
        finally:
            done.set()

    Thread(target=work, name=f"solver-{back_end.name}", daemon=True).start()
    try:
        done.wait()
    except KeyboardInterrupt:
        interrupt.set()
        if Capability.INTERRUPT in back_end.capabilities:
            done.wait(INTERRUPT_GRACE_S)
        if not done.is_set():
            return None
    if failures:
        raise failures[0]
    return answers[0]


def _interrupted(back_end: BackEnd, started: float) -> RawSolution:
    return RawSolution(
        values=None,
        objective=None,
        bound=None,
        termination=Termination.INTERRUPTED,
        seconds=time.perf_counter() - started,
        solver=back_end.name,
        version="",
        detail="interrupted before the solver handed over a solution",
    )
