"""Throughput over the number of adapters, against S-LoRA's published runs on an A10G: how near, and of what shape.

What is measured is in profiles/lora/s-lora.csv; the fits are those of benchmarks/accuracy.py.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from tests_support import REPO

from planner.planning.estimate import estimate_rows
from planner.profilers.efficiency import default_params

MOST = 0.15
"""Median error that is aimed at."""
PARAMS = default_params()


@pytest.fixture(scope="module")
def runs():
    sys.path.insert(0, str(REPO / "benchmarks"))
    import _accuracy_adapters

    sys.path.remove(str(REPO / "benchmarks"))
    yield _accuracy_adapters
    for name in [name for name in sys.modules if name.startswith("_accuracy_")]:
        del sys.modules[name]


def test_s_lora_is_met_at_every_number_of_adapters(runs):
    errors = runs.by_adapters(runs.ratios(runs.s_lora_cells(), PARAMS))
    assert set(errors) >= {0, 1, 5, 10, 20, 50, 100, 200}
    assert max(np.median(each) for each in errors.values()) <= MOST


def test_errors_are_told_by_run_and_with_their_sign(runs):
    """A number of adapters with two runs weighs as much as one with fifty in a median over numbers: runs do not."""
    by_run = runs.by_run(PARAMS)
    full, short = by_run["runs of 300 s"], by_run[runs.SHORT]
    assert len(by_run["all"]) == len(full) + len(short) == 186
    assert np.median(np.abs(by_run["all"])) == pytest.approx(0.055, abs=0.005)
    # In one run in ten of a minute as much as 28% more is estimated than was served; of those in the fit 13%.
    assert np.quantile(short, 0.9) == pytest.approx(0.278, abs=0.01)
    assert np.quantile(full, 0.9) == pytest.approx(0.132, abs=0.01)
    assert "| all | 186 | 5.5% | 27.6% | +0.4% | +27.6% | 51% |" in runs.by_run_table(PARAMS)
    assert runs.by_run_table(PARAMS)[2] in (REPO / "docs" / "benchmarks.md").read_text(encoding="utf-8")


def held_out(runs, name):
    found = runs.left_out(name, PARAMS)
    assert max(np.median(each) for each in runs.by_adapters(found).values()) <= MOST
    assert runs.median_over_adapters(found) <= MOST


def test_s_lora_with_many_adapters_is_met_by_a_fit_that_saw_few(runs):
    """Ten to 200 adapters, by parameters fitted to runs with fewer than ten."""
    held_out(runs, "all runs of 10 and more")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["its figure", "its ranks"])
def test_s_lora_is_met_by_fits_that_had_no_run_of_the_setting(runs, name):
    held_out(runs, name)


def test_s_loras_throughput_is_flat_where_it_was(runs):
    """From 10 or 20 adapters to 200 it falls by 2 to 11% as measured, and beyond them hardly at all."""
    found = runs.falls(PARAMS)
    assert len(found) == 4
    for measured, estimated in found.values():
        assert estimated == pytest.approx(measured, abs=0.02)
    full = next(row for row in runs.s_lora_cells() if row["num_adapters"] == "200" and row["cv"] == "1")
    more = [full | {"num_adapters": str(count)} for count in (200, 1000, 5000)]
    rates = [answer.estimate.rate_rps for answer in estimate_rows(more, PARAMS)]
    assert rates[0] >= rates[1] >= rates[2] > 0.97 * rates[0]


def test_a_copy_for_each_adapter_ends_with_the_memory(runs):
    """One copy of 13.5 GB fits 24 GB: two are out of memory, and the only published run has one adapter."""
    assert runs.copies_that_fit(PARAMS) == 1
    assert [run.adapters for run in runs.runs_of("vllm")] == [1]
    (packed,) = (row for row in runs.lora_cells() if row["engine"] == "vllm-packed")
    one, *more = estimate_rows([packed | {"num_adapters": count} for count in ("1", "2", "5", "100")], PARAMS)
    assert one.estimate.rate_rps == pytest.approx(float(packed["throughput_req_s"]), rel=MOST)
    assert {answer.status for answer in more} == {"does_not_fit"}


def test_one_merged_adapter_at_a_time_collapses_as_measured(runs):
    """With five adapters 43% of the throughput is lost; S-LoRA loses none in the same runs."""
    swapped, pooled = runs.runs_of("merge"), [run for run in runs.runs_of("slora") if run.duration_s == 60]
    parts = {}
    for name, mine, engine_of in (("swapped", swapped, runs.merging), ("pooled", pooled, runs.sharing)):
        found = np.array([runs.replayed_rps(run, engine_of(run, PARAMS)) for run in mine])
        measured, counts = np.array([run.measured_rps for run in mine]), np.array([run.adapters for run in mine])
        assert np.median(np.abs(found / measured - 1)) <= MOST
        for count in (2, 5):
            parts[name, count] = [v[counts == count].mean() / v[counts == 1].mean() for v in (measured, found)]
    for case, (measured, found) in parts.items():
        assert found == pytest.approx(measured, abs=0.08), case
    assert parts["swapped", 5][1] < 0.7 < 0.95 < parts["pooled", 5][1]


@pytest.mark.slow
def test_batches_of_one_adapter_fall_with_the_number_of_adapters(runs):
    """PEFT: a third is lost with 200 adapters. Its batch is taken from runs of up to 50; more are foreseen."""
    engine, mine = runs.peft(), runs.peft_runs()
    found = [runs.replayed_rps(run, engine) for run in mine]
    assert all(later < earlier for earlier, later in pairwise(found))
    for run, rate in zip(mine, found, strict=True):
        assert rate == pytest.approx(run.measured_rps, rel=0.1 if run.adapters > runs.FITTED_TO else 0.05)
    together = replace(engine, batches=True)
    assert runs.replayed_rps(mine[-1], together) > 2 * found[-1]
