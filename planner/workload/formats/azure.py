"""Azure LLM inference traces of 2023 and 2024 (Azure/AzurePublicDataset, CC BY 4.0)."""

from planner.workload.formats.base import TimeUnit, TraceFormat

AZURE = TraceFormat(
    name="azure",
    title="Azure LLM inference trace",
    arrival="TIMESTAMP",
    arrival_unit=TimeUnit.DATETIME,
    input="ContextTokens",
    output="GeneratedTokens",
)
