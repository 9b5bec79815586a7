"""The figures of a summary: known ones of the real traces, and theory for arrivals of known kinds."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from planner.domain.workload import PrefixHashes, Trace
from planner.workload.read import read_trace
from planner.workload.summary import interarrival_cv, prefix_reuse, summarize

DATA = Path(__file__).resolve().parents[1] / "data" / "workload"


def with_arrivals(times):
    ones = np.ones(len(times), dtype=np.int64)
    return Trace(arrival_s=np.asarray(times), input_tokens=ones, output_tokens=ones)


def test_azure_conversation():
    summary = summarize(read_trace("bundled:azure_conv_2023"))
    assert summary.n_requests == 19_366
    assert summary.duration_s == pytest.approx(3501.7219, abs=1e-4)
    assert summary.mean_rate_rps == pytest.approx(5.53042, abs=1e-5)
    assert summary.interarrival_cv == pytest.approx(1.0942, abs=1e-4)
    assert [window.window_s for window in summary.windows] == [1, 10, 60]
    assert [window.n_windows for window in summary.windows] == [3501, 350, 58]
    assert [window.max_rps for window in summary.windows] == pytest.approx([16, 9.8, 8.45])
    assert [window.dispersion for window in summary.windows] == pytest.approx([1.3855, 3.8680, 16.4112], abs=1e-4)
    sizes = summary.input_tokens
    assert (sizes.p50, sizes.p90, sizes.p95, sizes.p99, sizes.max) == (1020, 2734.5, 4083, 4142, 14_050)
    assert (summary.output_tokens.p50, summary.output_tokens.max) == (129, 1000)
    assert summary.size_correlation == pytest.approx(-0.1124, abs=1e-4)
    assert summary.prefix_reuse_fraction is None


def test_the_code_trace_is_an_order_of_magnitude_burstier():
    code, conv = (summarize(read_trace(f"bundled:azure_{name}_2023")) for name in ("code", "conv"))
    assert code.interarrival_cv == pytest.approx(13.1513, abs=1e-4)
    assert all(a.dispersion > 9 * b.dispersion for a, b in zip(code.windows, conv.windows, strict=True))


def test_a_poisson_process_has_dispersion_and_cv_one():
    gaps = np.random.default_rng(3).exponential(0.05, 200_000)
    times = np.cumsum(gaps) - gaps[0]
    summary = summarize(with_arrivals(times))
    assert summary.interarrival_cv == pytest.approx(1.0, abs=0.02)
    assert summary.windows[0].dispersion == pytest.approx(1.0, abs=0.05)
    assert summary.windows[1].dispersion == pytest.approx(1.0, abs=0.15)
    assert summary.mean_rate_rps == pytest.approx(20, rel=0.02)


def test_a_metronome_has_none():
    summary = summarize(with_arrivals(np.arange(0, 600, 0.25)))
    assert summary.interarrival_cv == pytest.approx(0, abs=1e-9)
    assert summary.windows[0].dispersion == pytest.approx(0, abs=1e-9)
    assert summary.windows[0].max_rps == pytest.approx(4)


def test_percentiles_are_numpys():
    trace = read_trace("bundled:azure_code_2023")
    summary = summarize(trace)
    for name in ("input", "output"):
        tokens, sizes = getattr(trace, f"{name}_tokens"), getattr(summary, f"{name}_tokens")
        assert [sizes.p50, sizes.p90, sizes.p95, sizes.p99] == np.percentile(tokens, [50, 90, 95, 99]).tolist()
        assert sizes.mean == tokens.mean()


def test_prefix_reuse_by_hand():
    # 1000 tokens: blocks 1 and 2, of which 2 holds 488. 1024: 1 again, and 3. 512: 2 again, now full. 600: 1 and 3
    # again, of 3 only 88 tokens.
    prefix = PrefixHashes(hashes=np.array([1, 2, 1, 3, 2, 1, 3]), offsets=np.array([0, 2, 4, 5, 7]), block_tokens=512)
    inputs = np.array([1000, 1024, 512, 600])
    assert prefix_reuse(prefix, inputs) == pytest.approx((512 + 512 + 512 + 88) / inputs.sum())


def test_prefix_reuse_against_a_loop():
    trace = read_trace(DATA / "mooncake_conversation_200.jsonl")
    seen, reused = set(), 0
    for line in (DATA / "mooncake_conversation_200.jsonl").read_text().splitlines():
        row = json.loads(line)
        for at, block in enumerate(row["hash_ids"]):
            size = min(512, row["input_length"] - 512 * at)
            reused += size if block in seen else 0
            seen.add(block)
    fraction = summarize(trace).prefix_reuse_fraction
    assert fraction == pytest.approx(reused / trace.input_tokens.sum())
    assert fraction == pytest.approx(0.0588, abs=5e-4)


def test_traces_too_short_or_without_times_have_gaps_not_guesses():
    lengths = summarize(read_trace(DATA / "sharegpt_lengths.csv"))
    assert (lengths.duration_s, lengths.mean_rate_rps, lengths.interarrival_cv, lengths.windows) == (None,) * 3 + ((),)
    single = summarize(with_arrivals([0.0]))
    assert (single.duration_s, single.mean_rate_rps, single.size_correlation) == (0.0, None, None)
    brief = summarize(with_arrivals([0.0, 0.5, 2.5]))
    assert [window.n_windows for window in brief.windows] == [2, 0, 0]
    assert (brief.windows[1].max_rps, brief.windows[2].dispersion) == (None, None)
    assert interarrival_cv(np.array([0.0, 0.0, 0.0])) is None


def test_as_json():
    document = summarize(read_trace(DATA / "burstgpt_v1.csv")).to_dict()
    assert json.loads(json.dumps(document, allow_nan=False)) == json.loads(json.dumps(document))
    assert document["n_failed_requests"] == 1
    assert document["input_tokens"]["max"] == 1087
