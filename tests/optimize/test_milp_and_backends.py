"""The matrix form and the solvers behind it."""

import math
import os
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import numpy as np
import pytest

from planner.errors import SolverError, SolverUnavailableError
from planner.optimize.backends import BACK_ENDS, cbc, registry, solve_milp
from planner.optimize.backends.base import Capability, RawSolution
from planner.optimize.milp import MilpBuilder
from planner.optimize.settings import MAX_SEED, SolverSettings
from planner.optimize.termination import Termination

CONTINUOUS = [name for name, back_end in BACK_ENDS.items() if Capability.CONTINUOUS in back_end.capabilities]


def knapsack(*, bound=7.3):
    """3 n0 + 2 n1 + y >= bound at the prices 5, 3 and 2.5, y at most 1/2; at 7.3 the best is (1, 2, 0.3) for 11.75."""
    builder = MilpBuilder()
    n = builder.add_columns("n", 2, upper=10, cost=[5.0, 3.0], is_integer=True, label=lambda i: "ab"[i])
    y = builder.add_columns("y", 1, upper=0.5, cost=2.5)
    builder.add_rows("need", rows=[0, 0, 0], columns=[*n, *y], values=[3.0, 2.0, 1.0], lower=[bound])
    return builder.freeze()


def fleet_like(n_buckets=40, n_options=20, seed=0):
    rng = np.random.default_rng(seed)
    price = rng.uniform(1, 10, n_options)
    load = rng.uniform(0.05, 2, (n_buckets, n_options)) / price
    builder = MilpBuilder()
    x = builder.add_columns("x", n_buckets * n_options, upper=1.0)
    n = builder.add_columns("n", n_options, upper=1000, cost=price, is_integer=True)
    ones = np.ones(n_buckets)
    builder.add_rows(
        "coverage", rows=np.repeat(np.arange(n_buckets), n_options), columns=x, values=1.0, lower=ones, upper=ones
    )
    builder.add_rows(
        "capacity",
        rows=np.concatenate([np.tile(np.arange(n_options), n_buckets), np.arange(n_options)]),
        columns=np.concatenate([x, n]),
        values=np.concatenate([load.ravel(), -np.ones(n_options)]),
        upper=np.zeros(n_options),
    )
    return builder.freeze()


def test_builder_sums_duplicates_drops_zeros_and_names_rows():
    builder = MilpBuilder()
    v = builder.add_columns("v", 2)
    builder.add_rows("first", rows=[0, 0, 0], columns=[v[0], v[0], v[1]], values=[1.0, 2.0, 0.0], upper=[5.0])
    builder.add_rows("second", rows=[0], columns=[v[1]], values=1.0, lower=[1.0], label=lambda i: f"row {i}")
    milp = builder.freeze()
    assert milp.columns.tolist() == [0, 1]
    assert milp.values.tolist() == [3.0, 1.0]
    assert milp.activity(np.array([2.0, 4.0])).tolist() == [6.0, 4.0]
    assert [milp.row_name(0), milp.row_name(1)] == ["first[0]", "second[row 0]"]


@pytest.mark.parametrize("solver", CONTINUOUS)
def test_known_optimum_bound_and_provenance(solver):
    raw = solve_milp(knapsack(), SolverSettings(solver=solver, relative_gap=0.0))
    assert raw.termination is Termination.OPTIMAL
    assert raw.objective == pytest.approx(11.75)
    assert raw.bound == pytest.approx(11.75)
    assert raw.values.tolist() == pytest.approx([1, 2, 0.3])
    assert raw.solver == solver
    assert raw.version


@pytest.mark.parametrize("solver", CONTINUOUS)
def test_infeasible(solver):
    raw = solve_milp(knapsack(bound=99.0), SolverSettings(solver=solver))
    assert raw.termination in {Termination.INFEASIBLE, Termination.INFEASIBLE_OR_UNBOUNDED}
    assert raw.values is None


@pytest.mark.parametrize("solver", ["highs", "cbc"])
def test_unbounded(solver):
    builder = MilpBuilder()
    v = builder.add_columns("v", 2, cost=[-1.0, 1.0], is_integer=True)
    builder.add_rows("row", rows=[0, 0], columns=v, values=[1.0, -2.0], upper=[3.0])
    raw = solve_milp(builder.freeze(), SolverSettings(solver=solver, time_limit_s=5))
    assert raw.termination in {Termination.UNBOUNDED, Termination.INFEASIBLE_OR_UNBOUNDED, Termination.INFEASIBLE}
    assert raw.values is None


@pytest.mark.parametrize("solver", CONTINUOUS)
def test_node_limit_leaves_an_incumbent_and_a_bound(solver):
    raw = solve_milp(fleet_like(), SolverSettings(solver=solver, relative_gap=0.0, node_limit=2))
    assert raw.termination is Termination.NODE_LIMIT
    assert raw.values is not None
    assert raw.bound < raw.objective


@pytest.mark.parametrize("solver", CONTINUOUS)
def test_time_limit_is_not_called_optimal(solver):
    """PuLP calls a CBC run that the clock stopped "Optimal"."""
    raw = solve_milp(fleet_like(100, 40), SolverSettings(solver=solver, time_limit_s=0.3, relative_gap=0.0))
    assert raw.termination is Termination.TIME_LIMIT
    assert raw.seconds < 5


def test_cbc_without_an_integer_solution_returns_none():
    """After a limit without an incumbent CBC's file holds a relaxation's values."""
    ending = cbc._ending("Result - Stopped on time limit\n", "Stopped on time (no integer solution - continuous used)")
    assert ending == (Termination.TIME_LIMIT, False)
    ending = cbc._ending("Result - Stopped on time limit\n", "Stopped on time - objective value 12.5")
    assert ending == (Termination.TIME_LIMIT, True)
    assert cbc._ending("", "something new") == (Termination.ERROR, False)


def test_cbc_bound_is_never_rounded_up():
    milp = knapsack()
    stated = 11.679 * math.pi / 3  # its objective counts a continuous variable, and is handed over times this
    log = f"Result - Stopped on time limit\nLower bound:                    {stated:.3f}\n"
    bound = cbc._bound(
        log, milp, termination=Termination.TIME_LIMIT, objective=12.0, settings=SolverSettings(solver="cbc")
    )
    assert 11.6775 <= bound <= 11.679


def test_mathopt_endings_are_mapped_totally():
    from ortools.math_opt import result_pb2

    from planner.optimize.backends import mathopt

    assert set(mathopt._REASONS) == set(result_pb2.TerminationReasonProto.keys())
    assert set(mathopt._LIMITS) == set(result_pb2.LimitProto.keys())


def test_cp_sat_refuses_shares_and_solves_integers():
    with pytest.raises(SolverUnavailableError, match="it cannot split buckets"):
        solve_milp(knapsack(), SolverSettings(solver="cp-sat"))
    builder = MilpBuilder()
    n = builder.add_columns("n", 2, upper=10, cost=[5.0, 3.0], is_integer=True)
    builder.add_rows("need", rows=[0, 0], columns=n, values=[3.0, 2.0], lower=[7.0])
    raw = solve_milp(builder.freeze(), SolverSettings(solver="cp-sat"))
    assert raw.objective == pytest.approx(11.0)
    stopped = solve_milp(builder.freeze(), SolverSettings(solver="cp-sat", time_limit_s=0.0))
    assert stopped.termination is Termination.TIME_LIMIT


def test_unknown_solver_and_threads_say_what_there_is():
    with pytest.raises(SolverUnavailableError, match="highs, cbc"):
        solve_milp(knapsack(), SolverSettings(solver="gurobi"))
    with pytest.raises(SolverUnavailableError, match="scip"):
        solve_milp(knapsack(), SolverSettings(solver="highs", threads=4))


def test_a_missing_cbc_program_is_named(monkeypatch):
    from pulp.apis import coin_api

    monkeypatch.setattr(coin_api, "pulp_cbc_path", "/nowhere/cbc", raising=False)
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(SolverUnavailableError, match="no CBC program"):
        solve_milp(knapsack(), SolverSettings(solver="cbc"))


@pytest.mark.parametrize("solver", CONTINUOUS)
def test_an_impossible_empty_row_needs_no_solver(solver):
    builder = MilpBuilder()
    builder.add_columns("v", 1)
    builder.add_rows("empty", rows=[], columns=[], values=[], lower=[1.0])
    assert solve_milp(builder.freeze(), SolverSettings(solver=solver)).termination is Termination.INFEASIBLE


def test_bad_parameters_are_a_solver_error():
    builder = MilpBuilder()
    builder.add_columns("v", 1, cost=np.nan)
    with pytest.raises(SolverError):
        solve_milp(builder.freeze(), SolverSettings())


SILENCE = """
import sys
sys.path.insert(0, {root!r})
from pathlib import Path
import importlib.util
spec = importlib.util.spec_from_file_location("cases", {path!r})
cases = importlib.util.module_from_spec(spec); spec.loader.exec_module(cases)
from planner.optimize.backends import solve_milp
from planner.optimize.settings import SolverSettings
for solver in cases.CONTINUOUS:
    solve_milp(cases.fleet_like(100, 40), SolverSettings(solver=solver, time_limit_s=0.7, relative_gap=0.0))
print("only this")
"""


def test_nothing_on_stdout_or_stderr():
    """HiGHS prints debug lines on file descriptor 1 whatever its options say."""
    root = str(Path(__file__).resolve().parents[2])
    done = subprocess.run(
        [sys.executable, "-c", SILENCE.format(root=root, path=__file__)], capture_output=True, text=True, check=True
    )
    assert done.stdout == "only this\n"
    assert done.stderr == ""


def test_the_stdout_gate_is_reentrant_and_restores(capfd):
    from planner.optimize.backends.mathopt import _StdoutGate

    gate = _StdoutGate()
    with gate.silenced():
        os.write(1, b"lost")
        with gate.silenced():
            os.write(1, b"lost too")
        os.write(1, b"still lost")
    os.write(1, b"seen")
    assert capfd.readouterr().out == "seen"


def test_cbc_cleans_up(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    solve_milp(knapsack(), SolverSettings(solver="cbc"))
    assert list(tmp_path.iterdir()) == []


def test_interrupt_returns_what_the_solver_hands_over(monkeypatch):
    """Ctrl-C arrives in the main thread while a solver works; one that can be interrupted hands over its best."""
    answer = RawSolution(
        values=np.ones(1),
        objective=1.0,
        bound=0.0,
        termination=Termination.INTERRUPTED,
        seconds=0.0,
        solver="cbc",
        version="",
    )

    def slow(milp, settings, interrupt):
        assert interrupt.wait(5)
        return answer

    class Impatient(threading.Event):
        def wait(self, timeout=None):
            if timeout is None:
                raise KeyboardInterrupt
            return super().wait(timeout)

    monkeypatch.setattr(registry, "Event", Impatient)
    found = registry._run_interruptibly(slow, knapsack(), SolverSettings(solver="cbc"), BACK_ENDS["cbc"])
    assert found is answer
    found = registry._run_interruptibly(slow, knapsack(), SolverSettings(), BACK_ENDS["highs"])
    assert found is None


@pytest.mark.parametrize(
    "bad", [{"time_limit_s": -1}, {"relative_gap": 1.5}, {"threads": 0}, {"seed": -1}, {"seed": 2**31}]
)
def test_settings_are_checked(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        SolverSettings(**bad)


@pytest.mark.parametrize("solver", CONTINUOUS)
def test_the_largest_seed_is_taken(solver):
    assert solve_milp(knapsack(), SolverSettings(solver=solver, seed=MAX_SEED)).objective == pytest.approx(11.75)


@pytest.mark.parametrize("name", CONTINUOUS)
def test_what_a_solver_calls_optimal_is(name):
    """CBC 2.10.3 with its defaults says 28: four replicas of the second option, not of the first."""
    builder = MilpBuilder()
    x = builder.add_columns("x", 4, upper=1.0)
    n = builder.add_columns("n", 2, upper=[13.0, 10.0], is_integer=True)
    m = builder.add_columns("m", 2, upper=[13.0, 10.0], is_integer=True)
    u = builder.add_columns("u", 2, upper=1.0, cost=24.0)
    builder.add_rows(
        "coverage", rows=[0, 0, 0, 1, 1, 1], columns=[*x[:2], u[0], *x[2:], u[1]], values=1.0, lower=[1, 1]
    )
    builder.add_rows(
        "capacity",
        rows=[0, 0, 0, 1, 1, 1],
        columns=[x[0], x[2], n[0], x[1], x[3], n[1]],
        values=[4.0, 8.0, -1.0, 4.8, 4.8, -1.0],
        upper=[0.0, 0.0],
    )
    builder.add_rows(
        "packing", rows=[0, 0, 1, 1], columns=[n[0], m[0], n[1], m[1]], values=[1, -1, 1, -1], upper=[0, 0]
    )
    builder.add_rows("budget", rows=[0, 0], columns=m, values=2.0, upper=[9.0])
    raw = solve_milp(builder.freeze(), SolverSettings(solver=name, relative_gap=0.0))
    assert raw.termination is Termination.OPTIMAL
    assert raw.objective == pytest.approx(24.0)


def test_a_program_on_which_highs_breaks_down_is_solved_without_presolve(monkeypatch):
    from planner.optimize.backends import mathopt

    whole, presolve = mathopt.core_solver.solve, []

    class BrokenError(Exception):
        pass

    def breaks_down_in_presolve(model, kind, initializer, parameters, *rest):
        presolve.append(parameters.presolve == 0)
        if presolve[-1]:
            raise BrokenError("HighsStatus: kError")
        return whole(model, kind, initializer, parameters, *rest)

    monkeypatch.setattr(mathopt, "StatusNotOk", BrokenError)
    monkeypatch.setattr(mathopt.core_solver, "solve", breaks_down_in_presolve)
    assert solve_milp(knapsack(), SolverSettings()).objective == pytest.approx(11.75)
    assert presolve[:2] == [True, False]
    with pytest.raises(SolverError, match="refused the program"):
        solve_milp(knapsack(), SolverSettings(solver="scip"))


def test_a_solution_of_highs_that_breaks_a_row_is_sought_again_without_presolve(monkeypatch):
    from dataclasses import replace

    from planner.optimize.backends import mathopt

    whole, presolve = mathopt.solve, []

    def lies_with_presolve(milp, settings, interrupt):
        presolve.append(settings.presolve)
        raw = whole(milp, settings, interrupt)
        return replace(raw, values=raw.values - 1.0) if settings.presolve else raw

    monkeypatch.setattr(mathopt, "solve", lies_with_presolve)
    assert solve_milp(knapsack(), SolverSettings()).values == pytest.approx([1.0, 2.0, 0.3])
    assert presolve == [True, False]


def test_a_worse_optimum_of_highs_on_a_small_programme_is_found_out(monkeypatch):
    from dataclasses import replace

    from planner.optimize.backends import mathopt

    whole = mathopt.solve

    def is_misled_by_presolve(milp, settings, interrupt):
        raw = whole(milp, settings, interrupt)
        if not settings.presolve:
            return raw
        values = np.array([2.0, 1.0, 0.0])  # keeps every row, for 13 instead of 11.75
        return replace(raw, values=values, objective=float(milp.cost @ values), bound=float(milp.cost @ values))

    monkeypatch.setattr(mathopt, "solve", is_misled_by_presolve)
    assert solve_milp(knapsack(), SolverSettings()).objective == pytest.approx(11.75)
