"""The library's data, and names to architectures."""

from __future__ import annotations

import csv
import json
import re
import time
from pathlib import Path

import pytest

from planner.catalog.models import list_models, load_model, load_record
from planner.domain.model import MixerKind
from planner.domain.precision import kv_cache_bytes, state_bytes
from planner.errors import DataMissingError

LIBRARY = Path(__file__).parents[2] / "catalogs" / "models"
ROWS = list(csv.DictReader((LIBRARY / "index.csv").read_text(encoding="utf-8").splitlines()))


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row["name"])
def test_parameter_counts_agree_with_the_independent_ones(row):
    model = load_model(row["name"])
    # the index gives 10^9 parameters to three decimals
    assert model.total_params / 1e9 == pytest.approx(float(row["total_params_b"]), abs=0.00051)
    assert model.active_params / 1e9 == pytest.approx(float(row["active_params_b"]), abs=0.00051)
    # embedding input table left out; tied models use it as the head
    input_table = 0 if model.is_embedding_tied else model.embedding_params / 2
    assert (model.active_params - input_table) / 1e9 == pytest.approx(
        float(row["active_wo_input_embed_b"]), abs=0.00051
    )


def test_total_parameters_are_near_the_published_ones():
    # counts leave out vision towers and MTP layers: 3 to 10% of the models that have them
    for row in ROWS:
        assert load_model(row["name"]).total_params / 1e9 == pytest.approx(float(row["params_published_b"]), rel=0.1)


def test_every_file_is_listed_once_and_every_listed_file_is_there():
    assert sorted(row["file"] for row in ROWS) == sorted(path.name for path in LIBRARY.glob("*.json"))
    assert len(ROWS) == len({row["name"].casefold() for row in ROWS}) == 154


def test_aliases_stand_for_exactly_one_model():
    pairs = {(alias.casefold(), row["name"]) for row in ROWS for alias in row["aliases"].split("|") if alias}
    aliases = {alias for alias, _ in pairs}
    assert len(aliases) == len(pairs) == 86
    assert not aliases & ({row["name"].casefold() for row in ROWS} - {name.casefold() for _, name in pairs})
    for row in ROWS:
        for alias in filter(None, row["aliases"].split("|")):
            assert load_model(alias).name == load_model(alias.upper()).name == row["name"]


def test_variants_stand_for_a_model_of_their_shape():
    canonical = {row["name"] for row in ROWS}
    for row in ROWS:
        for variant in filter(None, row["hf_variants"].split("|")):
            name = variant.partition(" (")[0]
            assert load_model(name).name == (name if name in canonical else row["name"])


def test_a_variants_difference_is_applied():
    assert load_model("Qwen/Qwen3-4B").max_context_tokens == 40960
    assert load_model("Qwen/Qwen3-4B-Instruct-2507").max_context_tokens == 262144
    assert load_model("mistralai/Mistral-7B-Instruct-v0.1").layers[0].window_tokens == 4096
    assert load_model("mistralai/Mistral-7B-Instruct-v0.2").layers[0].window_tokens is None
    assert load_model("nvidia/Qwen3.6-27B-NVFP4").native_precision == "nvfp4"
    assert load_model("Qwen/Qwen3.6-27B").native_precision == "bf16"


def test_every_difference_of_a_variant_is_understood():
    differences = {text for row in ROWS for text in re.findall(r"\(([^)]*)\)", row["hf_variants"])}
    assert {text for text in differences if not text.isdigit()} == {"unquantised", "no sliding window"}


@pytest.mark.parametrize(
    ("name", "precision"),
    [
        ("meta-llama/Llama-3.1-8B", "bf16"),
        ("nvidia/Llama-3.1-8B-Instruct-FP8", "fp8"),
        ("nvidia/Llama-3.3-70B-Instruct-FP4", "nvfp4"),
        ("deepseek-ai/DeepSeek-V3", "fp8"),
        ("nvidia/DeepSeek-V3.1-NVFP4", "nvfp4"),
        ("moonshotai/Kimi-K2-Thinking", "int4"),
        ("moonshotai/Kimi-K2.5", "int4"),
        ("openai/gpt-oss-20b", "mxfp4"),
        ("zai-org/GLM-4.7-FP8", "fp8"),
        ("Qwen/Qwen3-32B-FP8-Static-PerTensor", "fp8"),
        ("TheBloke/OpenHermes-2.5-Mistral-7B-GPTQ", "int4"),
        ("EleutherAI/gpt-j-6b", "fp32"),
    ],
)
def test_native_precision(name, precision):
    assert load_model(name).native_precision == precision


@pytest.mark.parametrize("end", ["FP8", "NVFP4", "FP4"])
def test_the_name_of_a_quantised_checkpoint_agrees_with_its_config(end):
    for row in ROWS:
        if row["name"].endswith(end):
            assert load_model(row["name"]).native_precision == {"FP4": "nvfp4"}.get(end, end.lower())


@pytest.mark.parametrize("name", ["Llama-2-7b-hf", "LLAMA-2-7B-HF", "llama-2-7b", " meta-llama/Llama-2-7b-hf "])
def test_names_are_forgiving(name):
    assert load_model(name).name == "meta-llama/Llama-2-7b-hf"


@pytest.mark.parametrize("name", ["meta-llama/Llama-3.1-9B", "llama-3.1-8", "qwen3 32b"])
def test_an_unknown_name_brings_close_matches_and_the_way_out(name):
    with pytest.raises(DataMissingError) as caught:
        load_model(name)
    assert "Did you mean" in str(caught.value)
    assert "config.json" in caught.value.hint


@pytest.mark.parametrize("name", ["", "   ", "no/such-thing-xyz", "a\0b", "x" * 5000])
def test_an_unknown_name_is_missing_data(name):
    with pytest.raises(DataMissingError):
        load_model(name)


@pytest.mark.parametrize(
    ("name", "bytes_per_token"),
    [
        ("Llama-3.1-8B", 131072),  # 128 KiB
        ("Llama-2-7B", 524288),
        ("Llama-3.1-70B", 327680),
        ("01-ai/Yi-34B-200K", 245760),
        ("DeepSeek-V3", 61 * 576 * 2),
        ("DeepSeek-V3.2", 61 * (576 + 128) * 2),  # with the indexer's keys
        ("GLM-5.2", (78 * 576 + 21 * 128) * 2),  # 21 layers have an indexer of their own
        ("Qwen/Qwen3-Next-80B-A3B-Thinking", 12 * 2 * 2 * 256 * 2),  # 12 of 48 layers cache
        ("NVIDIA-Nemotron-Nano-9B-v2", 4 * 2 * 8 * 128 * 2),  # 4 of 56 layers cache
        ("tiiuae/falcon-7b", 32 * 2 * 64 * 2),  # multi-query
        ("DeciLM-7B", 32 * 2 * 4 * 128 * 2),
        ("gpt-oss-20b", 24 * 2 * 8 * 64 * 2),
        ("nvidia/Llama-3_3-Nemotron-Super-49B-v1", 49 * 2 * 8 * 128 * 2),  # 31 of 80 layers have no attention
    ],
)
def test_kv_bytes_per_token(name, bytes_per_token):
    assert kv_cache_bytes(load_model(name), 1) == bytes_per_token


def test_windows_cap_the_cache():
    gemma = load_model("google/gemma-3-27b-it")
    windows = {group.mixer: (group.count, group.window_tokens) for group in gemma.layers}
    assert windows == {MixerKind.SLIDING_WINDOW: (52, 1024), MixerKind.FULL_ATTENTION: (10, None)}
    per_layer = 2 * 16 * 128 * 2
    assert kv_cache_bytes(gemma, 32768) == per_layer * (10 * 32768 + 52 * 1024)
    assert kv_cache_bytes(load_model("google/gemma-2-9b"), 8192) == 2 * 8 * 256 * 2 * 21 * (8192 + 4096)
    scout = load_model("meta-llama/Llama-4-Scout-17B-16E-Instruct")
    assert sorted((group.count, group.window_tokens) for group in scout.layers) == [(12, None), (36, 8192)]
    gpt_oss = load_model("gpt-oss-120b")
    assert {group.window_tokens: group.count for group in gpt_oss.layers} == {128: 18, None: 18}
    assert load_model("Qwen/Qwen2.5-7B").layers[0].window_tokens is None  # use_sliding_window is false


def test_mimo_has_other_heads_in_its_windows():
    shapes = {(g.mixer.value, g.n_kv_heads, g.head_dim, g.value_head_dim) for g in load_model("MiMo-V2-Flash").layers}
    assert shapes == {("full", 4, 192, 128), ("window", 8, 192, 128)}


def test_latent_attention_is_one_vector_for_all_heads():
    group = load_model("DeepSeek-V3.2").layers[-1]
    assert (group.mixer, group.n_kv_heads, group.head_dim, group.value_head_dim) == (
        MixerKind.LATENT_ATTENTION,
        1,
        576,
        512,
    )
    assert (group.prefill_head_dim, group.prefill_value_head_dim) == (192, 128)
    assert group.attended_tokens_cap == 2048
    assert load_model("DeepSeek-V3").layers[-1].attended_tokens_cap is None


def test_recurrent_states():
    # 36 layers: 32 heads x 128 x 128 of state, and three steps of an 8192-wide convolution, 16 bit
    assert state_bytes(load_model("Qwen/Qwen3-Next-80B-A3B-Thinking")) == 36 * 2 * (32 * 128 * 128 + 3 * 8192)
    # Nemotron 3 names float32 for the state: 40 Mamba layers of 128 heads x 64 x 128
    super_ = load_model("nvidia/NVIDIA-Nemotron-3-Super-120B-A12B-FP8")
    assert state_bytes(super_) == 40 * (4 * 128 * 64 * 128 + 2 * 3 * (128 * 64 + 2 * 8 * 128))
    assert state_bytes(load_model("Llama-3.1-8B")) == 0


def test_mixture_of_experts():
    (group,) = load_model("Mixtral-8x7B").layers
    assert (group.n_experts, group.n_active_experts) == (8, 2)
    assert group.expert_params == 3 * 4096 * 14336
    assert group.mlp_params - group.mlp_active_params == 6 * group.expert_params
    latent = next(g for g in load_model("nvidia/NVIDIA-Nemotron-3-Super-120B-A12B-FP8").layers if g.n_experts)
    assert latent.expert_params == 2 * 1024 * 2688  # experts work in the latent width
    dense_first = load_model("DeepSeek-V3").layers
    assert [(g.count, g.n_experts) for g in dense_first] == [(3, 0), (58, 256)]
    maverick = load_model("Llama-4-Maverick-17B-128E")
    assert sum(g.count for g in maverick.layers if g.n_experts) == 24


def test_layers_are_all_counted():
    for row in ROWS:
        config = json.loads((LIBRARY / row["file"]).read_text(encoding="utf-8"))
        config = config.get("text_config", config)
        named = [config[key] for key in ("num_hidden_layers", "n_layer", "n_layers") if key in config]
        wanted = named[0] if named else len(config["layers_block_type"])
        assert load_model(row["name"]).n_layers == wanted


def test_the_list_is_complete_ordered_and_fast():
    start = time.process_time()
    models = list_models()
    seconds = time.process_time() - start
    assert seconds < 1.5  # 0.07 s on the reference machine
    assert [model.name for model in models] == sorted((row["name"] for row in ROWS), key=str.casefold)
    for model in models:
        assert 0 < model.active_params <= model.total_params
        assert model.kv_bytes_per_token > 0
        assert model.max_context_tokens >= 2048
        assert model.confidence in {"read", "computed", "recalled"}


def test_a_record_says_what_the_library_knows():
    record = load_record("gpt-oss-120b")
    assert (record.family, record.aliases) == ("gpt_oss", ("gpt-oss-120b",))
    assert "aiconfigurator" in record.architecture.source
    assert load_record("gemma-3-27b-it").family == "gemma3_text"
