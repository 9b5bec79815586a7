"""The simulator against measurements of a real vLLM, kept in benchmarks/data (benchmarks/real_engine.py made them)."""

import importlib.util
import sys
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


def _module():
    spec = importlib.util.spec_from_file_location("_engine_model", BENCHMARKS / "_engine_model.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


engine = _module()


@pytest.fixture(scope="module")
def stored():
    runs, _ = engine.read(BENCHMARKS / "data")
    return runs


@pytest.fixture(scope="module")
def found(stored):
    return engine.calibrate([run for run in stored if run.purpose == "calibrate"])


def off(run, found):
    return np.abs(list(engine.errors(run, engine.predict(run, found)).values()))


def test_what_was_not_calibrated_on_is_predicted(stored, found):
    others = [run for run in stored if run.purpose == "predict"]
    errors = np.array([off(run, found) for run in others])
    assert len({run.case for run in others}) >= 10
    assert np.median(errors) <= 0.10
    assert np.quantile(errors, 0.9) <= 0.25


def test_the_simulator_preempts_and_caches_as_often_as_the_engine_says_that_it_did(stored, found):
    counted = [run for run in stored if run.conditions.get("preemptions") or run.conditions.get("cached_tokens")]
    assert {run.case for run in counted} == {"little memory", "prefix caching"}
    for run in counted:
        simulated = engine.predict(run, found).conditions
        assert simulated["preemptions"] == pytest.approx(run.conditions["preemptions"], rel=0.5)
        assert simulated["cached_tokens"] == pytest.approx(run.conditions["cached_tokens"], rel=0.02)


def test_requests_are_served_in_the_order_and_batches_of_the_engine(stored, found):
    """TTFT of one request after the other, not only on average: who waits for whom."""
    run = next(run for run in stored if run.case == "near saturation")
    simulated = engine.predict(run, found)
    assert np.corrcoef(run.ttft_s, simulated.ttft_s)[0, 1] > 0.6
    assert np.corrcoef(run.e2e_s, simulated.e2e_s)[0, 1] > 0.7


@pytest.mark.parametrize(
    ("case", "wrong"),
    [
        ("narrow batches", {"max_num_seqs": 16, "max_num_batched_tokens": 512}),
        ("prefix caching", {"prefix_caching": False}),
        ("little memory", {"kv_blocks": 4096}),
    ],
)
def test_what_limits_an_engine_matters_for_what_is_predicted(stored, found, case, wrong):
    run = next(run for run in stored if run.case == case)
    mistaken = replace(run, settings=run.settings | wrong)
    assert np.mean(off(run, found)) < np.mean(off(mistaken, found)) / 1.5


def test_calibration_finds_the_coefficients_that_made_the_times(stored):
    truth = engine.Coefficients(
        delay_s=0.01, delay_token_s=1e-5, fixed_s=0.012, read_s=0.002, token_s=9e-4, sequence_s=4e-4, pair_s=1e-7,
        context_s=2.5e-6,
    )  # fmt: skip
    runs = [engine.predict(run, truth) for run in stored if run.purpose == "calibrate"]
    again = engine.calibrate(runs)
    assert np.median([off(run, again) for run in runs]) < 0.01
    assert asdict(again)["token_s"] == pytest.approx(truth.token_s, rel=0.05)
    assert asdict(again)["context_s"] == pytest.approx(truth.context_s, rel=0.05)


def test_what_is_kept_is_read_again(stored, tmp_path):
    engine.write(tmp_path, stored[:2], {"machine": {"cores": "2"}})
    again, about = engine.read(tmp_path)
    assert about == {"machine": {"cores": "2"}}
    assert [run.case for run in again] == [run.case for run in stored[:2]]
    np.testing.assert_allclose(again[1].e2e_s, stored[1].e2e_s, atol=1e-5)
