"""TensorRT-LLM: the report of `trtllm-bench`, and the throughput tables of its documentation (Markdown).

Source: tensorrt_llm/bench/dataclasses/reporting.py; docs/source/performance/perf-overview.md. The tables are output
tokens/s with all requests queued. Up to 0.19 there is one table with columns of GPUs, from then on one per model.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from planner.errors import InputError, UnsupportedFormatError, Where
from planner.profilers.importers.base import (
    MS,
    Reading,
    Replica,
    Run,
    all_documents,
    precision_of,
    statistics_s,
)
from planner.profilers.importers.content import Container

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from planner.profilers.importers.base import Given
    from planner.profilers.importers.content import Content, Node

_REPORT_KEYS = {"mean": "average", "median": "p50", "p90": "p90", "p95": "p95", "p99": "p99"}
_QUANTIZATION: Mapping[str, str] = {
    "fp8": "fp8",
    "fp8_block_scales": "fp8",
    "nvfp4": "nvfp4",
    "w4a16_awq": "int4",
    "w4a16_gptq": "int4",
    "w8a16": "int8",
}
_TABLE_PRECISION: Mapping[str, str] = {"FP4": "nvfp4", "FP8": "fp8", "FP16": "fp16", "BF16": "bf16"}
"""How the tables name number formats; FP4 are the NVFP4 checkpoints that the pages list."""
LICENCE = "Apache-2.0"


class TrtllmBench:
    """`trtllm-bench ... --report_json`."""

    name = "trtllm-bench"
    title = "trtllm-bench report (JSON)"

    def matches(self, content: Content) -> bool:
        """Return whether the file is a report."""
        return all_documents(content, "engine", "world_info", "request_info", "performance")

    def read(self, content: Content, given: Given) -> Reading:  # noqa: ARG002 - the file says all that can be used
        """Return the run; how many requests were kept in flight is not in the file.

        Raises
        ------
        InputError: if the GPUs are not those of one replica.
        """
        return Reading(runs=tuple(self._run(node) for node in content.documents))

    @staticmethod
    def _run(node: Node) -> Run:
        engine, world, requests = node.node("engine"), node.node("world_info"), node.node("request_info")
        speed, streaming = node.node("performance"), node.node("streaming_metrics")
        tp, pp, size = world.count("tp_size"), world.count("pp_size") or 1, world.count("world_size")
        if tp and size and tp * pp != size:
            raise InputError(
                f"{size} GPUs are not tp {tp} x pp {pp}: that is more than one replica.",
                where=world.where("world_size"),
            )
        quantization = engine.text("quantization").lower()
        precision = _QUANTIZATION.get(quantization, "") or precision_of(quantization, engine.text("dtype"))
        n_ranks = world.count("ep_size") if (world.number("ep_size") or 0) > 1 else None
        seen = requests.number("avg_num_concurrent_requests")
        notes = (f"{seen:.4g} requests in flight on average",) if seen else ()
        if node.node("decoding_stats").data:
            notes = (*notes, "speculative decoding")
        return Run(
            where=node.where(),
            tool="trtllm-bench",
            tool_version=engine.text("version"),
            replica=Replica(
                model=engine.text("model"),
                gpu=node.node("machine").text("name"),
                tensor_parallel=tp,
                pipeline_parallel=pp if tp else None,
                expert_parallel=n_ranks,
                engine="tensorrt-llm",
                engine_version=engine.text("version"),
                precision=precision,
            ),
            input_tokens=requests.number("avg_input_length") or None,
            output_tokens=requests.number("avg_output_length") or None,
            rate_rps=speed.number("request_throughput_req_s"),
            output_tokens_per_s=speed.number("system_output_throughput_tok_s"),
            ttft_s=statistics_s(streaming.node("ttft_percentiles"), scale=MS, keys=_REPORT_KEYS),
            tpot_s=statistics_s(streaming.node("tpot_percentiles"), scale=MS, keys=_REPORT_KEYS),
            e2e_s=statistics_s(speed.node("request_latency_percentiles_ms"), scale=MS, keys=_REPORT_KEYS),
            n_requests=requests.number("num_requests"),
            notes=notes,
        )


@dataclass(frozen=True, slots=True)
class _Table:
    line: int
    """1-based, of the header."""
    heading: str
    """Text of the heading above."""
    caption: str
    """Line of text right above the table."""
    rows: tuple[tuple[str, ...], ...] = field(default=())
    """Header first, without the rule below it."""


class TrtllmTables:
    """Throughput tables as TensorRT-LLM's documentation has them."""

    name = "trtllm-tables"
    title = "TensorRT-LLM performance tables, 0.10 to 1.x (Markdown)"

    def matches(self, content: Content) -> bool:
        """Return whether the page has such a table."""
        if content.container != Container.MARKDOWN:
            return False
        return any(_is_wide(table) or _is_by_model(table) for table in _tables(content.text))

    def read(self, content: Content, given: Given) -> Reading:  # noqa: ARG002 - the page says all that can be used
        """Return one run per cell that has a figure.

        Raises
        ------
        UnsupportedFormatError: if the page does not say which version it is of.
        InputError: if a cell is no number.
        """
        version = _version(content)
        runs: list[Run] = []
        for table in _tables(content.text):
            if _is_wide(table):
                runs += _wide_runs(table, content.path)
            elif _is_by_model(table):
                runs += _model_runs(table, content.path)
        common = {"tool_version": version, "licence": LICENCE, "source": "TensorRT-LLM perf docs"}
        done = [replace(run, replica=replace(run.replica, engine_version=version), **common) for run in runs]  # type: ignore[arg-type]
        return Reading(runs=tuple(done), is_table=True)


def _version(content: Content) -> str:
    match = re.search(r"(?:version|for|release)\s+v?(\d+\.\d+(?:\.\d+)?)", content.text, re.IGNORECASE)
    if match is None:
        raise UnsupportedFormatError(
            "The page does not say which version of TensorRT-LLM its tables are of.",
            hint="Keep the page's sentence that names it, e.g. 'generated using version 0.17'.",
            where=content.where,
        )
    return match[1]


def _tables(text: str) -> Iterator[_Table]:
    heading = caption = ""
    rows: list[tuple[str, ...]] = []
    start = 0
    for number, line in enumerate([*text.splitlines(), ""], start=1):
        stripped = line.strip()
        if stripped.startswith("|"):
            start = start or number
            cells = tuple(cell.strip() for cell in stripped.strip("|").split("|"))
            if not all(re.fullmatch(r":?-+:?", cell) for cell in cells):
                rows.append(cells)
            continue
        if rows:
            yield _Table(start, heading, caption, tuple(rows))
            rows, start, caption = [], 0, ""
        if stripped.startswith("#"):
            heading, caption = stripped.lstrip("# "), ""
        elif stripped:
            caption = stripped
    return


def _is_wide(table: _Table) -> bool:
    return len(table.rows) > 3 and table.rows[0][0].startswith("Throughput") and "GPU" in table.rows[0][:3]


def _is_by_model(table: _Table) -> bool:
    return len(table.rows) > 1 and table.rows[0][0].startswith("Sequence Length") and "ISL" in table.rows[0][0]


def _wide_runs(table: _Table, path: str) -> Iterator[Run]:
    """Yield the runs of the one table with columns of GPUs; model and parallelism hold until they change."""
    gpus, precisions = table.rows[0][3:], table.rows[1][3:]
    if len(gpus) != len(precisions):
        where = Where(path=path, line=table.line)
        raise InputError(f"The table has {len(gpus)} GPUs and {len(precisions)} precisions.", where=where)
    model = parallel = ""
    for offset, row in enumerate(table.rows[3:], start=4):
        where = Where(path=path, line=table.line + offset)
        if len(row) != len(table.rows[0]):
            raise InputError(f"The row has {len(row)} cells, the header {len(table.rows[0])}.", where=where)
        model, parallel = row[0] or model, row[1] or parallel
        if row[0]:
            parallel = row[1]
        for gpu, precision, cell in zip(gpus, precisions, row[3:], strict=True):
            if cell:
                replica = Replica(
                    gpu=gpu, tensor_parallel=_whole(parallel, where), precision=_precision(precision, where)
                )
                yield _run(replica, model, row[2], cell, where)


def _model_runs(table: _Table, path: str) -> Iterator[Run]:
    """Yield the runs of one model's table, whose columns are "B200<br/>TP1 (FP4)" or "**4 GPUs**<br/>TP2,PP2 (FP4)"."""
    columns = []
    for title in table.rows[0][1:]:
        match = re.fullmatch(r"(.*?)<br\s*/?>\s*TP(\d+)(?:,\s*PP(\d+))?\s*\((\w+)\)", title)
        where = Where(path=path, line=table.line)
        if match is None:
            raise InputError(f"{title!r} does not name GPU, parallelism and precision.", where=where)
        gpu = table.caption if "GPUs" in match[1] else match[1]
        columns.append(
            Replica(
                gpu=gpu,
                tensor_parallel=int(match[2]),
                pipeline_parallel=int(match[3] or 1),
                precision=_precision(match[4], where),
            )
        )
    for offset, row in enumerate(table.rows[1:], start=2):
        where = Where(path=path, line=table.line + offset)
        if len(row) != len(columns) + 1:
            raise InputError(f"The row has {len(row)} cells, the header {len(columns) + 1}.", where=where)
        for replica, cell in zip(columns, row[1:], strict=True):
            if cell:
                yield _run(replica, table.heading, row[0], cell, where)


def _run(replica: Replica, model: str, sizes: str, cell: str, where: Where) -> Run:
    match = re.fullmatch(r"(\d+)\s*[/,]\s*(\d+)", sizes)
    number = re.fullmatch(r"\d+(?:,\d{3})*(?:\.\d+)?", cell)
    if match is None or number is None:
        raise InputError(f"{sizes!r}, {cell!r} are not a size and a throughput.", where=where)
    tokens_per_s, output = float(cell.replace(",", "")), float(match[2])
    if not output:
        raise InputError("The output has no token.", where=where)
    return Run(
        where=where,
        label=f"{model}, {replica.gpu} TP{replica.tensor_parallel}, {sizes}",
        tool="trtllm-bench",
        replica=replace(replica, model=_library_spelling(model), engine="tensorrt-llm"),
        published_as=model,
        input_tokens=float(match[1]),
        output_tokens=output,
        length_dist="fixed",
        load_kind="offline_max",
        rate_rps=tokens_per_s / output,
        output_tokens_per_s=tokens_per_s,
        notes=("all requests queued, no latency objective",),
    )


def _library_spelling(model: str) -> str:
    """Return a page's name of a model as model ids are written: "LLaMA v3.1 8B" is Llama-3.1-8B."""
    return "-".join(re.sub(r"\bv(?=\d)", "", model).replace("LLaMA", "Llama").split())


def _precision(text: str, where: Where) -> str:
    if text not in _TABLE_PRECISION:
        raise InputError(f"{text!r} is no precision.", hint=f"Known: {', '.join(_TABLE_PRECISION)}.", where=where)
    return _TABLE_PRECISION[text]


def _whole(text: str, where: Where) -> int:
    if not re.fullmatch(r"\d{1,4}", text) or text == "0":
        raise InputError(f"{text!r} is no tensor parallelism.", where=where)
    return int(text)
