"""The request traces of the Splitwise simulator (Mutinifni/splitwise-sim)."""

from planner.workload.formats.base import TimeUnit, TraceFormat

SPLITWISE = TraceFormat(
    name="splitwise",
    title="Splitwise simulator trace",
    arrival="arrival_timestamp",
    arrival_unit=TimeUnit.SECONDS,
    input="prompt_size",
    output="token_size",
)
