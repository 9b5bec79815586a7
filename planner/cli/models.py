"""`gpuplan models`: the model library, and what a config.json says."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from planner.cli import console
from planner.cli.options import JsonOption
from planner.errors import DataMissingError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from rich.table import Table

    from planner.catalog.models import ModelRecord, ModelSummary
    from planner.domain.model import LayerGroup

app = typer.Typer(add_completion=False)

CONTEXTS_TOKENS = (1024, 8192, 32768)
"""Sequence lengths that `show` gives the KV cache for."""
WIDE_COLUMNS = 90
"""Narrower terminals get fewer columns, so that no number is cut off."""
BILLION = 1e9


@app.command("list")
def list_command(
    family: Annotated[
        str, typer.Option(metavar="TEXT", help="Only model types that begin with TEXT, e.g. qwen3 or llama.")
    ] = "",
    search: Annotated[str, typer.Option(metavar="TEXT", help="Only models with TEXT in their name or aliases.")] = "",
    as_json: JsonOption = False,
) -> None:
    """List the models in the library."""
    from planner.catalog.models import list_models

    models = [model for model in list_models() if _is_wanted(model, family.casefold(), search.casefold())]
    if not models:
        raise DataMissingError(
            "No model in the library is like that.",
            hint="`gpuplan models list` shows all; any other model is read from its config.json.",
        )
    if as_json:
        console.print_json({"models": [asdict(model) for model in models]})
        return
    console.print_result(_list_table(models))
    count = "1 model" if len(models) == 1 else f"{len(models)} models"
    console.note(f"{count}. KV: bytes per token of context at bf16, before attention windows are full.")


def _is_wanted(model: ModelSummary, family: str, search: str) -> bool:
    names = (model.name, *model.aliases)
    return model.family.casefold().startswith(family) and any(search in name.casefold() for name in names)


def _list_table(models: Iterable[ModelSummary]) -> Table:
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    is_wide = console.result_console().width >= WIDE_COLUMNS
    table.add_column("model", overflow="fold")
    for title in ("params", "active", "context", "KV/token"):
        table.add_column(title, justify="right", overflow="fold")
    for title in ("layers", "format", "family") if is_wide else ():
        table.add_column(title, justify="right" if title == "layers" else "left", overflow="fold")
    for model in models:
        numbers = (
            _billions(model.total_params),
            _billions(model.active_params),
            f"{model.max_context_tokens:,}",
            f"{model.kv_bytes_per_token:,.0f}",
        )
        more = (str(model.n_layers), model.native_precision, model.family) if is_wide else ()
        table.add_row(model.name, *numbers, *more)
    return table


@app.command("show")
def show_command(
    model: Annotated[
        str, typer.Argument(metavar="NAME_OR_CONFIG", help="A model's name or alias, or the path of its config.json.")
    ],
    as_json: JsonOption = False,
) -> None:
    """Show a model's parameters, memory and layers."""
    from planner.catalog.models import load_record

    document = _describe(load_record(model))
    if as_json:
        console.print_json(document)
        return
    console.print_result(*_show_tables(document))
    if document["confidence"] == "assumed":
        console.note(
            f"The model type {document['family']!r} is not known: it was read as a Llama-like transformer. "
            "Compare the parameter count with the published one."
        )


def _describe(record: ModelRecord) -> dict[str, Any]:
    from planner.domain.precision import BYTES_PER_PARAMETER, kv_cache_bytes, state_bytes, weight_bytes

    model = record.architecture
    return {
        "name": model.name,
        "family": record.family,
        "aliases": list(record.aliases),
        "variants": list(record.variants),
        "total_params": model.total_params,
        "active_params": model.active_params,
        "native_precision": model.native_precision,
        "weight_bytes": {precision: weight_bytes(model, precision) for precision in BYTES_PER_PARAMETER},
        "kv_bytes_per_token": kv_cache_bytes(model, 1),
        "kv_bytes_per_sequence": {str(tokens): kv_cache_bytes(model, tokens) for tokens in CONTEXTS_TOKENS},
        "state_bytes_per_sequence": state_bytes(model),
        "max_context_tokens": model.max_context_tokens,
        "hidden_size": model.hidden_size,
        "vocab_size": model.vocab_size,
        "is_embedding_tied": model.is_embedding_tied,
        "n_layers": model.n_layers,
        "layers": [_describe_layers(group) for group in model.layers],
        "source": model.source,
        "confidence": model.confidence,
        "notes": record.notes,
    }


def _describe_layers(group: LayerGroup) -> dict[str, Any]:
    return {
        "count": group.count,
        "mixer": group.mixer.value,
        "query_heads": group.n_query_heads,
        "kv_heads": group.n_kv_heads,
        "head_dim": group.head_dim,
        "window_tokens": group.window_tokens,
        "attended_tokens_cap": group.attended_tokens_cap,
        "kv_elements_per_token": group.kv_elements_per_token,
        "experts": group.n_experts,
        "active_experts": group.n_active_experts,
        "params": group.mixer_params + group.mlp_params,
    }


def _show_tables(document: dict[str, Any]) -> tuple[Table, Table, Table]:
    from planner.units import format_bytes

    facts = _pairs("")
    facts.add_row("model", document["name"])
    facts.add_row("family", document["family"])
    for key in ("aliases", "variants"):
        if document[key]:
            facts.add_row(key, ", ".join(document[key]))
    active = f", {_billions(document['active_params'])} active"
    is_sparse = document["active_params"] < document["total_params"]
    facts.add_row("parameters", _billions(document["total_params"]) + (active if is_sparse else ""))
    facts.add_row("published in", document["native_precision"])
    facts.add_row("context", f"{document['max_context_tokens']:,} tokens")
    for key in ("source", "confidence", "notes"):
        if document[key]:
            facts.add_row(key, document[key])
    memory = _pairs("memory")
    for precision, size in document["weight_bytes"].items():
        memory.add_row(f"weights {precision}", format_bytes(size))
    memory.add_row("KV per token, bf16", f"{document['kv_bytes_per_token']:,.0f} B")
    for tokens, size in document["kv_bytes_per_sequence"].items():
        memory.add_row(f"KV of {int(tokens):,} tokens, bf16", format_bytes(size))
    if document["state_bytes_per_sequence"]:
        memory.add_row("state per sequence", format_bytes(document["state_bytes_per_sequence"]))
    return facts, memory, _layer_table(document["layers"])


def _pairs(title: str) -> Table:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, show_header=False, title=title or None, title_justify="left")
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    return table


def _layer_table(layers: Iterable[dict[str, Any]]) -> Table:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, title="layers", title_justify="left")
    for title in ("count", "mixer", "heads", "KV heads", "head dim", "window", "experts", "params"):
        table.add_column(title, justify="left" if title == "mixer" else "right", overflow="fold")
    for group in layers:
        experts = f"{group['active_experts']}/{group['experts']}" if group["experts"] else "-"
        has_heads = group["query_heads"] > 0
        table.add_row(
            str(group["count"]),
            group["mixer"],
            str(group["query_heads"]) if has_heads else "-",
            str(group["kv_heads"]) if has_heads else "-",
            str(group["head_dim"]) if has_heads else "-",
            f"{group['window_tokens']:,}" if group["window_tokens"] else "-",
            experts,
            _billions(group["params"]),
        )
    return table


def _billions(params: float) -> str:
    return f"{params / BILLION:.2f} B" if params >= BILLION else f"{params / 1e6:.0f} M"
