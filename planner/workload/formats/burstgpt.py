"""BurstGPT (HPMLL/BurstGPT, CC BY 4.0).

Version 1 has six columns; since 1.2 `Session ID` and `Elapsed time` stand after `Timestamp`. Columns are found by
name, so that both layouts read alike. A failed request has 0 response tokens.
"""

from planner.workload.formats.base import TimeUnit, TraceFormat

BURSTGPT = TraceFormat(
    name="burstgpt",
    title="BurstGPT, both layouts",
    arrival="Timestamp",
    arrival_unit=TimeUnit.SECONDS,
    input="Request tokens",
    output="Response tokens",
    total="Total tokens",
    marks=("Model", "Log Type"),
    is_failure_without_output=True,
)
