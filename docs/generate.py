"""Writes docs/reference/request.md from the field descriptions of the schemas, which are their single source."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from planner.files.melange import MelangeConfig
from planner.files.request import PlanRequest

PAGE = Path(__file__).resolve().parent / "reference" / "request.md"

INTRODUCTION = """# What `gpuplan plan` reads

A request is YAML or JSON, and of one of three kinds, told apart by their keys. An unknown key is an error.
Durations, rates, money and power carry their unit (`30s`, `30 req/s`, `2.49 USD/h`, `40kW`, `10%`); a bare number is
refused where its unit would be a guess. This page is generated from the schemas; `gpuplan schema plan-request` and
`gpuplan schema melange-config` print them as JSON Schema.

- **PlanRequest**: services with a model, traffic and objectives. `gpuplan init` writes a commented one.
- **Mélange's config** as published: `gpu_info`, `workload_distribution`, `total_request_rate`, `slice_factor`.
- **The same for several services**: `services: {NAME: {workload_distribution, total_request_rate}}` instead of the two
  workload keys, and `tputs: {NAME: [[...]]}` in every GPU.
"""


def type_name(node: dict[str, Any], definitions: dict[str, Any]) -> str:
    """Return a field's type in words."""
    if "$ref" in node:
        name = node["$ref"].rsplit("/", 1)[-1]
        target = definitions[name]
        return type_name(target, definitions) if "enum" in target else f"[{name}](#{name.lower()})"
    if "const" in node or "enum" in node:
        return " or ".join(f"`{value}`" for value in node.get("enum", [node.get("const")]))
    if "anyOf" in node:
        branches = (branch for branch in node["anyOf"] if branch.get("type") != "null")
        return " or ".join(dict.fromkeys(type_name(branch, definitions) for branch in branches))
    return container_name(node, definitions)


def container_name(node: dict[str, Any], definitions: dict[str, Any]) -> str:
    """Return the type of a list, a mapping or a scalar in words."""
    if node.get("type") == "array":
        return f"list of {type_name(node['items'], definitions)}"
    if node.get("type") == "object" and isinstance(node.get("additionalProperties"), dict):
        return f"mapping of name to {type_name(node['additionalProperties'], definitions)}"
    kind = node.get("type", "any")
    words = " or ".join(kind) if isinstance(kind, list) else kind
    example = next((example for example in node.get("examples", []) if isinstance(example, str)), None)
    return f"{words}, e.g. `{example}`" if example else words


def default(name: str, node: dict[str, Any], required: list[str]) -> str:
    """Return a field's default in words."""
    if name in required:
        return "**required**"
    value = node.get("default")
    if value is None or value == "" or isinstance(value, dict):
        return ""
    return f"`{value}`"


def describe(node: dict[str, Any], definitions: dict[str, Any]) -> str:
    """Return a field's description; pydantic leaves that of a nested model to the model."""
    return node.get("description") or definitions.get(node.get("$ref", "").rsplit("/", 1)[-1], {}).get(
        "description", ""
    )


def table(definition: dict[str, Any], definitions: dict[str, Any]) -> str:
    """Return one model's fields as a Markdown table."""
    rows = ["| key | what | type | default |", "|---|---|---|---|"]
    required = definition.get("required", [])
    for name, node in definition.get("properties", {}).items():
        what = describe(node, definitions)
        cells = (f"`{name}`", what, type_name(node, definitions), default(name, node, required))
        rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(rows)


def section(title: str, definition: dict[str, Any], definitions: dict[str, Any]) -> str:
    """Return one model's section."""
    return f"## {title}\n\n{definition.get('description', '')}\n\n{table(definition, definitions)}\n"


def page() -> str:
    """Return the whole page."""
    parts = [INTRODUCTION]
    for model in (PlanRequest, MelangeConfig):
        schema = model.model_json_schema()
        definitions = schema.get("$defs", {})
        named = {model.__name__: schema, **definitions}
        parts += [section(name, node, definitions) for name, node in named.items() if node.get("type") == "object"]
    return "\n".join(parts)


def main() -> int:
    """Write the page, or with --check say whether it is up to date."""
    if "--check" in sys.argv:
        return int(not PAGE.is_file() or PAGE.read_text(encoding="utf-8") != page())
    PAGE.write_text(page(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
