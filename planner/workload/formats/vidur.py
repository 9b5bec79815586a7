"""Vidur's trace-replay CSV, also the form in which it ships the Splitwise (Azure 2023) traces."""

from planner.workload.formats.base import TimeUnit, TraceFormat

VIDUR = TraceFormat(
    name="vidur",
    title="Vidur trace replay (processed Splitwise traces)",
    arrival="arrived_at",
    arrival_unit=TimeUnit.SECONDS,
    input="num_prefill_tokens",
    output="num_decode_tokens",
)
