"""Importers: other tools' benchmark files, read by content into the points of a profile.

A tool is a file beside this one and a line in `IMPORTERS`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from planner.errors import InputError, UnsupportedFormatError
from planner.files.documents import did_you_mean
from planner.profilers.importers.aiconfigurator import AiConfigurator
from planner.profilers.importers.aiperf import AiPerf, AiPerfCsv, AiPerfRecords, GenAiPerf
from planner.profilers.importers.guidellm import GuideLlm
from planner.profilers.importers.inference_perf import InferencePerf
from planner.profilers.importers.llmd import LlmdPlanner, LlmdReport
from planner.profilers.importers.sglang import SglangServing
from planner.profilers.importers.solvers import AiBrix, Melange
from planner.profilers.importers.trtllm import TrtllmBench, TrtllmTables
from planner.profilers.importers.vllm import VllmLatency, VllmServe, VllmThroughput
from planner.profilers.schema import REQUIRED_COLUMNS

if TYPE_CHECKING:
    from planner.profilers.importers.base import Importer
    from planner.profilers.importers.content import Content

IMPORTERS: tuple[Importer, ...] = (
    VllmServe(),
    VllmThroughput(),
    VllmLatency(),
    SglangServing(),
    GuideLlm(),
    AiPerf(),
    AiPerfCsv(),
    AiPerfRecords(),
    GenAiPerf(),
    InferencePerf(),
    LlmdReport(),
    LlmdPlanner(),
    TrtllmBench(),
    TrtllmTables(),
    AiConfigurator(),
    AiBrix(),
    Melange(),
)
"""No file is of two of them: `importer_of` does not depend on their order."""

PROFILE_NAME = "profile"
"""`--format` of gpuplan's own profile files, which need no importer."""


def format_names() -> tuple[str, ...]:
    """Return the names that `--format` takes."""
    return (*(known.name for known in IMPORTERS), PROFILE_NAME)


def is_profile(content: Content) -> bool:
    """Return whether a file is one of gpuplan's own."""
    return set(REQUIRED_COLUMNS) <= set(content.header)


def importer_of(content: Content, format_name: str | None = None) -> Importer:
    """Return the importer for a file, or the one that is insisted on.

    Raises
    ------
    InputError: if `format_name` is none.
    UnsupportedFormatError: if the file is of no known format, or not of the one that is insisted on.
    """
    if format_name is not None:
        return _named(format_name, content)
    for known in IMPORTERS:
        if known.matches(content):
            return known
    if len(content.documents) > 1:
        kinds = {_name_of_document(content, index) for index in range(len(content.documents))}
        if len(kinds) > 1:
            raise InputError(
                f"The file holds results of several kinds: {', '.join(sorted(kinds))}.",
                hint="Import each kind from a file of its own.",
                where=content.where,
            )
    raise UnsupportedFormatError(
        f"This {content.container} file is of no format that is read.",
        hint=f"Read are: {'; '.join(known.title for known in IMPORTERS)}; gpuplan's own profile files.",
        where=content.where,
    )


def _name_of_document(content: Content, index: int) -> str:
    from dataclasses import replace  # noqa: PLC0415 - only for an error

    alone = replace(content, documents=(content.documents[index],))
    return next((known.name for known in IMPORTERS if known.matches(alone)), "unknown")


def _named(format_name: str, content: Content) -> Importer:
    for known in IMPORTERS:
        if known.name == format_name:
            if not known.matches(content):
                raise UnsupportedFormatError(f"The file is not of {known.title}.", where=content.where)
            return known
    hint = did_you_mean(format_name, format_names()) or f"Use one of {', '.join(format_names())}."
    raise InputError(f"{format_name!r} is no format.", hint=hint)
