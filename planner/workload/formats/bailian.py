"""Qwen-Bailian usage traces (alibaba-edu/qwen-bailian-usagetraces-anon, Apache-2.0).

The keys of Mooncake, but seconds instead of milliseconds and prefix blocks of 16 tokens; `chat_id` tells them apart.
"""

from planner.workload.formats.base import Container, TimeUnit, TraceFormat

BAILIAN = TraceFormat(
    name="bailian",
    title="Qwen-Bailian usage trace",
    arrival="timestamp",
    arrival_unit=TimeUnit.SECONDS,
    input="input_length",
    output="output_length",
    marks=("chat_id", "turn"),
    hashes="hash_ids",
    block_tokens=16,
    containers=(Container.JSON_LINES,),
)
