"""Throughput tables of optimizers: Mélange's config and AIBrix's GPUProfile. Both hold the largest rate within an SLO.

Mélange's rows are input buckets and its columns output buckets (arXiv 2404.14527), without their sizes. AIBrix has it
the other way round: tputs[output][input], with `indexes` = [output sizes, input sizes], seconds and the objectives
(aibrix/gpu_optimizer/optimizer/profiling/gen_profile.py). A rate of 0 says that the objective cannot be met there.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, datetime, time
from typing import TYPE_CHECKING, Any

from planner.errors import InputError
from planner.files.slo import parse_slo
from planner.profilers.importers.base import Reading, Replica, Run, all_documents, any_document, day_of_epoch
from planner.profilers.schema import USABLE_SANITY
from planner.units import format_duration

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from planner.domain.slo import Slo
    from planner.profilers.importers.base import Given
    from planner.profilers.importers.content import Content, Node
    from planner.profilers.schema import MeasuredPoint

KIND = "poisson_max_under_slo"
OUR_METRICS = ("ttft", "tpot", "e2e")
THEIR_OTHER_METRICS = ("tput", "tt", "tpat")
"""Objectives of AIBrix's that bound no latency as it is defined here: req/s, tokens/s, s per input and output token."""


def _matrix(node: Node, key: str, shape: tuple[int, int]) -> list[list[float]]:
    """Return the matrix at `key`.

    Raises
    ------
    InputError: if it is no matrix of numbers of this shape.
    """
    rows = node.numbers(key)
    if [len(row) for row in rows] != [shape[1]] * shape[0]:
        found = f"{len(rows)} x {len(rows[0]) if rows else 0}"
        raise InputError(f"The matrix is {found}, not {shape[0]} x {shape[1]}.", where=node.where(key))
    return rows


class Melange:
    """Mélange's config."""

    name = "melange"
    title = "Mélange config (JSON), with the sizes of its buckets as options"

    def matches(self, content: Content) -> bool:
        """Return whether the file is a Mélange config."""
        return len(content.documents) == 1 and any_document(content, "gpu_info")

    def read(self, content: Content, given: Given) -> Reading:
        """Return one run per GPU and bucket that can be served.

        Raises
        ------
        InputError: if the options give no size for every row and column, or the config is not one.
        """
        gpus = content.documents[0].node("gpu_info")
        shape = (len(given.input_tokens), len(given.output_tokens))
        if not all(shape):
            raise InputError(
                "Mélange's config does not say how large its buckets are.",
                hint="Pass --input-tokens N,N,... (one per row) and --output-tokens N,N,... (one per column).",
                where=gpus.where(),
            )
        runs = []
        unmet = 0
        for name in gpus.data:
            gpu = gpus.node(name)
            if isinstance(gpu.raw("tputs"), dict):
                raise InputError("The table is of several services.", hint="Import one.", where=gpu.where("tputs"))
            cost = gpu.number("cost")
            for i, row in enumerate(_matrix(gpu, "tputs", shape)):
                for j, rate in enumerate(row):
                    unmet += not rate
                    if rate:
                        runs.append(
                            Run(
                                where=gpu.where(f"tputs[{i}][{j}]"),
                                label=f"{name} bucket {i},{j}",
                                tool="melange",
                                replica=Replica(gpu=name),
                                input_tokens=given.input_tokens[i],
                                output_tokens=given.output_tokens[j],
                                load_kind=KIND,
                                rate_rps=rate,
                                notes=(f"{cost:g} USD/h in the config",) if cost else (),
                            )
                        )
        left_out = (f"buckets whose rate is 0, as the objective cannot be met: {unmet}",) if unmet else ()
        return Reading(runs=tuple(runs), left_out=left_out, is_table=True)


class AiBrix:
    """AIBrix's GPUProfile."""

    name = "aibrix"
    title = "AIBrix GPUProfile (JSON)"

    def matches(self, content: Content) -> bool:
        """Return whether every object of the file is a GPUProfile."""
        return all_documents(content, "gpu", "tputs", "indexes")

    def read(self, content: Content, given: Given) -> Reading:  # noqa: ARG002 - the file says all that can be used
        """Return one run per size that can be served. `gpu` is the name of a deployment, not always of a GPU.

        Raises
        ------
        InputError: if the tables do not fit their indexes, or an objective is not one.
        """
        runs: list[Run] = []
        unmet = 0
        for node in content.documents:
            found, empty = self._profile(node)
            runs += found
            unmet += empty
        left_out = (f"sizes whose rate is 0, as the objective cannot be met: {unmet}",) if unmet else ()
        return Reading(runs=tuple(runs), left_out=left_out, is_table=len(content.documents) > 1)

    def _profile(self, node: Node) -> tuple[list[Run], int]:
        outputs, inputs = self._indexes(node)
        shape = (len(outputs), len(inputs))
        tables = {key: _matrix(node, key, shape) for key in ("tputs", "e2e", "ttft") if key == "tputs" or node.raw(key)}
        slo, others = self._objectives(node.node("slos"))
        cost = node.number("cost")
        notes = (f"deployment {node.text('gpu')}", *((f"{cost:g} USD/h",) if cost else ()), *others)
        runs = []
        for i, output in enumerate(outputs):
            for j, size in enumerate(inputs):
                if not tables["tputs"][i][j]:
                    continue
                times = {
                    key: {"mean": tables[key][i][j]} for key in ("e2e", "ttft") if key in tables and tables[key][i][j]
                }
                runs.append(
                    Run(
                        where=node.where(f"tputs[{i}][{j}]"),
                        label=f"{node.text('gpu')} {size:g}x{output:g}",
                        tool="aibrix",
                        replica=Replica(gpu=node.text("gpu")),
                        input_tokens=size,
                        output_tokens=output,
                        load_kind=KIND,
                        rate_rps=tables["tputs"][i][j],
                        ttft_s=times.get("ttft", {}),
                        e2e_s=times.get("e2e", {}),
                        slo=slo,
                        as_of=day_of_epoch(node.number("created")),
                        notes=notes,
                    )
                )
        return runs, len(outputs) * len(inputs) - len(runs)

    @staticmethod
    def _indexes(node: Node) -> tuple[list[float], list[float]]:
        indexes = node.numbers("indexes")
        if len(indexes) != 2 or not all(indexes):
            raise InputError("The indexes are not [output sizes, input sizes].", where=node.where("indexes"))
        if not all(size > 0 for sizes in indexes for size in sizes):
            raise InputError("A size is not a positive number.", where=node.where("indexes"))
        return indexes[0], indexes[1]

    @staticmethod
    def _objectives(node: Node) -> tuple[str, tuple[str, ...]]:
        percentile = node.number("percentile") or 0.0
        statistic = f"p{percentile:g}" if percentile else "mean"
        ours = [f"{key} {statistic} <= {format_duration(bound)}" for key in OUR_METRICS if (bound := node.number(key))]
        return "; ".join(str(parse_slo(text)) for text in ours), tuple(
            f"AIBrix objective {key} {node.number(key):g}" for key in THEIR_OTHER_METRICS if node.number(key)
        )


@dataclass(frozen=True, slots=True)
class _Cell:
    rate_rps: float
    point: MeasuredPoint


def aibrix_profile(points: Sequence[MeasuredPoint], *, cost_usd_per_hour: float, fill_zero: bool) -> str:
    """Return points of one replica as AIBrix's GPUProfile, a JSON document that `AiBrix` reads back.

    Parameters
    ----------
    cost_usd_per_hour : what AIBrix weighs the deployment by.
    fill_zero : write 0, "cannot be served", for the sizes of the grid that no point has.

    Raises
    ------
    InputError: if the points are of several replicas or objectives, or do not fill the grid of their sizes.
    """
    kinds = {KIND, "offline_max", "concurrency"}
    usable = [p for p in points if p.rate_rps and p.load_kind in kinds and p.sanity in USABLE_SANITY]
    if not usable:
        raise InputError(
            "No point has a measured largest throughput, which AIBrix's profile consists of.",
            hint=f"Use points of load_kind {', '.join(sorted(kinds))}, and no estimates.",
        )
    bounded = [point for point in usable if point.load_kind == KIND]
    usable = bounded or usable
    _one_of_a_kind(usable)
    cells: dict[tuple[float, float], _Cell] = {}
    for point in usable:
        size = (point.output_tokens, point.input_tokens)
        if size not in cells or (point.rate_rps or 0.0) > cells[size].rate_rps:
            cells[size] = _Cell(point.rate_rps or 0.0, point)
    outputs, inputs = (sorted({size[axis] for size in cells}) for axis in (0, 1))
    empty = [f"{i:g}x{o:g}" for o in outputs for i in inputs if (o, i) not in cells]
    if empty and not fill_zero:
        raise InputError(
            f"{len(empty)} of {len(outputs) * len(inputs)} sizes have no point: {', '.join(empty[:4])}.",
            hint="AIBrix needs every input size at every output size; --fill-zero writes 0 there: served nowhere.",
        )
    document: dict[str, Any] = {
        "gpu": usable[0].gpu,
        "cost": cost_usd_per_hour,
        "tputs": [[cells[o, i].rate_rps if (o, i) in cells else 0.0 for i in inputs] for o in outputs],
        "indexes": [[_whole(size) for size in outputs], [_whole(size) for size in inputs]],
        "created": _created(usable),
    }
    for name in ("e2e", "ttft"):
        means = {size: getattr(cell.point, f"{name}_s").get("mean") for size, cell in cells.items()}
        if all(means.values()):
            document[name] = [[means.get((o, i)) or 0.0 for i in inputs] for o in outputs]
    document["slos"] = _slos([parse_slo(text) for text in usable[0].slo.split(";") if text.strip()])
    return json.dumps(document, indent=2, allow_nan=False) + "\n"


def _one_of_a_kind(points: Iterable[MeasuredPoint]) -> None:
    kinds = {
        f"{p.model} on {p.n_gpus} x {p.gpu} (tp {p.tensor_parallel} pp {p.pipeline_parallel}), {p.engine} {p.precision}"
        + (f", {p.slo}" if p.slo else "")
        for p in points
    }
    if len(kinds) > 1:
        raise InputError(
            f"The points are of {len(kinds)} kinds of replica or objectives, an AIBrix profile of one:"
            f" {'; '.join(sorted(kinds)[:3])}.",
            hint="Pick one with --model, --gpu, --tp, --pp, --engine, --precision.",
        )


def _whole(size: float) -> float:
    return int(size) if size == int(size) else size


def _created(points: Iterable[MeasuredPoint]) -> float:
    """Return midnight (UTC) of the newest point's day as a Unix time, 0 if no day is known."""
    days = [point.as_of for point in points if point.as_of is not None]
    return datetime.combine(max(days), time(), tzinfo=UTC).timestamp() if days else 0.0


def _slos(slos: Sequence[Slo]) -> dict[str, float]:
    percentiles = {slo.percentile or 0.0 for slo in slos} or {0.0}
    if len(percentiles) > 1:
        raise InputError("The objectives are of several percentiles; AIBrix knows one for all.")
    percentile = percentiles.pop()
    return {"percentile": _whole(percentile)} | {str(slo.metric): slo.bound_s for slo in slos}
