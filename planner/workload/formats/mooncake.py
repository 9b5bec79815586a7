"""Mooncake's JSON lines (kvcache-ai/Mooncake, Apache-2.0), and the tools that write the same keys."""

from planner.workload.formats.base import Container, TimeUnit, TraceFormat

MOONCAKE = TraceFormat(
    name="mooncake",
    title="Mooncake trace with prefix hashes",
    arrival="timestamp",
    arrival_unit=TimeUnit.MILLISECONDS,
    input="input_length",
    output="output_length",
    hashes="hash_ids",
    containers=(Container.JSON_LINES,),
)
