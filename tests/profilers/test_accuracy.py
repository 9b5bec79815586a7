"""Error bars: the table as data, recomputed where its source ships, and what a lower throughput does to a profile."""

from __future__ import annotations

import csv
from collections import defaultdict

import numpy as np
import pytest

from planner.catalog.gpus import load_gpus
from planner.catalog.models import load_model
from planner.domain.hardware import EngineConfig
from planner.domain.provenance import ProvenanceKind
from planner.domain.slo import Metric, Slo
from planner.domain.workload import Bucket
from planner.files.bundled import bundled
from planner.profilers.accuracy import error_fractions
from planner.profilers.measured import MeasuredStore, load_measured
from planner.profilers.options import profile_option

GPUS = load_gpus()
LLAMA = load_model("Llama-3.1-8B")
BUCKETS = tuple(
    Bucket(row=0, column=i, rate_rps=1.0, input_tokens=float(a), output_tokens=float(b))
    for i, (a, b) in enumerate([(128, 128), (1000, 250), (4000, 500)])
)
TRT = EngineConfig(engine="tensorrt-llm", precision="fp8", kv_precision="fp8", max_num_seqs=2048)
SLOS = (Slo(metric=Metric.TTFT, percentile=99, bound_s=2.0), Slo(metric=Metric.TPOT, percentile=95, bound_s=0.06))


def profile(gpu="H100-80GB", slos=SLOS, shortfall=None, config=None, model=LLAMA, store=None):
    return profile_option(
        model,
        GPUS.get(gpu),
        config or EngineConfig(),
        BUCKETS,
        slos,
        store=MeasuredStore.empty() if store is None else store,
        shortfall=None if shortfall is None else np.full(len(BUCKETS), shortfall),
    )


def test_the_table_has_a_source_for_every_origin_and_worse_origins_err_more():
    errors = error_fractions()
    assert set(errors) == {(kind, is_fitted) for kind in ProvenanceKind for is_fitted in (True, False)}
    ranked = [
        errors[ProvenanceKind.GIVEN, True],
        errors[ProvenanceKind.MEASURED, True],
        errors[ProvenanceKind.CALIBRATED, True],
        errors[ProvenanceKind.ESTIMATED, True],
        errors[ProvenanceKind.ESTIMATED, False],
    ]
    assert ranked == sorted(set(ranked))
    assert 0 <= ranked[0] < ranked[-1] < 1
    text = bundled("profiles", "throughput_error.csv").read_text(encoding="utf-8")
    assert all(row["source"] and row["reason"] for row in csv.DictReader(text.splitlines()))


def test_the_error_of_a_measurement_is_the_spread_between_engine_versions():
    rates = defaultdict(dict)
    for point in load_measured().points:
        if point.load_kind == "offline_max":
            place = (point.model, point.gpu, point.tensor_parallel, point.precision)
            rates[*place, point.input_tokens, point.output_tokens][point.engine_version] = point.rate_rps
    both = [found[min(found)] / found[max(found)] for found in rates.values() if len(found) > 1]
    assert len(both) == 54
    low = np.quantile([*both, *(1 / ratio for ratio in both)], 0.1)
    assert error_fractions()[ProvenanceKind.MEASURED, True] == pytest.approx(1 - low, abs=0.005)


def test_figures_carry_the_error_of_their_origin():
    assert {origin.error_fraction for origin in profile().provenance} == {0.29}
    assert {origin.error_fraction for origin in profile("MI300X").provenance} == {0.38}
    measured = profile(slos=(), config=TRT, store=load_measured())
    for origin in measured.provenance:
        assert origin.error_fraction == error_fractions()[origin.kind, True]
    assert ProvenanceKind.MEASURED in {origin.kind for origin in measured.provenance}


@pytest.mark.parametrize("slos", [(), SLOS, (Slo(metric=Metric.TPOT, percentile=95, bound_s=0.011),)])
def test_slower_steps_lower_every_rate_by_the_error_at_least(slos):
    before = profile(slos=slos).throughput_rps
    last = before
    for error in (0.1, 0.25, 0.4):
        after = profile(slos=slos, shortfall=error).throughput_rps
        assert np.all(after <= before * (1 - error) * (1 + 1e-12))
        assert np.all(after <= last)
        last = after
    assert profile(slos=slos, shortfall=0.0).throughput_rps == pytest.approx(before)


def test_where_an_objective_binds_a_slower_gpu_loses_more_than_its_error():
    tight = (Slo(metric=Metric.TPOT, percentile=95, bound_s=0.011),)
    kept = profile(slos=tight, shortfall=0.25).throughput_rps / profile(slos=tight).throughput_rps
    assert kept.min() < 0.7


def test_a_measured_rate_falls_by_its_error_where_nothing_else_binds():
    store = load_measured()
    before = profile(slos=(), config=TRT, store=store)
    after = profile(slos=(), config=TRT, store=store, shortfall=0.11)
    exact = [i for i, origin in enumerate(before.provenance) if origin.kind is ProvenanceKind.MEASURED]
    assert exact
    assert after.throughput_rps[exact] == pytest.approx(before.throughput_rps[exact] * 0.89, rel=1e-6)
