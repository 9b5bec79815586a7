"""Fine-tuning rates: published training runs, and what does not fit."""

from __future__ import annotations

from dataclasses import replace

import pytest

from planner.catalog.gpus import load_gpus
from planner.catalog.models import load_record
from planner.domain.model import LayerGroup, MixerKind, ModelArchitecture
from planner.domain.provenance import ProvenanceKind
from planner.profilers.efficiency import default_params
from planner.profilers.training import Training, flops_per_token, memory_bytes, training_estimate

PARAMS = default_params()
FULL = Training(method="full", sequence_tokens=2048)
LORA = Training(method="lora", sequence_tokens=2048)


def gpt(layers, hidden, heads, vocab=51200):
    """A GPT of Megatron-LM's table 1: 4 h^2 parameters of attention and 8 h^2 of the MLP in every layer."""
    group = LayerGroup(
        count=layers,
        mixer=MixerKind.FULL_ATTENTION,
        mixer_params=4.0 * hidden**2,
        kv_elements_per_token=2.0 * hidden,
        n_query_heads=heads,
        n_kv_heads=heads,
        head_dim=hidden // heads,
        value_head_dim=hidden // heads,
        mlp_params=8.0 * hidden**2,
        mlp_active_params=8.0 * hidden**2,
    )
    return ModelArchitecture(
        name="gpt",
        hidden_size=hidden,
        vocab_size=vocab,
        layers=(group,),
        is_embedding_tied=True,
        max_context_tokens=2048,
        native_precision="bf16",
    )


def exact_flops(layers, hidden, vocab=51200, length=2048):
    """Megatron-LM's count of a token: 96 l h^2 (1 + s / 6h + V / 16lh), attention not halved by causality."""
    return 96 * layers * hidden**2 * (1 + length / (6 * hidden) + vocab / (16 * layers * hidden))


@pytest.mark.parametrize(("layers", "hidden", "heads"), [(24, 2304, 24), (48, 8192, 64), (96, 12288, 96)])
def test_a_token_costs_what_megatron_counts(layers, hidden, heads):
    ours = flops_per_token(gpt(layers, hidden, heads), FULL, PARAMS)
    theirs = exact_flops(layers, hidden)
    causal = 96 * layers * hidden**2 * 2048 / (12 * hidden)  # half of their attention
    head = 2 * 51200 * hidden  # activations of the head are not worked out again there
    assert ours == pytest.approx(theirs - causal + head, rel=1e-3)


def test_the_days_of_a_published_run():
    """GPT-3: 300 billion tokens on 1024 A100 at 140 TFLOP/s took 34 days (Megatron-LM, section 5.1)."""
    seconds = 300e9 * flops_per_token(gpt(96, 12288, 96), FULL, PARAMS) / (1024 * 140e12)
    assert seconds / 86400 == pytest.approx(34, rel=0.03)


def test_the_rate_is_the_arithmetic_and_adapters_are_faster():
    gpus, model = load_gpus(), load_record("meta-llama/Llama-3.1-8B").architecture
    a100 = gpus.get("A100-80GB")
    lora = training_estimate(model, a100, 1, LORA, PARAMS)
    assert lora.tokens_per_s * flops_per_token(model, LORA, PARAMS) == pytest.approx(0.44 * a100.peak_flops["bf16"])
    assert lora.provenance.kind is ProvenanceKind.ESTIMATED
    eight = training_estimate(model, a100, 8, FULL, PARAMS)
    assert 8 * lora.tokens_per_s / eight.tokens_per_s == pytest.approx(8 / 6)
    longer = training_estimate(model, a100, 1, replace(LORA, sequence_tokens=4096), PARAMS)
    assert longer.tokens_per_s < lora.tokens_per_s


def test_all_weights_take_16_bytes_each_and_adapters_little_more_than_the_weights():
    model = load_record("meta-llama/Llama-3.1-8B").architecture
    one_token = Training(method="full", sequence_tokens=1)
    assert memory_bytes(model, 1, one_token, PARAMS) == pytest.approx(16 * model.total_params, rel=1e-4)
    spread = memory_bytes(model, 8, one_token, PARAMS)
    assert spread == pytest.approx(2 * model.total_params, rel=1e-4)
    assert memory_bytes(model, 1, replace(one_token, method="lora"), PARAMS) < 2.2 * model.total_params
    shared = replace(one_token, method="lora", shares_weights=True)
    assert memory_bytes(model, 1, shared, PARAMS) == pytest.approx(0.16 * model.total_params, rel=1e-3)


@pytest.mark.parametrize(
    ("gpu", "n_gpus", "training", "reason"),
    [
        ("A100-80GB", 1, FULL, "full fine-tuning takes"),
        ("A100-80GB", 1, replace(LORA, sequence_tokens=10**6), "exceed the model's context"),
        ("L4", 1, replace(LORA, shares_weights=True), "are free"),
        ("H100-80GB", 1, replace(FULL, shares_weights=True), "cannot learn while they serve"),
        ("V100-16GB", 1, LORA, "no tensor arithmetic for bf16"),
    ],
)
def test_what_cannot_train_says_why(gpu, n_gpus, training, reason):
    gpus, model = load_gpus(), load_record("meta-llama/Llama-3.1-8B").architecture
    spec = gpus.get(gpu)
    if gpu.startswith("V100"):
        spec = replace(spec, peak_flops={"fp16": 1.0})
    found = training_estimate(model, spec, n_gpus, training, PARAMS)
    assert found.tokens_per_s == 0
    assert reason in found.limiting


def test_adapters_fit_beside_requests_on_large_gpus():
    gpus, model = load_gpus(), load_record("meta-llama/Llama-3.1-8B").architecture
    beside = replace(LORA, shares_weights=True)
    alone = training_estimate(model, gpus.get("H100-80GB"), 1, LORA, PARAMS)
    assert training_estimate(model, gpus.get("H100-80GB"), 1, beside, PARAMS) == alone
