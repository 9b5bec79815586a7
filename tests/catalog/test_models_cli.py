"""`gpuplan models`."""

from __future__ import annotations

import json

import pytest

MODEL_KEYS = {"name", "family", "total_params", "active_params", "n_layers", "max_context_tokens", "kv_bytes_per_token",
              "native_precision", "aliases", "confidence"}  # fmt: skip


def test_list_json(gpuplan):
    ran = gpuplan("models", "list", "--json")
    assert (ran.code, ran.err) == (0, "")
    models = ran.json["models"]
    assert len(models) == 154
    assert all(set(model) == MODEL_KEYS for model in models)


def test_list_filters(gpuplan):
    families = {model["family"] for model in gpuplan("models", "list", "--family", "QWEN3", "--json").json["models"]}
    assert {"qwen3", "qwen3_moe", "qwen3_next"} <= families
    assert all(family.startswith("qwen3") for family in families)
    found = gpuplan("models", "list", "--search", "llama-1-7b", "--json").json["models"]  # an alias
    assert [model["name"] for model in found] == ["huggyllama/llama-7b"]
    assert gpuplan("models", "list", "--search", "no such model").code == 6


@pytest.mark.parametrize("columns", ["60", "200"])
def test_the_list_never_cuts_a_number(gpuplan, monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", columns)
    ran = gpuplan("models", "list")
    assert ran.code == 0
    assert "…" not in ran.out
    assert "1,048,576" in ran.out
    assert "154 models" in ran.err
    assert max(map(len, ran.out.splitlines())) <= int(columns)


def test_show(gpuplan):
    ran = gpuplan("models", "show", "llama-3.1-8b")
    assert ran.code == 0
    for text in ("meta-llama/Llama-3.1-8B", "8.03 B", "131,072 B", "16.1 GB", "4.29 GB", "read"):
        assert text in ran.out


def test_show_json(gpuplan):
    shown = gpuplan("models", "show", "deepseek-v3", "--json").json
    assert shown["kv_bytes_per_token"] == 70272
    assert shown["kv_bytes_per_sequence"] == {"1024": 70272 * 1024, "8192": 70272 * 8192, "32768": 70272 * 32768}
    assert shown["weight_bytes"]["bf16"] == 2 * shown["total_params"]
    assert [(group["count"], group["experts"]) for group in shown["layers"]] == [(3, 0), (58, 256)]


def test_show_a_users_config(gpuplan, tmp_path):
    config = {"model_type": "brandnew", "hidden_size": 1024, "num_hidden_layers": 4, "num_attention_heads": 8,
              "intermediate_size": 4096, "vocab_size": 1000, "max_position_embeddings": 2048}  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    ran = gpuplan("models", "show", tmp_path)
    assert ran.code == 0
    assert "assumed" in ran.out
    assert "not known" in ran.err


@pytest.mark.parametrize(("name", "code"), [("lama-3.1-8b", 6), ("./no/config.json", 2)])
def test_errors(gpuplan, name, code):
    ran = gpuplan("models", "show", name, "--json")
    assert (ran.code, ran.out) == (code, "")
    error = json.loads(ran.err)["error"]
    assert "config.json" in error["hint"]
    assert "Traceback" not in ran.err
