"""A user's own points move the estimate as far as they outweigh what was known, and say how sure that makes it."""

from __future__ import annotations

import csv
from dataclasses import replace

import numpy as np
import pytest

from planner.errors import InputError
from planner.files.bundled import bundled
from planner.planning import calibration, recalibration
from planner.planning.estimate import estimate_questions
from planner.planning.estimate_table import bounds_of, novelties_of
from planner.profilers.efficiency import default_params
from planner.profilers.fitting import Scatter, believe
from planner.profilers.params_file import EfficiencyRow, parse_rows, rows_csv
from planner.profilers.variation import ENGINE_PARAMETERS, LINK_PARAMETERS, load_variation

PARAMS = default_params()
MODELS = ("Llama-3.1-8B", "Qwen3-8B", "Mistral-7B-v0.3")
SIZES = (("128", "128"), ("1024", "512"), ("2048", "128"))


def measured(speeds, *, models=MODELS, gpu="H100", engine="vllm", tp="1"):
    """Return measurements that are so many times as fast as the bare estimate."""
    rows = [
        {
            "model": model, "gpu": gpu, "gpu_count": tp, "tp": tp, "engine": engine, "engine_version": "0.11",
            "precision": "bf16", "input_tokens": size[0], "output_tokens": size[1], "load_kind": "static_batch",
            "concurrency_or_rate": "32", "throughput_output_tok_s": "1",
        }
        for model, size in zip(models, SIZES, strict=True)
    ]  # fmt: skip
    found, left_out = calibration.read_measurements(rows, PARAMS)
    assert not left_out
    plain = calibration.estimates([each.question for each in found], PARAMS)[:, 0]
    return [replace(each, throughput=value * speed) for each, value, speed in zip(found, plain, speeds, strict=True)]


def gains(measurements, fitted):
    """Return estimated speed after / before at the measured points."""
    questions = [each.question for each in measurements]
    return calibration.estimates(questions, fitted.params)[:, 0] / calibration.estimates(questions, PARAMS)[:, 0]


def test_points_within_the_scatter_hardly_move_a_good_estimate():
    points = measured((0.95, 1.06, 0.97))
    fitted = recalibration.fit_own(points, PARAMS)
    assert fitted.odds > 0.5
    assert gains(points, fitted) == pytest.approx(1.0, abs=0.015)


def test_points_that_agree_on_a_large_difference_are_followed():
    points = measured((0.6, 0.62, 0.58))
    fitted = recalibration.fit_own(points, PARAMS)
    assert fitted.odds < 0.01
    assert gains(points, fitted) == pytest.approx(0.6, abs=0.06)


def test_one_point_far_off_moves_less_than_three():
    one = gains(measured((1.0, 1.0, 0.5)), recalibration.fit_own(measured((1.0, 1.0, 0.5)), PARAMS))
    assert one.min() > 0.9


def test_points_of_three_models_say_more_than_of_one():
    apart, alike = measured((0.8, 0.8, 0.8)), measured((0.8, 0.8, 0.8), models=MODELS[:1] * 3)
    of_three, of_one = (recalibration.fit_own(points, PARAMS) for points in (apart, alike))
    assert of_three.odds < of_one.odds
    assert gains(apart, of_three).mean() < gains(alike, of_one).mean() - 0.01


def answer(question, params):
    (found,) = estimate_questions([question], params)
    return found.estimate


def test_a_new_engine_is_followed_and_its_interval_narrows_most_near_the_points():
    unknown = replace(PARAMS, fitted_engines=PARAMS.fitted_engines - {"vllm"})
    points = measured((0.7, 0.72, 0.69), engine="vllm")
    assert not unknown.is_engine_fitted("vllm")
    fitted = recalibration.fit_own(points, unknown)
    assert gains(points, fitted) == pytest.approx(0.7, abs=0.06)
    near = points[1].question
    wide = replace(near, config=replace(near.config, tensor_parallel=8), load=1.0)
    at_points, elsewhere = answer(near, fitted.params), answer(wide, fitted.params)
    assert elsewhere.spread["throughput"] > 1.5 * at_points.spread["throughput"] > 0
    widths = [bounds_of("throughput_output_tok_s", each, fitted.params).high for each in (at_points, elsewhere)]
    assert widths[0] < widths[1]


def test_a_new_gpu_is_known_by_its_points_but_for_its_power():
    points = measured((0.8, 0.8, 0.8), gpu="MI300X")
    question = points[0].question
    assert novelties_of(answer(question, PARAMS), PARAMS) == ("new_gpu",)
    fitted = recalibration.fit_own(points, PARAMS).params
    found = answer(question, fitted)
    assert novelties_of(found, fitted) == ()
    before, after = (bounds_of("throughput_output_tok_s", each, own) for each, own in (
        (answer(question, PARAMS), PARAMS), (found, fitted)
    ))  # fmt: skip
    assert before.high > after.high > 1.0
    assert bounds_of("power_w_per_gpu", found, fitted) == bounds_of("power_w_per_gpu", answer(question, PARAMS), PARAMS)


def test_what_is_believed_of_one_gaussian_number_is_the_textbook_s():
    prior_sd, own, together = 0.3, 0.1, 0.2
    values = np.array([0.4, 0.5, 0.3])
    scatter = Scatter(own=np.full(3, own), shared=np.full((3, 3), together**2), freedom=1e9)
    found = believe(lambda shifts: values - shifts[0], np.array([[prior_sd]]), scatter)
    variance = together**2 + own**2 / 3
    share = prior_sd**2 / (prior_sd**2 + variance)
    assert found.shifts[0] == pytest.approx(share * values.mean(), rel=1e-3)
    assert found.covariance[0, 0] == pytest.approx(share * variance, rel=1e-3)
    nothing = believe(lambda shifts: values - shifts[0], np.zeros((1, 0)), scatter)
    whole = np.full((3, 3), together**2) + np.eye(3) * own**2
    bayes = -0.5 * (values @ np.linalg.solve(whole + prior_sd**2, values) - values @ np.linalg.solve(whole, values))
    bayes -= 0.5 * (np.linalg.slogdet(whole + prior_sd**2)[1] - np.linalg.slogdet(whole)[1])
    assert found.log_evidence - nothing.log_evidence == pytest.approx(bayes, rel=1e-3)
    assert (nothing.shifts == 0).all()


def test_the_spreads_of_the_table_are_those_of_the_bundled_fits():
    text = bundled("profiles", "efficiency.csv").read_text(encoding="utf-8")
    rows = list(csv.DictReader(text.splitlines()))
    for name in (*ENGINE_PARAMETERS, *LINK_PARAMETERS):
        logs = [
            np.log(float(row["value"]))
            for row in rows
            if row["parameter"] == name
            and float(row["value"]) > 0
            and (row["source"].startswith("fit of") or row["scope"] == "default")
        ]
        assert 1 / 1.5 < np.std(logs, ddof=1) / load_variation()["spread", name] < 1.5, name


def test_spreads_go_through_a_file_and_fits_are_not_mixed():
    fitted = recalibration.fit_own(measured((0.7, 0.7, 0.7)), PARAMS)
    rows = [
        EfficiencyRow(
            parameter=parameter, scope=scope, value=value, unit="", source="", reason="",
            spread=fitted.params.spreads[parameter, scope],
        )
        for (parameter, scope), value in fitted.values.items()
    ]  # fmt: skip
    again = PARAMS.with_rows(parse_rows(rows_csv(rows), "params.csv"))
    assert again.spreads.keys() == fitted.params.spreads.keys()
    for key, spread in again.spreads.items():
        assert spread == pytest.approx(fitted.params.spreads[key], rel=1e-3)
    mixed = rows_csv([*rows[:-1], replace(rows[-1], spread=(0.1,))])
    with pytest.raises(InputError, match="different lengths"):
        parse_rows(mixed, "params.csv")
    with pytest.raises(InputError, match="not a list of numbers"):
        parse_rows(rows_csv(rows[:1]).replace(" ", "x"), "params.csv")
