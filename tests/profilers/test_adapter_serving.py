"""Packing, batching and first tokens of adapters, against the figures published for ServerlessLoRA."""

from __future__ import annotations

import csv
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.catalog.models import load_model
from planner.domain.adapters import Adapter, Isolation, adapter_params, copied_params, known_modules
from planner.errors import DataMissingError
from planner.files.bundled import bundled
from planner.profilers.adapter_batching import (
    BatchLatency,
    batch_cap,
    expire_delay_s,
    fill_or_expire,
    margin_s,
    rate_while_sharing_rps,
)
from planner.profilers.adapter_engines import computed_rank, slot_shape
from planner.profilers.adapter_packing import AdapterMemory, most_adapters
from planner.profilers.first_token import COLD, WARM, Warmth, backbone_load_s, first_token, published_load_times
from planner.profilers.serverless_figures import beyond_published, figures

L40S_BYTES = 44.4e9
LATENCY = BatchLatency(first_s=0.4, per_request_s=0.05)
SLO_S = 2.0


def memory(kv_bytes=0.0):
    return AdapterMemory(backbone_bytes=14e9, adapter_bytes=0.1e9, context_bytes=0.5e9, kv_bytes=kv_bytes)


# --- ranks -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("engine", "ranks", "rates", "expected"),
    [
        ("vllm", (4, 12), (9.0, 1.0), 16),  # the slots' rank, whatever is asked of whom
        ("vllm", (300,), (), 320),
        ("sglang", (4, 12), (9.0, 1.0), 4.8),
        ("s-lora", (64, 32, 16, 8), (), 30),
        ("s-lora", (64, 8), (0.0, 0.0), 36),
        ("an-engine", (4, 12), (9.0, 1.0), 12),  # not known: as if it padded
    ],
)
def test_the_rank_that_an_engine_computes(engine, ranks, rates, expected):
    assert computed_rank(engine, ranks, rates) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("engine", "modules", "slot_mb"),
    [
        ("vllm", "q_proj v_proj", 80),  # all seven, whatever the adapters change
        ("sglang", "q_proj v_proj", 16.8),
        ("s-lora", "q_proj v_proj", 16.8),
        ("an-engine", "q_proj v_proj", 80),  # not known: as if it had room in all
        ("sglang", "all-linear", 80),
        (None, "q_proj v_proj", 16.8),  # a process for one adapter
    ],
)
def test_the_modules_that_an_engine_sets_memory_aside_for(engine, modules, slot_mb):
    """Llama-2-7B, rank 16: 16 (4096 + 4096) in q, k, v and o each, 16 (4096 + 11008) in the other three, 32 layers."""
    model = load_model("llama-2-7b")
    adapter = Adapter(name="a", rank=16, target_modules=tuple(modules.split()), rate_rps=1.0)
    assert slot_shape(model, [adapter], engine=engine).bytes_each == pytest.approx(slot_mb * 1e6, rel=2e-3)


def test_tensor_parallelism_splits_half_of_a_slot():
    """Of Llama-2-7B, rank 16, every GPU has the first matrices of q, k, v, gate and up, the second of o and down."""
    model = load_model("llama-2-7b")
    adapter = Adapter(name="a", rank=16, target_modules=("all-linear",), rate_rps=1.0)
    copied = 2 * 32 * 16 * (5 * 4096 + 2 * 4096)
    shapes = {engine: slot_shape(model, [adapter], engine=engine) for engine in ("vllm", "sglang", "s-lora", None)}
    for engine, shape in shapes.items():
        more = 0 if engine in {"s-lora", None} else copied
        assert shape.bytes_over(1) == shape.bytes_each
        assert shape.bytes_over(4) == pytest.approx(shape.bytes_each + 3 * more)
    latent = load_model("deepseek-ai/DeepSeek-V2-Lite")
    (group, *_) = (each for each in latent.layers if each.projections)
    (whole,) = (each for each in group.projections if each.module == "kv_a_proj_with_mqa")
    first = adapter_params(latent, rank=1, target_modules=[whole.module])
    assert copied_params(latent, rank=1, modules={whole.module}) == first  # every GPU has the module whole


def test_which_adapters_a_slot_has_room_for():
    model = load_model("llama-2-7b")

    def of(*modules, rank=16):
        return Adapter(name="a", rank=rank, target_modules=modules, rate_rps=1.0)

    narrow, wide = (slot_shape(model, [of("q_proj")], engine=engine) for engine in ("sglang", "vllm"))
    # all-linear is the seven by another name, on either side.
    spelt = slot_shape(model, [of(*known_modules(model))], engine="sglang")
    assert spelt.fits(model, of("all-linear"))
    assert slot_shape(model, [of("all-linear")], engine="sglang").fits(model, of("up_proj"))
    assert not narrow.fits(model, of("up_proj"))
    assert not narrow.fits(model, of("all-linear"))
    # vLLM's slots for adapters of q alone have room in every module, and not for a larger rank.
    assert wide.fits(model, of("up_proj"))
    assert wide.fits(model, of("all-linear"))
    assert not wide.fits(model, of("q_proj", rank=32))


def test_every_engines_way_with_ranks_has_a_source():
    text = bundled("profiles", "adapter_engines.csv").read_text(encoding="utf-8")
    rows = list(csv.DictReader(text.splitlines()))
    assert {row["computes"] for row in rows} == {"slot", "own"}
    assert {row["slot_modules"] for row in rows} == {"model", "adapters"}
    assert {row["slot_split"] for row in rows} == {"half", "all"}
    assert all(row["source"].startswith("https://") and row["notes"] for row in rows)


# --- packing ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kv_bytes", "apart", "shared"), [(0.0, 3, 50), (4e9, 2, 6)])
def test_a_shared_backbone_holds_three_times_as_many(kv_bytes, apart, shared):
    """T10: 14 GB of weights, 0.1 GB for an adapter and 0.5 GB for a context on 44.4 GB; with caches 6 against 2."""
    assert most_adapters(memory(kv_bytes), Isolation.DEDICATED, usable_bytes=L40S_BYTES) == apart
    assert most_adapters(memory(kv_bytes), Isolation.SHARED_BACKBONE, usable_bytes=L40S_BYTES) == shared


def test_one_process_has_one_context_and_one_cache():
    found = most_adapters(memory(4e9), Isolation.SHARED_PROCESS, usable_bytes=L40S_BYTES)
    assert found == 259  # (44.4 - 14 - 0.5 - 4) / 0.1
    assert most_adapters(memory(4e9), Isolation.SHARED_PROCESS, usable_bytes=18.6e9) == 1
    assert most_adapters(memory(4e9), Isolation.SHARED_PROCESS, usable_bytes=18.5e9) == 0
    assert most_adapters(memory(4e9), Isolation.SHARED_PROCESS, usable_bytes=14e9) == 0


def test_what_is_reserved_is_not_packed():
    less = most_adapters(memory(), Isolation.SHARED_BACKBONE, usable_bytes=L40S_BYTES, reserved_fraction=0.1)
    assert less == math.floor((0.9 * 44.4 - 14) / 0.6)
    with pytest.raises(ValueError, match="reserved_fraction"):
        most_adapters(memory(), Isolation.SHARED_BACKBONE, usable_bytes=L40S_BYTES, reserved_fraction=1.0)


def test_an_adapter_that_takes_nothing_has_no_end():
    bare = AdapterMemory(backbone_bytes=14e9, adapter_bytes=0.0, context_bytes=0.0)
    assert most_adapters(bare, Isolation.SHARED_PROCESS, usable_bytes=L40S_BYTES) == math.inf
    with pytest.raises(ValueError, match="sizes"):
        AdapterMemory(backbone_bytes=-1.0, adapter_bytes=0.0, context_bytes=0.0)


@given(st.floats(1e9, 200e9), st.floats(1e6, 2e9), st.floats(0, 1e9), st.floats(0, 8e9), st.floats(1e9, 300e9))
def test_sharing_more_never_holds_fewer(backbone, adapter, context, kv, usable):
    sizes = AdapterMemory(backbone_bytes=backbone, adapter_bytes=adapter, context_bytes=context, kv_bytes=kv)
    counts = [most_adapters(sizes, each, usable_bytes=usable) for each in reversed(Isolation)]
    assert counts == sorted(counts)
    for isolation, count in zip(reversed(Isolation), counts, strict=True):
        fixed, each = sizes.fixed_bytes(isolation), sizes.bytes_per_adapter(isolation)
        assert count == 0 or fixed + count * each <= usable * (1 + 1e-8)
        assert fixed + (count + 1) * each > usable * (1 - 1e-8)


# --- batches ---------------------------------------------------------------------------------------------------------


def test_the_batch_that_meets_the_objective():
    """T11: at most 33 requests are in time within 2 s, six while three batches share the GPU."""
    assert batch_cap(LATENCY, slo_s=SLO_S) == 33
    assert batch_cap(LATENCY, slo_s=SLO_S, n_sharing=3) == 6
    assert batch_cap(LATENCY, slo_s=0.39) == 0
    assert batch_cap(LATENCY, slo_s=0.4) == 1
    assert batch_cap(BatchLatency(first_s=0.4, per_request_s=0.0), slo_s=SLO_S) == math.inf


@given(st.floats(0.01, 5.0), st.floats(1e-4, 1.0), st.floats(0.05, 60.0), st.integers(1, 8))
def test_the_cap_is_the_last_batch_in_time(first_s, per_request_s, slo_s, n_sharing):
    latency = BatchLatency(first_s=first_s, per_request_s=per_request_s)
    cap = int(batch_cap(latency, slo_s=slo_s, n_sharing=n_sharing))
    assert cap == 0 or latency.seconds(cap, n_sharing=n_sharing) <= slo_s * (1 + 1e-6)
    assert latency.seconds(cap + 1, n_sharing=n_sharing) > slo_s * (1 - 1e-6)
    assert batch_cap(latency, slo_s=slo_s, n_sharing=n_sharing + 1) <= cap


def test_how_long_a_batch_may_be_filled():
    """T11: eight requests take 0.75 s of the 2 s, so they may be waited for for 1.25 s."""
    assert expire_delay_s(LATENCY, slo_s=SLO_S, batch=8) == pytest.approx(1.25)
    assert expire_delay_s(LATENCY, slo_s=SLO_S, batch=8, n_sharing=3) == 0.0
    assert margin_s(LATENCY, slo_s=SLO_S, waited_s=0.25, batch=8, n_sharing=1) == pytest.approx(1.0)
    assert margin_s(LATENCY, slo_s=SLO_S, waited_s=0.0, batch=8, n_sharing=3) == pytest.approx(-0.25)


def test_functions_that_share_a_gpu_serve_less_together():
    rates = [rate_while_sharing_rps(LATENCY, slo_s=SLO_S, n_sharing=m) for m in (1, 2, 3, 5, 6)]
    assert rates[0] == pytest.approx(33 / 2.0)
    assert rates[2] == pytest.approx(6 / (3 * 0.65))
    assert rates[3] == pytest.approx(1 / (5 * 0.4))
    assert rates[4] == 0.0
    whole = [m * rate for m, rate in zip((1, 2, 3, 5, 6), rates, strict=True)]
    assert whole == sorted(whole, reverse=True)
    with pytest.raises(ValueError, match="no bound"):
        rate_while_sharing_rps(BatchLatency(first_s=0.4, per_request_s=0.0), slo_s=SLO_S, n_sharing=1)


def test_batches_start_when_full_or_when_the_oldest_can_wait_no_longer():
    full, alone = fill_or_expire([0.0, 0.1, 0.2, 9.0], LATENCY, slo_s=SLO_S, most=3)
    assert (full.start_s, full.first, full.size) == (0.2, 0, 3)
    assert (alone.start_s, alone.first, alone.size) == (pytest.approx(10.6), 3, 1)
    first, second = fill_or_expire([0.0, 1.58], LATENCY, slo_s=SLO_S, most=8)  # with two it may start at 1.55 at most
    assert (first.start_s, first.size, second.size) == (pytest.approx(1.6), 1, 1)
    with pytest.raises(ValueError, match="ascending"):
        fill_or_expire([1.0, 0.0], LATENCY, slo_s=SLO_S, most=8)
    with pytest.raises(ValueError, match="most"):
        fill_or_expire([1.0], LATENCY, slo_s=SLO_S, most=0)


@given(st.lists(st.floats(0, 20), max_size=60).map(sorted), st.integers(1, 33), st.integers(1, 3))
def test_every_request_is_in_one_batch_and_in_time(arrivals, most, n_sharing):
    cap = min(most, int(batch_cap(LATENCY, slo_s=SLO_S, n_sharing=n_sharing)))
    batches = fill_or_expire(arrivals, LATENCY, slo_s=SLO_S, most=cap, n_sharing=n_sharing)
    assert [i for batch in batches for i in range(batch.first, batch.first + batch.size)] == list(range(len(arrivals)))
    for batch in batches:
        assert batch.size <= cap
        assert arrivals[batch.first + batch.size - 1] <= batch.start_s + 1e-9
        assert batch.start_s - arrivals[batch.first] + LATENCY.seconds(batch.size, n_sharing=n_sharing) <= SLO_S + 1e-9


@pytest.mark.parametrize("times", [(0.0, 0.1), (math.nan, 0.1), (0.4, -1.0), (0.4, math.inf)])
def test_a_latency_that_is_none_is_refused(times):
    with pytest.raises(ValueError, match="T0"):
        BatchLatency(first_s=times[0], per_request_s=times[1])


# --- the first token -------------------------------------------------------------------------------------------------


def test_the_published_timeline():
    """T12. Cold 9.9 s (InstaInfer) and 7.2 s (ServerlessLLM); backbone shared and libraries cold 4.8 s; warm 1.3 s."""
    times, fast = published_load_times(), published_load_times(is_fast_store=True)
    cold_s = first_token(times, COLD).total_s
    assert cold_s == pytest.approx(9.9, abs=0.1)
    assert first_token(fast, COLD).total_s == pytest.approx(7.2, abs=0.1)
    shared = first_token(times, Warmth(container=True), isolation=Isolation.SHARED_BACKBONE, is_backbone_on_gpu=True)
    assert shared.total_s == pytest.approx(4.8, abs=0.1)
    warm_s = first_token(times, WARM, isolation=Isolation.SHARED_BACKBONE).total_s
    assert 1 - warm_s / cold_s == pytest.approx(0.87, abs=0.05)
    assert 1 - warm_s / cold_s == pytest.approx(figures("published")["ttft_reduction_at_most"], abs=0.05)


def test_a_shared_function_without_a_backbone_loads_it_and_its_adapter():
    times = published_load_times("re-implementation")
    found = first_token(times, COLD, isolation=Isolation.SHARED_BACKBONE, queue_s=0.2, n_sharing=2)
    assert found.load_s == pytest.approx(2.5 + 10 + 0.6 + 0.5)
    assert found.total_s == pytest.approx(0.2 + found.load_s + 2 * 0.4)
    mapped = first_token(times, COLD, isolation=Isolation.SHARED_BACKBONE, is_backbone_on_gpu=True)
    assert mapped.backbone_s == 0.1


def test_weights_come_at_the_rate_of_their_store():
    assert backbone_load_s(14e9, 2e9) == 7.0
    with pytest.raises(ValueError, match="positive"):
        backbone_load_s(14e9, 0.0)


def test_four_functions_of_one_backbone_stay_within_what_was_published():
    """T13. Four cold functions on a GPU each (three would fit) against four warm ones on one shared GPU."""
    times = published_load_times()
    ttft_reduction = 1 - first_token(times, WARM).total_s / first_token(times, COLD).total_s
    gpus_apart = math.ceil(4 / most_adapters(memory(4e9), Isolation.DEDICATED, usable_bytes=L40S_BYTES))
    gpus_shared = math.ceil(4 / most_adapters(memory(4e9), Isolation.SHARED_BACKBONE, usable_bytes=L40S_BYTES))
    cost_reduction = 1 - gpus_shared / gpus_apart
    assert cost_reduction == 0.5
    assert beyond_published(ttft_reduction=ttft_reduction, cost_reduction=cost_reduction) == ()
    assert len(beyond_published(ttft_reduction=0.95, cost_reduction=0.95)) == 2


def test_figures_that_are_not_there():
    with pytest.raises(DataMissingError, match="timeline, re-implementation"):
        figures("measured")
