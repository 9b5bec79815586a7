"""A user's own config.json."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.catalog.models import architecture_from_config, load_model
from planner.domain.model import MixerKind
from planner.domain.precision import kv_cache_bytes
from planner.errors import DataMissingError, InputError, PlannerError, UnsupportedFormatError

LIBRARY = Path(__file__).parents[2] / "catalogs" / "models"
LLAMA = json.loads((LIBRARY / "meta-llama--Llama-3.1-8B.json").read_text(encoding="utf-8"))


def read(config):
    return architecture_from_config(config, name="mine", source="mine/config.json", confidence="user")


# Published sizes of models outside of the library, by the dimensions that their configs name.
OUTSIDE = {
    "gpt2": (
        124_439_808,
        {"model_type": "gpt2", "n_embd": 768, "n_head": 12, "n_layer": 12, "n_positions": 1024, "vocab_size": 50257},
    ),
    "pythia-6.9b": (
        6_857_302_016,
        {
            "model_type": "gpt_neox", "hidden_size": 4096, "intermediate_size": 16384, "num_attention_heads": 32,
            "num_hidden_layers": 32, "max_position_embeddings": 2048, "vocab_size": 50432,
        },
    ),
    "starcoder": (
        15_517_456_384,
        {
            "model_type": "gpt_bigcode", "n_embd": 6144, "n_inner": 24576, "n_head": 48, "n_layer": 40,
            "n_positions": 8192, "vocab_size": 49152, "multi_query": True,
        },
    ),
    "command-r": (
        34_980_831_232,
        {
            "model_type": "cohere", "hidden_size": 8192, "intermediate_size": 22528, "num_attention_heads": 64,
            "num_key_value_heads": 64, "num_hidden_layers": 40, "max_position_embeddings": 8192, "vocab_size": 256000,
        },
    ),
    "qwen1.5-moe-a2.7b": (
        14_315_784_192,
        {
            "model_type": "qwen2_moe", "hidden_size": 2048, "intermediate_size": 5632, "moe_intermediate_size": 1408,
            "shared_expert_intermediate_size": 5632, "num_experts": 60, "num_experts_per_tok": 4,
            "num_attention_heads": 16, "num_key_value_heads": 16, "num_hidden_layers": 24, "vocab_size": 151936,
            "max_position_embeddings": 8192, "decoder_sparse_step": 1, "use_sliding_window": False,
            "sliding_window": 32768, "max_window_layers": 21, "tie_word_embeddings": False,
        },
    ),
    "olmoe-1b-7b": (
        6_919_161_856,
        {
            "model_type": "olmoe", "hidden_size": 2048, "intermediate_size": 1024, "num_experts": 64,
            "num_experts_per_tok": 8, "num_attention_heads": 16, "num_key_value_heads": 16, "num_hidden_layers": 16,
            "max_position_embeddings": 4096, "vocab_size": 50304,
        },
    ),
    "granite-3.1-8b": (
        8_170_848_256,
        {
            "model_type": "granite", "hidden_size": 4096, "intermediate_size": 12800, "num_attention_heads": 32,
            "num_key_value_heads": 8, "num_hidden_layers": 40, "max_position_embeddings": 131072, "vocab_size": 49155,
        },
    ),
    "falcon-7b": (  # the published file says 71 key-value heads, but multi_query makes it one
        6_921_720_704,
        {
            "model_type": "falcon", "hidden_size": 4544, "num_attention_heads": 71, "num_kv_heads": 71,
            "num_hidden_layers": 32, "multi_query": True, "new_decoder_architecture": False, "vocab_size": 65024,
        },
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", OUTSIDE)
def test_models_outside_of_the_library(name):
    total, config = OUTSIDE[name]
    model = read(config)
    assert model.total_params == total
    assert model.confidence == "user"


def test_multi_query_attention_caches_one_head():
    assert kv_cache_bytes(read(OUTSIDE["falcon-7b"][1]), 1) == 32 * 2 * 64 * 2
    assert kv_cache_bytes(read(OUTSIDE["starcoder"][1]), 1) == 40 * 2 * 128 * 2


@pytest.mark.parametrize("form", ["file", "folder", "relative", "name"])
def test_paths(tmp_path, form):
    folder = tmp_path / "my-model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(LLAMA), encoding="utf-8")
    text = {
        "file": str(folder / "config.json"),
        "folder": str(folder),
        "relative": "./my-model/config.json",
        "name": "my-model",
    }[form]
    model = load_model(text, base_dir=tmp_path)
    assert model.name == text
    assert model.total_params == load_model("Llama-3.1-8B").total_params
    assert model.source.endswith("config.json")


@pytest.mark.parametrize("text", ["~nobody-has-this-name/config.json", "./no/config.json", "/no/such/folder", "x.json"])
def test_a_missing_file(tmp_path, text):
    with pytest.raises(InputError, match="no such file"):
        load_model(text, base_dir=tmp_path)


@pytest.mark.parametrize(
    "content", [b"", b"{", b"\xff\xfe\x00", b"[1]", b"7", b"[" * 100_000, b'{"vocab_size": ' + b"9" * 5000 + b"}"]
)
def test_a_broken_file(tmp_path, content):
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(InputError) as caught:
        load_model("./config.json", base_dir=tmp_path)
    assert caught.value.where is not None
    assert caught.value.where.path.endswith("config.json")


def test_a_broken_file_names_the_line(tmp_path):
    (tmp_path / "config.json").write_text('{\n"a": 1,\n oops\n}', encoding="utf-8")
    with pytest.raises(InputError) as caught:
        load_model(str(tmp_path))
    assert (caught.value.where.line, caught.value.where.column) == (3, 2)


def test_a_file_of_another_kind_is_not_read_whole(tmp_path):
    with (tmp_path / "weights.json").open("wb") as stream:
        stream.truncate(6_000_000)
    with pytest.raises(InputError, match="6,000,000 bytes"):
        load_model("./weights.json", base_dir=tmp_path)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("hidden_size", None),
        ("num_hidden_layers", 0),
        ("num_hidden_layers", 10**7),
        ("num_attention_heads", "32"),
        ("num_key_value_heads", 5),
        ("intermediate_size", 14336.5),
        ("vocab_size", True),
        ("max_position_embeddings", None),
        ("tie_word_embeddings", "yes"),
        ("layer_types", ["full_attention"]),
        ("quantization_config", "fp8"),
    ],
)
def test_a_bad_field_is_named(field, value):
    with pytest.raises(InputError) as caught:
        read(LLAMA | {field: value})
    assert caught.value.where.field == field
    assert field in str(caught.value)


def test_a_field_of_the_language_part_is_named_with_its_place():
    config = json.loads((LIBRARY / "google--gemma-3-27b-it.json").read_text(encoding="utf-8"))
    del config["text_config"]["hidden_size"]
    with pytest.raises(InputError) as caught:
        read(config)
    assert caught.value.where.field == "text_config.hidden_size"


def test_an_unknown_model_type_is_assumed_to_be_a_llama_and_says_so():
    model = read(LLAMA | {"model_type": "brandnew"})
    assert model.confidence == "assumed"
    assert model.total_params == load_model("Llama-3.1-8B").total_params


@pytest.mark.parametrize(
    "strange",
    [{"mamba_num_heads": 8}, {"is_encoder_decoder": True}, {"architectures": ["BertForMaskedLM"]}, {"rwkv_x": 1}],
)
def test_an_unknown_model_type_of_another_structure_is_refused(strange):
    with pytest.raises(UnsupportedFormatError, match="measured profiles"):
        read(LLAMA | {"model_type": "brandnew"} | strange)


@pytest.mark.parametrize(
    ("file", "change"),
    [
        ("google--gemma-4-26B-A4B.json", {"num_kv_shared_layers": 20}),
        ("google--gemma-4-26B-A4B.json", {"hidden_size_per_layer_input": 256}),
        ("google--gemma-4-26B-A4B.json", {"layer_types": ["quantum_attention"] * 30}),
    ],
)
def test_structures_that_are_not_modelled_are_refused(file, change):
    config = json.loads((LIBRARY / file).read_text(encoding="utf-8"))
    config["text_config"] |= change
    with pytest.raises(UnsupportedFormatError) as caught:
        read(config)
    assert caught.value.where.field == "text_config." + next(iter(change))


def test_a_window_over_the_last_layers():
    config = json.loads((LIBRARY / "Qwen--Qwen2.5-7B.json").read_text(encoding="utf-8"))
    config |= {"use_sliding_window": True, "sliding_window": 4096, "max_window_layers": 20}
    assert {group.mixer: group.count for group in read(config).layers} == {
        MixerKind.FULL_ATTENTION: 20,
        MixerKind.SLIDING_WINDOW: 8,
    }


def test_yarn_stretches_the_context():
    scaling = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}
    assert read(LLAMA | {"max_position_embeddings": 32768, "rope_scaling": scaling}).max_context_tokens == 131072


@pytest.mark.parametrize(
    ("config", "precision", "mlp_bytes"),
    [
        ({"quant_method": "gptq", "bits": 4, "group_size": 128, "sym": True}, "int4", 0.5 + 2 / 128),
        ({"quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": True}, "int4", 0.5 + 2.5 / 128),
        ({"quant_method": "gptq", "bits": 8}, "int8", 1),
        ({"quant_method": "bitsandbytes", "load_in_8bit": True}, "int8", 1),
        ({"quant_method": "fbgemm_fp8"}, "fp8", 1),
        (
            {"quant_method": "compressed-tensors", "config_groups": {"g": {"weights": {"num_bits": 8, "type": "int"}}}},
            "int8",
            1,
        ),
        ({"quant_method": "something new"}, "bf16", None),
    ],
)  # fmt: skip
def test_quantised_checkpoints(config, precision, mlp_bytes):
    model = read(LLAMA | {"quantization_config": config})
    assert model.native_precision == precision
    assert model.native_mlp_bytes == mlp_bytes


FILES = sorted(LIBRARY.glob("*.json"))
JUNK = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 10**30),
    st.floats(),
    st.text(max_size=5),
    st.lists(st.one_of(st.none(), st.integers(-2, 3), st.text(max_size=3), st.just({})), max_size=3),
    st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
)


@given(data=st.data())
def test_no_config_breaks_the_reader(data):
    """Whatever stands in a config, the reader gives a model or an error of ours."""
    config = json.loads(data.draw(st.sampled_from(FILES)).read_text(encoding="utf-8"))
    target = config
    if "text_config" in config and data.draw(st.booleans()):
        target = config["text_config"]
    for key in data.draw(st.lists(st.sampled_from(sorted(target)), min_size=1, max_size=3)):
        target[key] = data.draw(JUNK)
    try:
        model = read(config)
    except PlannerError:
        return
    assert model.total_params > 0
    assert model.active_params <= model.total_params


def test_a_missing_model_is_not_a_traceback_for_odd_paths(tmp_path):
    with pytest.raises((InputError, DataMissingError)):
        load_model("./\0.json", base_dir=tmp_path)
    with pytest.raises((InputError, DataMissingError)):
        load_model("./" + "x" * 5000 + ".json", base_dir=tmp_path)


@pytest.mark.parametrize("factor", [0, -1, True, "4", float("nan"), float("inf")])
def test_a_bad_stretch_is_named(factor):
    scaling = {"rope_type": "yarn", "factor": factor, "original_max_position_embeddings": 32768}
    with pytest.raises(InputError) as caught:
        read(LLAMA | {"rope_scaling": scaling})
    assert caught.value.where.field == "rope_scaling.factor"
