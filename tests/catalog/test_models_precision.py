"""Bytes of weights and caches by number format."""

from __future__ import annotations

import pytest

from planner.catalog.models import list_models, load_model
from planner.domain.precision import BYTES_PER_PARAMETER, bytes_per_parameter, kv_cache_bytes, weight_bytes
from planner.errors import InputError


@pytest.mark.parametrize(
    ("precision", "bits"), [("bf16", 16), ("fp8", 8), ("int4", 4.15625), ("nvfp4", 4.5), ("mxfp4", 4.25)]
)
def test_bits_per_parameter(precision, bits):
    assert bytes_per_parameter(precision) * 8 == bits


@pytest.mark.parametrize("precision", ["fp7", "", "BF16"])
def test_an_unknown_format_is_refused(precision):
    with pytest.raises(InputError, match="bf16"):
        weight_bytes(load_model("Llama-3.1-8B"), precision)
    with pytest.raises(InputError, match="bf16"):
        kv_cache_bytes(load_model("Llama-3.1-8B"), 1, precision)


def test_sixteen_bit_weights_are_two_bytes_per_parameter():
    for summary in list_models():
        model = load_model(summary.name)
        if model.native_precision == "bf16":
            assert weight_bytes(model, "bf16") == 2 * model.total_params
            assert weight_bytes(model, "fp16") == 2 * model.total_params


def test_token_tables_stay_in_sixteen_bit():
    model = load_model("Llama-3.1-8B")
    outside = model.embedding_params + model.hidden_size
    assert weight_bytes(model, "fp8") == model.total_params - outside + 2 * outside


# Published sizes of the checkpoints' weight files, in 10^9 bytes. gpt-oss: 60.8 and 12.8 GiB (its model card, table 1).
@pytest.mark.parametrize(
    ("name", "published_gb", "tolerance"),
    [
        ("gpt-oss-120b", 60.8 * 2**30 / 1e9, 0.005),
        ("gpt-oss-20b", 12.8 * 2**30 / 1e9, 0.005),
        ("Kimi-K2-Thinking", 594, 0.01),
    ],
)
def test_sizes_of_published_checkpoints(name, published_gb, tolerance):
    model = load_model(name)
    assert weight_bytes(model, model.native_precision) / 1e9 == pytest.approx(published_gb, rel=tolerance)


def test_what_a_checkpoint_leaves_unquantised_is_counted():
    gemma = load_model("nvidia/Gemma-4-31B-IT-NVFP4")  # dense, but its attention stays in bf16
    assert (gemma.native_mixer_bytes, gemma.native_mlp_bytes) == (2.0, 0.5625)
    mixed = load_model("nvidia/Qwen3.6-27B-NVFP4")
    assert (mixed.native_mixer_bytes, mixed.native_mlp_bytes) == (1.0, 0.5625)
    qwen = load_model("nvidia/Qwen3-235B-A22B-NVFP4")  # only its routers are left out
    assert weight_bytes(qwen, "nvfp4") < weight_bytes(load_model("Qwen/Qwen3-235B-A22B"), "nvfp4")


def test_a_narrower_format_never_takes_more_memory():
    order = ("fp32", "bf16", "fp8", "nvfp4")
    for summary in list_models():
        model = load_model(summary.name)
        sizes = [weight_bytes(model, precision) for precision in order]
        assert sizes == sorted(sizes, reverse=True)
        assert len(set(sizes)) == len(order)


def test_kv_caches_in_fp8_take_half():
    model = load_model("Llama-3.1-8B")
    assert kv_cache_bytes(model, 1000, "fp8") == kv_cache_bytes(model, 1000) / 2 == 65_536_000


def test_the_formats_of_the_command_line_are_all_there():
    assert {"bf16", "fp16", "fp8", "int8", "int4", "nvfp4", "mxfp4"} <= set(BYTES_PER_PARAMETER)


def test_two_of_four_weights_take_what_gpusq_vit_reports():
    """T38: against fp32, 6.4 times less in int8 and 12.7 in int4."""
    dense = bytes_per_parameter("fp32")
    assert dense / bytes_per_parameter("int8-2:4") == pytest.approx(6.4, rel=0.01)
    assert dense / bytes_per_parameter("int4-2:4") == pytest.approx(12.7, rel=0.01)
