"""CBC through PuLP: the second, independent solver.

PuLP writes an MPS file with 12 digits and reads a solution with 8; CBC's own log says how the search ended and what it
proved, which PuLP's status hides (it calls a run that was stopped by the clock "Optimal").
"""

from __future__ import annotations

import math
import re
import shutil
import tempfile
import time
from importlib import metadata
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
import pulp

from planner.errors import SolverError, SolverUnavailableError
from planner.optimize.backends.base import RawSolution
from planner.optimize.termination import Termination

if TYPE_CHECKING:
    import threading
    from collections.abc import Mapping

    from planner.optimize.milp import FloatArray, Milp
    from planner.optimize.settings import SolverSettings

_RESULTS: Mapping[str, Termination] = MappingProxyType(
    {
        "Optimal solution found": Termination.OPTIMAL,
        "Problem proven infeasible": Termination.INFEASIBLE,
        "Linear relaxation infeasible": Termination.INFEASIBLE,
        "Linear relaxation unbounded": Termination.UNBOUNDED,
        "Stopped on time limit": Termination.TIME_LIMIT,
        "Stopped on node limit": Termination.NODE_LIMIT,
        "Stopped on solution limit": Termination.OTHER_LIMIT,
        "Stopped on gap tolerance": Termination.OPTIMAL,
        "User ctrl-c": Termination.INTERRUPTED,
        "Difficulties - numerical": Termination.NUMERICAL_ERROR,
    }
)
"""What CBC's log says after "Result - ", by how it begins; anything else is an error."""

_FIRST_WORDS: Mapping[str, Termination] = MappingProxyType(
    {
        "Optimal": Termination.OPTIMAL,
        "Infeasible": Termination.INFEASIBLE,
        "Integer infeasible": Termination.INFEASIBLE,
        "Unbounded": Termination.UNBOUNDED,
        "Stopped on time": Termination.TIME_LIMIT,
        "Stopped on iterations": Termination.OTHER_LIMIT,
        "Stopped on nodes": Termination.NODE_LIMIT,
        "Stopped on ctrl-c": Termination.INTERRUPTED,
        "Stopped on user event": Termination.INTERRUPTED,
        "Stopped on difficulties": Termination.NUMERICAL_ERROR,
    }
)
"""How CBC's solution file begins; what is left to go by where the log has no "Result" line (pure LPs)."""

_PRINTED_BOUND_ROUNDING = 0.0005
"""CBC prints its bound with three decimals, rounded to nearest; a bound must not be rounded up."""

_UNEVEN = math.pi / 3
"""Factor of objectives that count continuous variables. From integer coefficients CBC 2.10.3 concludes that their sum
is a multiple of a common divisor ("Objective coefficients multiple of 4"), although such variables take any value, and
then calls solutions optimal that are not; from uneven ones it concludes nothing."""

_MINIMUM_TIME_LIMIT_S = 0.01
"""CBC takes a limit of 0 as none at all."""


def solve(milp: Milp, settings: SolverSettings, interrupt: threading.Event) -> RawSolution:  # noqa: ARG001
    """Return CBC's answer. Ctrl-C reaches CBC by itself, as a child of the same terminal.

    Raises
    ------
    SolverUnavailableError: if there is no CBC program.
    SolverError: if CBC fails.
    """
    started = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="gpuplan-cbc-") as folder:
        log_path = Path(folder) / "cbc.log"
        problem, variables = _pulp_problem(milp)
        command = _command(settings, log_path=log_path, folder=folder)
        reader = _Ending()
        command.readsol_MPS = reader.reading(command.readsol_MPS)
        try:
            problem.solve(command)
        except pulp.PulpSolverError as error:
            log_tail = _read(log_path)[-400:]
            raise SolverError(f"CBC failed: {error} {log_tail}", hint="Try --solver highs.") from error
        log = _read(log_path)
    termination, has_solution = _ending(log, reader.first_line)
    values = _values(milp, variables) if has_solution else None
    objective = float(milp.cost @ values) if values is not None else None
    return RawSolution(
        values=values,
        objective=objective,
        bound=_bound(log, milp, termination=termination, objective=objective, settings=settings),
        termination=termination,
        seconds=time.perf_counter() - started,
        solver="cbc",
        version=f"{_version(log)} (pulp {metadata.version('pulp')})",
        detail=reader.first_line,
    )


class _Ending:
    """Keeps the first line of CBC's solution file, which PuLP reads and deletes."""

    def __init__(self) -> None:
        self.first_line = ""

    def reading(self, read_solution: Any) -> Any:  # noqa: ANN401 - PuLP has no types
        def read(filename: str, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
            with Path(filename).open(encoding="utf-8", errors="replace") as stream:
                self.first_line = stream.readline().strip()
            return read_solution(filename, *args, **kwargs)

        return read


def _pulp_problem(milp: Milp) -> tuple[Any, list[Any]]:
    """Return the program as PuLP's objects, and its variables by our index."""
    problem = pulp.LpProblem("gpuplan", pulp.LpMinimize)
    variables = [
        problem.add_variable(
            f"v{index}",
            None if lower == -np.inf else lower,
            None if upper == np.inf else upper,
            "Integer" if is_integer else "Continuous",
        )
        for index, (lower, upper, is_integer) in enumerate(
            zip(milp.col_lower.tolist(), milp.col_upper.tolist(), milp.is_integer.tolist(), strict=True)
        )
    ]
    cost = milp.cost * _factor(milp)
    problem += pulp.lpSum(cost[index].item() * variables[index] for index in np.flatnonzero(cost))
    for row, (lower, upper) in enumerate(zip(milp.row_lower.tolist(), milp.row_upper.tolist(), strict=True)):
        entries = slice(milp.row_starts[row], milp.row_starts[row + 1])
        pairs = zip(milp.columns[entries].tolist(), milp.values[entries].tolist(), strict=True)
        activity = pulp.lpSum(value * variables[column] for column, value in pairs)
        if not len(milp.columns[entries]):
            continue
        if lower == upper:
            problem += activity == lower
            continue
        if lower > -np.inf:
            problem += activity >= lower
        if upper < np.inf:
            problem += activity <= upper
    return problem, variables


def _factor(milp: Milp) -> float:
    """Return what the objective is multiplied by before CBC sees it."""
    return _UNEVEN if np.any(milp.cost[~milp.is_integer]) else 1.0


def _command(settings: SolverSettings, *, log_path: Path, folder: str) -> Any:  # noqa: ANN401
    """Return PuLP's CBC command: silent, logging into our folder, with our limits."""
    # Every number is put in words by us: PuLP prints them with str(), and CBC reads "1e-05" well but not "1e-4 ".
    options = [f"ratio {settings.relative_gap:.10f}", "allow 0"]
    if settings.feasibility_tolerance is not None:
        options += [f"primalT {settings.feasibility_tolerance:g}", f"integerT {settings.feasibility_tolerance:g}"]
    if settings.node_limit is not None:
        options.append(f"maxNodes {settings.node_limit}")
    if not settings.presolve:
        options += ["presolve off", "preprocess off"]
    if settings.seed:
        options.append(f"randomCbcSeed {settings.seed}")
    command = pulp.COIN_CMD(
        path=_program(),
        msg=False,
        timeLimit=max(settings.time_limit_s, _MINIMUM_TIME_LIMIT_S),
        logPath=str(log_path),
        options=options,
    )
    command.tmpDir = folder
    return command


def _program() -> str | None:
    """Return the path of CBC: PuLP 3's own, or one on the PATH; None lets PuLP 4 look for its `cbc` extra.

    Raises
    ------
    SolverUnavailableError: if there is none.
    """
    from pulp.apis import coin_api  # noqa: PLC0415

    bundled = shutil.which(getattr(coin_api, "pulp_cbc_path", "")) if hasattr(coin_api, "pulp_cbc_path") else None
    path = bundled or shutil.which("cbc")
    if path is None and not pulp.COIN_CMD(msg=False).available():
        raise SolverUnavailableError(
            "There is no CBC program.", hint="Install it with pip install 'pulp[cbc]', or use --solver highs."
        )
    return path


def _ending(log: str, first_line: str) -> tuple[Termination, bool]:
    """Return how CBC ended and whether its solution file holds an integer solution.

    After a limit without an incumbent CBC writes the values of a relaxation: "(no integer solution ...)".
    """
    by_log = _match(_result_line(log), _RESULTS)
    termination = by_log or _match(first_line, _FIRST_WORDS) or Termination.ERROR
    has_solution = termination is Termination.OPTIMAL or (termination.is_limit and "no integer" not in first_line)
    return termination, has_solution and bool(first_line)


def _result_line(log: str) -> str:
    found = re.findall(r"^Result - (.*)$", log, re.MULTILINE)
    return found[-1].strip() if found else ""


def _match(text: str, table: Mapping[str, Termination]) -> Termination | None:
    return next((termination for words, termination in table.items() if text.startswith(words)), None)


def _bound(
    log: str, milp: Milp, *, termination: Termination, objective: float | None, settings: SolverSettings
) -> float | None:
    """Return what CBC proved: its stated lower bound, else the objective less the gap at which it may stop."""
    stated = re.findall(r"^Lower bound:\s+(\S+)", log, re.MULTILINE)
    if stated:
        return (float(stated[-1]) - _PRINTED_BOUND_ROUNDING) / _factor(milp)
    if termination is Termination.OPTIMAL and objective is not None:
        within_gap = "within gap tolerance" in _result_line(log)
        return objective - abs(objective) * settings.relative_gap if within_gap and milp.is_integer.any() else objective
    return None


def _values(milp: Milp, variables: list[Any]) -> FloatArray:
    """Return the variables' values; those in no row keep the bound that is cheapest."""
    idle = np.where(milp.cost < 0, milp.col_upper, np.where(milp.col_lower > -np.inf, milp.col_lower, 0.0))
    read = [variable.varValue for variable in variables]
    return np.array([idle[index] if value is None else value for index, value in enumerate(read)], dtype=np.float64)


def _version(log: str) -> str:
    found = re.search(r"^Version:\s*(\S+)", log, re.MULTILINE)
    return f"CBC {found[1]}" if found else "CBC"


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""


def abandon() -> None:
    """Nothing is held: CBC is a process of its own."""
