"""`gpuplan schema`: the JSON Schemas of what gpuplan reads and writes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from planner.cli import console
from planner.cli.options import ForceOption, OutputOption
from planner.errors import ExitCode, InputError

DIALECT = "https://json-schema.org/draft/2020-12/schema"


def command(
    name: Annotated[
        str | None, typer.Argument(help="plan-request, melange-config, plan or step-times; without it: their names.")
    ] = None,
    output: OutputOption = None,
    check: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Compare all schemas with the files in FOLDER; exit 5 if they differ."),
    ] = None,
    write: Annotated[Path | None, typer.Option(metavar="FOLDER", help="Write all schemas into FOLDER.")] = None,
    force: ForceOption = False,
) -> int:
    """Print a JSON Schema, for editors and for checking documents."""
    if check is not None:
        return _check(check)
    if write is not None:
        for known in SCHEMAS:
            console.write_result(str(write / file_name(known)), console.to_json(schema(known)), force=True)
        return int(ExitCode.OK)
    if name is None:
        console.print_result(*SCHEMAS)
        return int(ExitCode.OK)
    console.write_result(output or "-", console.to_json(schema(name)), force=force)
    return int(ExitCode.OK)


def _plan_request() -> dict[str, Any]:
    from planner.files.request import PlanRequest

    return PlanRequest.model_json_schema()


def _melange_config() -> dict[str, Any]:
    from planner.files.melange import MelangeConfig

    return MelangeConfig.model_json_schema()


def _plan() -> dict[str, Any]:
    from planner.files.plan_schema import plan_json_schema

    return plan_json_schema()


def _step_times() -> dict[str, Any]:
    from planner.profilers.kernels.document import step_times_json_schema

    return step_times_json_schema()


SCHEMAS = {
    "plan-request": _plan_request,
    "melange-config": _melange_config,
    "plan": _plan,
    "step-times": _step_times,
}


def schema(name: str) -> dict[str, Any]:
    """Return the JSON Schema called `name`.

    Raises
    ------
    InputError: if there is none.
    """
    if name not in SCHEMAS:
        raise InputError(f"There is no schema {name!r}.", hint=f"Schemas: {', '.join(SCHEMAS)}.")
    return {"$schema": DIALECT, **SCHEMAS[name]()}


def file_name(name: str) -> str:
    """Return the file that the schema called `name` is committed as."""
    return f"{name}.schema.json"


def _check(folder: Path) -> int:
    drifted = []
    for name in SCHEMAS:
        path = folder / file_name(name)
        if not path.is_file() or path.read_text(encoding="utf-8") != console.to_json(schema(name)):
            drifted.append(str(path))
    if drifted:
        console.note(f"Out of date: {', '.join(drifted)}. Run: gpuplan schema --write {folder}")
        return int(ExitCode.CHECK_FAILED)
    console.note(f"{len(SCHEMAS)} schemas in {folder} are up to date.")
    return int(ExitCode.OK)
