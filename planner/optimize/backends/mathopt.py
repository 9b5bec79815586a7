"""HiGHS, SCIP, CP-SAT and GLOP through ortools' MathOpt.

The program goes over as one protocol buffer filled from our arrays: 500,000 variables take about a second, where
expression objects take 5 to 7. `core.python.solver` is the call under `mathopt.solve`; importing only it and the
messages saves the start-up time of MathOpt's modelling layer (0.08 s), which is not used here.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from dataclasses import replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
import ortools
from ortools.math_opt import callback_pb2, model_parameters_pb2, model_pb2, parameters_pb2, result_pb2
from ortools.math_opt.core.python import solver as core_solver
from pybind11_abseil.status import StatusNotOk  # type: ignore[import-untyped]

from planner.errors import SolverError
from planner.optimize.backends.base import RawSolution
from planner.optimize.milp import Basis
from planner.optimize.termination import Termination

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from planner.optimize.milp import Milp
    from planner.optimize.settings import SolverSettings

SOLVER_TYPES: Mapping[str, str] = MappingProxyType(
    {
        "highs": "SOLVER_TYPE_HIGHS",
        "scip": "SOLVER_TYPE_GSCIP",
        "cp-sat": "SOLVER_TYPE_CP_SAT",
        "glop": "SOLVER_TYPE_GLOP",
    }
)

_REASONS: Mapping[str, Termination] = MappingProxyType(
    {
        "TERMINATION_REASON_UNSPECIFIED": Termination.ERROR,
        "TERMINATION_REASON_OPTIMAL": Termination.OPTIMAL,
        "TERMINATION_REASON_INFEASIBLE": Termination.INFEASIBLE,
        "TERMINATION_REASON_UNBOUNDED": Termination.UNBOUNDED,
        "TERMINATION_REASON_INFEASIBLE_OR_UNBOUNDED": Termination.INFEASIBLE_OR_UNBOUNDED,
        "TERMINATION_REASON_IMPRECISE": Termination.NUMERICAL_ERROR,
        "TERMINATION_REASON_FEASIBLE": Termination.OTHER_LIMIT,
        "TERMINATION_REASON_NO_SOLUTION_FOUND": Termination.OTHER_LIMIT,
        "TERMINATION_REASON_NUMERICAL_ERROR": Termination.NUMERICAL_ERROR,
        "TERMINATION_REASON_OTHER_ERROR": Termination.ERROR,
    }
)
"""Every value of MathOpt's TerminationReasonProto; a test keeps it total."""

_LIMITS: Mapping[str, Termination] = MappingProxyType(
    {
        "LIMIT_UNSPECIFIED": Termination.OTHER_LIMIT,
        "LIMIT_UNDETERMINED": Termination.OTHER_LIMIT,
        "LIMIT_ITERATION": Termination.OTHER_LIMIT,
        "LIMIT_TIME": Termination.TIME_LIMIT,
        "LIMIT_NODE": Termination.NODE_LIMIT,
        "LIMIT_SOLUTION": Termination.OTHER_LIMIT,
        "LIMIT_MEMORY": Termination.OTHER_LIMIT,
        "LIMIT_CUTOFF": Termination.OTHER_LIMIT,
        "LIMIT_OBJECTIVE": Termination.OTHER_LIMIT,
        "LIMIT_NORM": Termination.OTHER_LIMIT,
        "LIMIT_INTERRUPTED": Termination.INTERRUPTED,
        "LIMIT_SLOW_PROGRESS": Termination.OTHER_LIMIT,
        "LIMIT_OTHER": Termination.OTHER_LIMIT,
    }
)
"""Every value of MathOpt's LimitProto."""


def solve(milp: Milp, settings: SolverSettings, interrupt: threading.Event) -> RawSolution:
    """Return the answer of the MathOpt solver that `settings` names.

    HiGHS 1.14 breaks down with an internal error on a few programs in a thousand; without presolve it solves them.

    Raises
    ------
    SolverError: if the solver refuses the program or its parameters.
    """
    started = time.perf_counter()
    try:
        result = _result(milp, settings, interrupt)
    except StatusNotOk as error:
        left_s = settings.time_limit_s - (time.perf_counter() - started)
        if settings.solver == "highs" and settings.presolve and left_s > 0:
            return solve(milp, replace(settings, presolve=False, time_limit_s=left_s), interrupt)
        raise SolverError(
            f"The solver {settings.solver} refused the program: {error}.", hint="Try another one with --solver."
        ) from error
    return _raw_solution(result, milp, settings, seconds=time.perf_counter() - started)


def _result(milp: Milp, settings: SolverSettings, interrupt: threading.Event) -> Any:  # noqa: ANN401 - as model_proto
    with _watched(interrupt, settings.solver) as interrupter, _STDOUT.silenced():
        return core_solver.solve(
            model_proto(milp),
            parameters_pb2.SolverTypeProto.Value(SOLVER_TYPES[settings.solver]),
            parameters_pb2.SolverInitializerProto(),
            _parameters(milp, settings),
            _model_parameters(milp, settings),
            None,
            callback_pb2.CallbackRegistrationProto(),
            None,
            interrupter,
        )


def model_proto(milp: Milp) -> Any:  # noqa: ANN401 - a generated protocol buffer class has no types
    """Return `milp` as MathOpt's ModelProto, unnamed."""
    proto = model_pb2.ModelProto()
    proto.variables.ids.extend(range(milp.n_columns))
    proto.variables.lower_bounds.extend(milp.col_lower.tolist())
    proto.variables.upper_bounds.extend(milp.col_upper.tolist())
    proto.variables.integers.extend(milp.is_integer.tolist())
    proto.linear_constraints.ids.extend(range(milp.n_rows))
    proto.linear_constraints.lower_bounds.extend(milp.row_lower.tolist())
    proto.linear_constraints.upper_bounds.extend(milp.row_upper.tolist())
    matrix = proto.linear_constraint_matrix
    matrix.row_ids.extend(milp.row_of_entry.tolist())
    matrix.column_ids.extend(milp.columns.tolist())
    matrix.coefficients.extend(milp.values.tolist())
    priced = np.flatnonzero(milp.cost)
    proto.objective.linear_coefficients.ids.extend(priced.tolist())
    proto.objective.linear_coefficients.values.extend(milp.cost[priced].tolist())
    return proto


def _parameters(milp: Milp, settings: SolverSettings) -> Any:  # noqa: ANN401 - as model_proto
    parameters = parameters_pb2.SolveParametersProto()
    parameters.time_limit.FromNanoseconds(int(settings.time_limit_s * 1e9))
    parameters.random_seed = settings.seed
    has_integers = bool(milp.is_integer.any())
    if has_integers or settings.solver == "cp-sat":
        parameters.relative_gap_tolerance = settings.relative_gap
        parameters.absolute_gap_tolerance = 0.0
        if settings.node_limit is not None and settings.solver != "cp-sat":
            parameters.node_limit = settings.node_limit
    if settings.solver == "glop":
        parameters.lp_algorithm = parameters_pb2.LPAlgorithmProto.Value("LP_ALGORITHM_DUAL_SIMPLEX")
    if not settings.presolve:
        parameters.presolve = parameters_pb2.EmphasisProto.Value("EMPHASIS_OFF")
    if settings.solver == "highs":
        # ortools keeps HiGHS' thread count to itself; serial is HiGHS' behaviour with `parallel` off.
        parameters.highs.string_options["parallel"] = "off"
        if settings.feasibility_tolerance is not None:
            parameters.highs.double_options["primal_feasibility_tolerance"] = settings.feasibility_tolerance
            parameters.highs.double_options["mip_feasibility_tolerance"] = settings.feasibility_tolerance
    else:
        parameters.threads = settings.threads
    return parameters


def _model_parameters(milp: Milp, settings: SolverSettings) -> Any:  # noqa: ANN401 - as model_proto
    """Return the programme's starting solution as a hint; only a programme with integers takes one."""
    parameters = model_parameters_pb2.ModelSolveParametersProto()
    if milp.start is not None and settings.solver in {"highs", "scip"} and milp.is_integer.any():
        known = np.flatnonzero(np.isfinite(milp.start))
        hint = parameters.solution_hints.add()
        hint.variable_values.ids.extend(known.tolist())
        hint.variable_values.values.extend(milp.start[known].tolist())
    if milp.basis is not None and settings.solver == "glop":
        for status, known in (
            (parameters.initial_basis.variable_status, milp.basis.columns),
            (parameters.initial_basis.constraint_status, milp.basis.rows),
        ):
            status.ids.extend(range(len(known)))
            status.values.extend(known.tolist())
    return parameters


def _raw_solution(result: Any, milp: Milp, settings: SolverSettings, *, seconds: float) -> RawSolution:  # noqa: ANN401
    reason = result_pb2.TerminationReasonProto.Name(result.termination.reason)
    termination = _REASONS[reason]
    if termination is Termination.OTHER_LIMIT:
        termination = _LIMITS[result_pb2.LimitProto.Name(result.termination.limit)]
    if termination is Termination.OTHER_LIMIT and seconds >= settings.time_limit_s:
        termination = Termination.TIME_LIMIT  # CP-SAT says no more than "a limit"
    bounds = result.termination.objective_bounds
    has_integers = bool(milp.is_integer.any())
    is_ray = termination in {Termination.UNBOUNDED, Termination.INFEASIBLE_OR_UNBOUNDED}
    values = None if is_ray else _best_values(result, milp.n_columns)
    return RawSolution(
        values=values,
        objective=bounds.primal_bound if values is not None else None,
        bound=bounds.dual_bound if np.isfinite(bounds.dual_bound) else None,
        termination=termination,
        seconds=seconds,
        solver=settings.solver,
        version=f"ortools {ortools.__version__}",
        detail=result.termination.detail,
        row_duals=None if has_integers else _row_duals(result, milp.n_rows),
        basis=_basis(result, milp) if settings.solver == "glop" else None,
    )


def _basis(result: Any, milp: Milp) -> Basis | None:  # noqa: ANN401 - as model_proto
    """Return where the simplex method ended, or None."""
    for solution in result.solutions:
        if solution.HasField("basis"):
            found = Basis(columns=np.zeros(milp.n_columns, dtype=np.int64), rows=np.zeros(milp.n_rows, dtype=np.int64))
            for status, into in (
                (solution.basis.variable_status, found.columns),
                (solution.basis.constraint_status, found.rows),
            ):
                into[np.fromiter(status.ids, dtype=np.int64)] = np.fromiter(status.values, dtype=np.int64)
            return found
    return None


def _row_duals(result: Any, n_rows: int) -> np.ndarray | None:  # noqa: ANN401 - as model_proto
    """Return the duals of a linear programme's rows, or None."""
    for solution in result.solutions:
        dual = solution.dual_solution
        if solution.HasField("dual_solution") and dual.feasibility_status == FEASIBLE:
            duals = np.zeros(n_rows)
            duals[np.fromiter(dual.dual_values.ids, dtype=np.int64)] = np.fromiter(
                dual.dual_values.values, dtype=np.float64
            )
            return duals
    return None


def _best_values(result: Any, n_columns: int) -> np.ndarray | None:  # noqa: ANN401 - as model_proto
    """Return the first (best) primal feasible solution, or None."""
    for solution in result.solutions:
        primal = solution.primal_solution
        if solution.HasField("primal_solution") and primal.feasibility_status == FEASIBLE:
            values = np.zeros(n_columns)
            values[np.fromiter(primal.variable_values.ids, dtype=np.int64)] = np.fromiter(
                primal.variable_values.values, dtype=np.float64
            )
            return values
    return None


FEASIBLE = 2
"""SOLUTION_STATUS_FEASIBLE of MathOpt's solution.proto."""
BASIC = 5
"""BASIS_STATUS_BASIC of MathOpt's solution.proto: a row that does not bind, as one that is new."""


@contextlib.contextmanager
def _watched(interrupt: threading.Event, solver: str) -> Iterator[Any]:
    """Yield an interrupter that fires when `interrupt` is set, for CP-SAT only.

    HiGHS takes one and ignores it; SCIP takes one and prints errors about its events on stderr.
    """
    if solver != "cp-sat":
        yield None
        return
    from ortools.util.python import pybind_solve_interrupter  # noqa: PLC0415 - not needed to import this module

    interrupter = pybind_solve_interrupter.PySolveInterrupter()
    over = threading.Event()

    def watch() -> None:
        while not over.wait(0.1):
            if interrupt.is_set():
                interrupter.interrupt()
                return

    thread = threading.Thread(target=watch, name="solver-interrupt", daemon=True)
    thread.start()
    try:
        yield interrupter
    finally:
        over.set()


class _StdoutGate:
    """Keeps native prints off stdout, which carries the result only.

    HiGHS prints debug lines ("transformNewIntegerFeasibleSolution tmpSolver.run();") on file descriptor 1 whatever its
    output options say. The descriptor belongs to the whole process, so the gate counts who is inside: two threads that
    solve at once must not restore each other's silence.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside: set[int] = set()
        self._next = 0
        self._saved = -1

    @contextlib.contextmanager
    def silenced(self) -> Iterator[None]:
        """Send file descriptor 1 to the null device for the block's duration."""
        ticket = self._enter()
        try:
            yield
        finally:
            self._leave(ticket)

    def open(self) -> None:
        """Give stdout back at once, whoever is inside: for a caller that no longer waits for its solver."""
        with self._lock:
            self._inside.clear()
            self._restore()

    def _enter(self) -> int:
        with self._lock:
            self._next += 1
            self._inside.add(self._next)
            if len(self._inside) == 1:
                self._silence()
            return self._next

    def _leave(self, ticket: int) -> None:
        with self._lock:
            self._inside.discard(ticket)
            if not self._inside:
                self._restore()

    def _silence(self) -> None:
        if sys.stdout is not None:
            sys.stdout.flush()
        try:
            self._saved = os.dup(1)
        except OSError:  # stdout is closed: nothing to protect
            return
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        os.close(null)

    def _restore(self) -> None:
        if self._saved >= 0:
            os.dup2(self._saved, 1)
            os.close(self._saved)
            self._saved = -1


_STDOUT = _StdoutGate()


def abandon() -> None:
    """Give back what a solve that nobody waits for any more still holds: stdout."""
    _STDOUT.open()
