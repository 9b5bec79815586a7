"""GPUs under a power limit: against POLCA's point, in the limits, and what must always be so."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest

from planner.catalog.gpus import load_gpus
from planner.catalog.models import load_record
from planner.domain.hardware import EngineConfig, PowerCap
from planner.domain.provenance import ProvenanceKind
from planner.domain.workload import Bucket
from planner.files.slo import parse_slo
from planner.profilers.measured import MeasuredStore, load_measured
from planner.profilers.options import profile_option
from planner.profilers.power import capped, lowest_cap_w

LLAMA = load_record("meta-llama/Llama-3.1-8B", base_dir=Path()).architecture
SIZES = ((100, 400), (500, 400), (2000, 100), (8000, 50))
BUCKETS = tuple(
    Bucket(row=row, column=0, rate_rps=1.0, input_tokens=prompt, output_tokens=answer)
    for row, (prompt, answer) in enumerate(SIZES)
)
SLOS = (parse_slo("ttft p99 <= 2s"), parse_slo("tpot p95 <= 60ms"))
SEARCH_ERROR = 1e-3
"""Rates are searched on a grid that is exact to a tenth of a percent."""


def profile(gpu, cap_w=None, slos=SLOS, store=None):
    config = EngineConfig(power_cap_w=cap_w)
    return profile_option(
        LLAMA, load_gpus().get(gpu), config, BUCKETS, slos, store=load_measured() if store is None else store
    )


def test_at_polcas_point_the_clock_is_polcas():
    """An A100 whose idle power is a fifth of its TDP, at 0.80 of its peak power, clocks 1110 of 1410 MHz."""
    gpu = load_gpus().get("A100-80GB-PCIe")  # 300 W; no idle power is known, so a fifth is assumed
    slow = capped(gpu, 0.8 * gpu.tdp_w)
    assert slow.peak_flops["bf16"] / gpu.peak_flops["bf16"] == pytest.approx(1110 / 1410, rel=0.005)
    assert slow.bandwidth_bytes_per_s == gpu.bandwidth_bytes_per_s
    assert capped(gpu, gpu.tdp_w) == gpu


@pytest.mark.parametrize("gpu", ["H100-80GB", "A100-80GB"])
def test_a_lower_limit_never_raises_throughput_or_power(gpu):
    tdp = load_gpus().get(gpu).tdp_w
    ladder = [profile(gpu)] + [profile(gpu, part / 100 * tdp) for part in range(95, 49, -5)]
    for higher, lower in itertools.pairwise(ladder):
        assert np.all(lower.throughput_rps <= higher.throughput_rps * (1 + SEARCH_ERROR))
        assert lower.power_w < higher.power_w
        assert lower.busy_power_w <= higher.busy_power_w
        assert lower.idle_power_w == higher.idle_power_w
    assert np.all(ladder[-1].throughput_rps > 0)


def test_prefills_slow_down_and_decoding_hardly_does():
    whole, half = profile("H100-80GB", slos=()), profile("H100-80GB", 350.0, slos=())
    part = half.throughput_rps / whole.throughput_rps
    assert list(part) == sorted(part, reverse=True)  # the more of a request is its prompt, the slower it gets
    assert part[0] > 0.7
    assert part[-1] < 0.6


def test_a_measured_rate_under_a_limit_is_measured_no_more():
    kinds = {origin.kind for origin in profile("H100-80GB", 490.0).provenance}
    assert ProvenanceKind.MEASURED not in kinds
    bare = profile("H100-80GB", 490.0, store=MeasuredStore.empty())
    assert {origin.kind for origin in bare.provenance} == {ProvenanceKind.ESTIMATED}
    assert all("at a power limit of 490 W" in origin.note for origin in bare.provenance)


def test_what_nothing_is_known_of_is_refused():
    gpus = load_gpus()
    assert lowest_cap_w(gpus.get("H100-80GB")) == 350.0
    assert lowest_cap_w(gpus.get("L4")) is None
    for name, cap in (("H100-80GB", 340.0), ("L4", 60.0)):
        with pytest.raises(ValueError, match="nothing is known"):
            capped(gpus.get(name), cap)


def test_limits_in_parts_and_in_watts():
    h100 = load_gpus().get("H100-80GB")
    assert PowerCap(tdp_fraction=0.7).watts_of(h100) == pytest.approx(490.0)
    assert PowerCap(watts=350.0).watts_of(h100) == 350.0
    assert PowerCap(watts=900.0).watts_of(h100) == 700.0
