"""AIConfigurator's CSV of configurations (pareto.csv, best_config_topn.csv). Computed, so marked as estimates.

Source: ai-dynamo/aiconfigurator, sdk/common.py, the columns of aggregated serving. ttft, tpot and request_latency are
milliseconds; seq/s and tokens/s are of all GPUs of the row, tokens counting output alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from planner.errors import UnsupportedFormatError
from planner.profilers.efficiency import engine_family
from planner.profilers.importers.base import MS, Reading, Replica, Run, precision_of, statistics_s

if TYPE_CHECKING:
    from planner.profilers.importers.base import Given
    from planner.profilers.importers.content import Content, Node

_KEYS = ("isl", "osl", "ttft", "tpot", "tokens/s/gpu", "backend", "system")
_GEMM = {"fp8_block": "fp8", "fp8_ootb": "fp8", "int8_wo": "int8", "int4_wo": "int4"}
"""Names of number formats that only AIConfigurator has."""


class AiConfigurator:
    """AIConfigurator."""

    name = "aiconfigurator"
    title = "AIConfigurator configurations (CSV), aggregated serving; marked as estimates"

    def matches(self, content: Content) -> bool:
        """Return whether the header is AIConfigurator's, of aggregated or of disaggregated serving."""
        header = set(content.header)
        return {"isl", "osl", "ttft", "tpot", "tokens/s/gpu"} <= header

    def read(self, content: Content, given: Given) -> Reading:  # noqa: ARG002 - the file says all that can be used
        """Return one run per row of one replica.

        Raises
        ------
        UnsupportedFormatError: if the table is of disaggregated serving, or of another layout.
        """
        header = content.header
        if any(name.startswith(("(p)", "(d)")) for name in header):
            raise UnsupportedFormatError(
                "The table is of disaggregated serving: its rows are of several kinds of replica.",
                hint="Import the table of aggregated serving.",
                where=content.where,
            )
        lacking = [name for name in _KEYS if name not in header]
        if lacking:
            raise UnsupportedFormatError(
                f"The table has no column {', '.join(lacking)}.",
                hint="Read are AIConfigurator's tables of aggregated serving.",
                where=content.where,
            )
        runs = []
        n_several = 0
        for index, node in enumerate(content.table()):
            if (node.count("dp") or 1) > 1:
                n_several += 1
            else:
                runs.append(_run(node, index))
        left_out = (f"rows with several data-parallel ranks, more than one replica: {n_several}",) if n_several else ()
        return Reading(runs=tuple(runs), left_out=left_out, is_table=True)


def _run(node: Node, index: int) -> Run:
    gemm = node.text("gemm")
    ranks = node.count("moe_ep")
    in_flight = node.number("concurrency")
    return Run(
        where=node.where(),
        label=f"row {index + 1}",
        tool="aiconfigurator",
        replica=Replica(
            model=node.text("model"),
            gpu=node.text("system"),
            tensor_parallel=node.count("tp"),
            pipeline_parallel=node.count("pp"),
            expert_parallel=ranks if ranks and ranks > 1 else None,
            engine=engine_family(node.text("backend")),
            engine_version=node.text("version"),
            precision=_GEMM.get(gemm, "") or precision_of(gemm, ""),
        ),
        input_tokens=node.number("isl") or None,
        output_tokens=node.number("osl") or None,
        load_kind="concurrency" if in_flight else "",
        load=in_flight,
        rate_rps=node.number("seq/s") or None,
        output_tokens_per_s=node.number("tokens/s") or None,
        ttft_s=statistics_s(node, scale=MS, keys={"mean": "ttft"}),
        tpot_s=statistics_s(node, scale=MS, keys={"mean": "tpot"}),
        e2e_s=statistics_s(node, scale=MS, keys={"mean": "request_latency"}),
        is_estimate=True,
        notes=(f"prefix of {node.number('prefix'):g} tokens cached",) if node.number("prefix") else (),
    )
