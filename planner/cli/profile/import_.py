"""`gpuplan profile import`: benchmark files of other tools, read into a profile file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from planner.cli import console
from planner.cli.options import ForceOption, JsonOption, check_targets, suffix_of
from planner.cli.profile.show import points_table
from planner.errors import InputError, Where

if TYPE_CHECKING:
    from collections.abc import Sequence

    from planner.planning.profile_import import Imported
    from planner.profilers.importers.base import Given
    from planner.profilers.schema import MeasuredPoint

PROFILE = "profile"
AIBRIX = "aibrix"
SHOWN_REASONS = 10
"""Reasons for leaving something out that are shown; --json has all."""


def command(
    files: Annotated[
        list[Path],
        typer.Argument(metavar="FILE...", help="Results, or folders of them (a sweep's).", show_default=False),
    ],
    output: Annotated[
        str | None,
        typer.Option("--output", "-o", metavar="FILE", help="Write a profile (.csv or .json); - is stdout."),
    ] = None,
    to: Annotated[str, typer.Option(metavar="FORMAT", help="What -o writes: profile, or aibrix (.json).")] = PROFILE,
    append: Annotated[bool, typer.Option("--append", help="Add to the profile -o; doubles are skipped.")] = False,
    format_name: Annotated[
        str | None, typer.Option("--format", metavar="NAME", help="Insist on a format; default: by content.")
    ] = None,
    model: Annotated[str, typer.Option(metavar="NAME", help="Model that was served, or its config.json.")] = "",
    gpu: Annotated[str, typer.Option(metavar="NAME", help="GPU, in any spelling.")] = "",
    tp: Annotated[int | None, typer.Option(metavar="N", help="Tensor-parallel GPUs.")] = None,
    pp: Annotated[int | None, typer.Option(metavar="N", help="Pipeline stages; 1 if nobody says.")] = None,
    ep: Annotated[int | None, typer.Option(metavar="N", help="Expert-parallel ranks.")] = None,
    engine: Annotated[str, typer.Option(metavar="NAME", help="vllm, sglang, tensorrt-llm, ...")] = "",
    engine_version: Annotated[str, typer.Option(metavar="TEXT", help="Version of the engine.")] = "",
    precision: Annotated[str, typer.Option(metavar="NAME", help="Precision of the weights: bf16, fp8, ...")] = "",
    concurrency: Annotated[float | None, typer.Option(metavar="N", help="Requests kept in flight.")] = None,
    rate: Annotated[float | None, typer.Option(metavar="R", help="Requests sent per second.")] = None,
    batch: Annotated[float | None, typer.Option(metavar="N", help="Size of the static batch.")] = None,
    offline: Annotated[bool, typer.Option("--offline", help="All requests were queued at once.")] = False,
    input_tokens: Annotated[
        str, typer.Option(metavar="N,...", help="Input tokens, where FILE does not say; by row for Mélange.")
    ] = "",
    output_tokens: Annotated[
        str, typer.Option(metavar="N,...", help="Output tokens, where FILE does not say; by column for Mélange.")
    ] = "",
    cost: Annotated[
        str | None, typer.Option(metavar="PRICE", help="Price of a replica in an AIBrix profile; default: 1 USD/h.")
    ] = None,
    fill_zero: Annotated[
        bool, typer.Option("--fill-zero", help="In an AIBrix profile, write 0 for sizes without a point.")
    ] = False,
    as_json: JsonOption = False,
    force: ForceOption = False,
) -> None:
    """Read other tools' benchmark results into a profile, for `profiles.files` in a request.

    What a file is, is told by its content. What it does not say (GPU, parallelism, engine, precision, ...) is asked
    for; what an option and the file say differently is an error.
    """
    from planner.planning.profile_import import import_files
    from planner.profilers.importers.base import Replica

    _check_outputs(output, to=to, append=append, force=force, as_json=as_json)
    replica = Replica(
        model=model,
        gpu=gpu,
        tensor_parallel=tp,
        pipeline_parallel=pp,
        expert_parallel=ep,
        engine=engine,
        engine_version=engine_version,
        precision=precision,
    )
    given = _given(
        replica,
        loads={"concurrency": concurrency, "request_rate": rate, "static_batch": batch},
        offline=offline,
        input_tokens=input_tokens,
        output_tokens=output_tokens,
    )
    price = _price(cost)
    known = _known(output) if append and output is not None else ()
    imported = import_files(files, given, format_name=format_name, known=known)
    _tell(imported)
    if output is not None:
        text = _text(imported, output, to=to, append=append, cost_usd_per_hour=price, fill_zero=fill_zero)
        if text is not None:
            console.write_result(output, text, force=force or append)
    if as_json:
        console.print_json(_document(imported))
    elif output is None:
        console.print_result(points_table(imported.points))


def _check_outputs(output: str | None, *, to: str, append: bool, force: bool, as_json: bool) -> None:
    if to not in {PROFILE, AIBRIX}:
        raise InputError(f"{to!r} is no format that can be written.", hint=f"Use {PROFILE} or {AIBRIX}.")
    if output is None:
        if append or to == AIBRIX:
            raise InputError(f"{'--append' if append else f'--to {to}'} needs a file to write.", hint="Pass -o FILE.")
        return
    if output == "-" and (as_json or append):
        raise InputError(
            f"-o - and {'--json' if as_json else '--append'} exclude each other.", hint="Drop one of them."
        )
    if append and (to == AIBRIX or suffix_of(output) != ".csv"):
        raise InputError("Only a profile file (.csv) can be added to.", where=Where(path=output))
    suffixes = (".json",) if to == AIBRIX else (".csv", ".json")
    check_targets([output], suffixes=suffixes, force=force or append)


def _given(
    replica: Any,  # noqa: ANN401 - a Replica, whose module is imported late
    *,
    loads: dict[str, float | None],
    offline: bool,
    input_tokens: str,
    output_tokens: str,
) -> Given:
    from planner.profilers.importers.base import Given

    options = {"concurrency": "--concurrency", "request_rate": "--rate", "static_batch": "--batch"}
    stated = [(kind, load) for kind, load in loads.items() if load is not None]
    if len(stated) + offline > 1:
        raise InputError("--concurrency, --rate, --batch and --offline exclude each other.")
    for kind, load in stated:
        if not 0 < load < float("inf"):
            raise InputError(f"{options[kind]} {load:g} is not a positive number.")
    return Given(
        replica=replica,
        load_kind=next((kind for kind, _ in stated), "offline_max" if offline else ""),
        load=next((load for _, load in stated), None),
        input_tokens=_sizes(input_tokens, "--input-tokens"),
        output_tokens=_sizes(output_tokens, "--output-tokens"),
    )


def _sizes(text: str, option: str) -> tuple[float, ...]:
    if not text:
        return ()
    try:
        sizes = tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise InputError(f"{option} {text!r} is no list of numbers.", hint="Write e.g. 128,512,2048.") from error
    if not all(0 < size < float("inf") for size in sizes):
        raise InputError(f"{option} {text!r} holds a size that is not positive.")
    return sizes


def _price(cost: str | None) -> float:
    from planner.units import parse_usd_per_hour

    return 1.0 if cost is None else parse_usd_per_hour(cost)


def _known(output: str) -> tuple[MeasuredPoint, ...]:
    from planner.profilers.schema import read_profile_file

    return read_profile_file(Path(output), with_unusable=True) if Path(output).exists() else ()


def _tell(imported: Imported) -> None:
    for remark in imported.remarks:
        console.note(f"{remark}.")
    for reason in imported.left_out[:SHOWN_REASONS]:
        console.note(f"Left out: {reason}.")
    if len(imported.left_out) > SHOWN_REASONS:
        console.note(f"{len(imported.left_out) - SHOWN_REASONS} more were left out; --json lists them.")
    if imported.n_doubles:
        console.note(f"{imported.n_doubles} points were there already and are skipped.")


def _text(
    imported: Imported, output: str, *, to: str, append: bool, cost_usd_per_hour: float, fill_zero: bool
) -> str | None:
    """Return what to write; None if the file stays as it is."""
    from planner.planning.profile_import import appended
    from planner.profilers.importers.solvers import aibrix_profile
    from planner.profilers.schema import points_csv

    if to == AIBRIX:
        return aibrix_profile(imported.points, cost_usd_per_hour=cost_usd_per_hour, fill_zero=fill_zero)
    if append and Path(output).exists():
        if not imported.points:
            console.note(f"{output} stays as it is.")
            return None
        return appended(Path(output).read_text(encoding="utf-8-sig"), output, imported.points)
    if suffix_of(output) == ".json" and output != "-":
        return console.to_json(_document(imported))
    return points_csv(imported.points)


def _document(imported: Imported) -> dict[str, Any]:
    return {
        "schema_version": "1",
        "kind": "Profile",
        "points": _records(imported.points),
        "left_out": list(imported.left_out),
        "doubles": imported.n_doubles,
        "remarks": list(imported.remarks),
    }


def _records(points: Sequence[MeasuredPoint]) -> list[dict[str, float | str]]:
    from planner.profilers.schema import point_record

    return [point_record(point) for point in points]
