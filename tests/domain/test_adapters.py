"""Sizes of adapters against the models of the library, and what an adapter may be."""

from __future__ import annotations

from dataclasses import replace

import pytest

from planner.catalog.models import list_models, load_model
from planner.domain.adapters import (
    ALL_LINEAR,
    Adapter,
    Isolation,
    adapter_bytes,
    adapter_params,
    canonical_modules,
    known_modules,
)
from planner.domain.model import MixerKind
from planner.errors import InputError

ATTENTION = ("q", "k", "v", "o")
EVERYTHING = (*ATTENTION, "gate", "up", "down")


def adapter(**changes):
    given = {"name": "a", "rank": 16, "target_modules": canonical_modules(ATTENTION), "rate_rps": 1.0}
    return Adapter(**(given | changes))


def test_an_adapter_is_a_four_hundredth_of_its_backbone():
    """T9. Published: 99% of what such a function holds is backbone; 16.8 M of 6.74 B parameters at rank 16."""
    model = load_model("meta-llama/Llama-2-7b-hf")
    params = adapter_params(model, rank=16, target_modules=ATTENTION)
    assert params == 32 * 4 * 16 * (4096 + 4096)
    assert params / model.total_params == pytest.approx(0.0025, abs=1e-4)
    assert model.total_params / (model.total_params + params) > 0.99
    assert adapter_bytes(model, adapter()) == 2 * params


def test_grouped_query_attention_has_narrow_keys_and_values():
    model = load_model("meta-llama/Llama-3.1-8B")
    assert adapter_params(model, rank=8, target_modules=["k"]) == 32 * 8 * (4096 + 8 * 128)
    assert adapter_params(model, rank=8, target_modules=["q_proj"]) == 32 * 8 * (4096 + 4096)
    assert adapter_params(model, rank=8, target_modules=["down"]) == 32 * 8 * (14336 + 4096)


def test_a_rank_64_adapter_of_everything_is_as_large_as_published():
    """PEFT prints 167,772,160 trainable parameters for rank 64 on all seven modules of Llama-3.1-8B."""
    model = load_model("meta-llama/Llama-3.1-8B")
    assert adapter_params(model, rank=64, target_modules=EVERYTHING) == 167_772_160
    assert adapter_params(model, rank=64, target_modules=[ALL_LINEAR]) == 167_772_160


def test_every_expert_has_its_own():
    model = load_model("Qwen/Qwen3-30B-A3B")
    assert adapter_params(model, rank=8, target_modules=["up"]) == 48 * 128 * 8 * (2048 + 768)


def test_latent_attention_names_its_own_modules():
    model = load_model("deepseek-ai/DeepSeek-V3")
    expected = 61 * 8 * ((7168 + 1536) + (512 + 128 * (128 + 128)))
    assert adapter_params(model, rank=8, target_modules=["q_a_proj", "kv_b_proj"]) == expected
    with pytest.raises(InputError, match=r"no module 'k_proj'.*kv_a_proj_with_mqa"):
        adapter_params(model, rank=8, target_modules=ATTENTION)


def test_a_model_whose_shapes_are_not_known_is_refused():
    model = load_model("meta-llama/Llama-2-7b-hf")
    bare = replace(model, layers=tuple(replace(group, projections=()) for group in model.layers))
    with pytest.raises(InputError, match="shapes of the weight matrices"):
        adapter_params(bare, rank=8, target_modules=ATTENTION)


@pytest.mark.parametrize("name", [summary.name for summary in list_models()])
def test_the_matrices_are_what_the_parameters_of_a_layer_are_made_of(name):
    """All but norms, biases, routers and gates: at most 2% of a layer. State-space and linear mixers list none."""
    for group in load_model(name).layers:
        has_matrices = group.mixer not in {MixerKind.LINEAR, MixerKind.NONE}
        listed = sum(p.count * p.inputs * p.outputs for p in group.projections)
        whole = group.mlp_params + (group.mixer_params if has_matrices else 0.0)
        if whole > 1e6 and name != "Deci/DeciLM-7B":  # heads differ by layer there, and the widest is listed
            assert 0.97 * whole < listed <= whole


def test_every_model_of_the_library_can_have_adapters():
    assert all(known_modules(load_model(summary.name)) for summary in list_models())


def test_merged_adapters_weigh_nothing_and_share_nothing():
    model = load_model("meta-llama/Llama-2-7b-hf")
    assert adapter_bytes(model, adapter(is_merged=True, isolation=Isolation.DEDICATED)) == 0.0
    with pytest.raises(InputError, match="cannot be shared"):
        adapter(is_merged=True)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"rank": 0}, "rank"),
        ({"target_modules": ()}, "changes no module"),
        ({"rate_rps": None}, "neither"),
        ({"trace": "t.csv"}, "both"),
        ({"rate_rps": -1.0}, "at least 0"),
        ({"rate_rps": float("nan")}, "at least 0"),
        ({"rate_rps": float("inf")}, "at least 0"),
    ],
)
def test_what_cannot_be_served_is_refused(changes, words):
    with pytest.raises(InputError, match=words):
        adapter(**changes)
