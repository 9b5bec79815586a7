"""Questions answered: solve, compare with single GPU types, or say what stands in the way."""

from __future__ import annotations

import json
import shlex
import sys
from dataclasses import replace
from datetime import date
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from planner.domain.plan import Conflict, Plan, PlanStatus
from planner.errors import InputError, PlannerError
from planner.files.documents import Document, load_document, parse_document, validation_error
from planner.optimize import (
    UNSERVED,
    Assignment,
    SolverSettings,
    check_redundancy_prices,
    find_conflicts,
    other_ways,
    price_of_jobs,
    redundancy_prices,
    robustness,
    savings_vs_best_single,
    single_gpu_baselines,
    solve,
    unsurvived,
    verify_plan,
    with_alternatives,
)
from planner.planning.caveats import caveats
from planner.planning.melange import melange_question
from planner.planning.relax import disaggregation_conflicts, slo_conflicts
from planner.report.result import PlanResult

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from planner.domain.proof import ProofRound
    from planner.domain.provenance import Warning_
    from planner.planning.question import Question

STDIN = "-"
IN_MEMORY = "request"
"""How errors call a request that was not read from a file."""


def plan(
    request: str | Path | Mapping[str, Any],
    *,
    base_dir: Path | None = None,
    today: date | None = None,
    settings: SolverSettings | None = None,
    assignment: str = "fractional",
    slice_factor: int | None = None,
    strict: bool = False,
    current: Path | str | None = None,
    verify: bool | None = None,
    on_round: Callable[[ProofRound], None] | None = None,
) -> PlanResult:
    """Return the cheapest verified plan for `request`, or the reasons why there is none.

    Parameters
    ----------
    request : a file's path, or the same document as a mapping.
    base_dir : where relative paths in the request start; default: the file's folder, else the working directory.
    today : date that price ages count to; default: today.
    settings : solver, time limit (s), relative gap, seed and threads.
    assignment : "fractional" (a bucket may be split between options) or "sliced" (Mélange's binary slices).
    slice_factor : slices per bucket for "sliced"; default: what the request says, else 1.
    strict : refuse stale prices instead of warning of them.
    current : the plan.json that runs today: the plan gets a rollout from it, and its changes can have a price.
    verify : replay the plan request by request, and plan again until its SLOs hold; None = where all traffic comes from
        traces with arrival times, and the plan can be replayed.
    on_round : is told of every fleet that was replayed.

    Raises
    ------
    InputError: if the request, or a file that it names, is wrong; or if it cannot be replayed, and `verify` is true.
    DataMissingError: if it names something that is not known.
    """
    document = read_request(request)
    today = today or date.today()
    folder = base_dir or (Path(document.path).parent if isinstance(request, str | Path) else Path())
    running = None if current is None else Path(current)
    question = read_question(document, base_dir=folder, today=today, strict=strict, current=running)
    settings = settings or SolverSettings()
    chosen = _assignment(assignment, asked_slices=slice_factor, slice_factor=question.slice_factor)
    inputs = {
        "request_path": document.path,
        "request_sha256": document.sha256,
        "gpuplan_version": version("gpuplan"),
        "as_of": today.isoformat(),
        "slice_factor": chosen.slice_factor,
        **({} if current is None else {"current": str(current)}),
        **question.inputs,
        "reproduce": _reproduce(document.path, today, settings, chosen, strict=strict, current=running, verify=verify),
        "request": document.data,
    }
    found = answer(question, settings=settings, assignment=chosen, verify=verify, on_round=on_round)
    found = replace(found, inputs=inputs)
    return PlanResult(plan=found, today=today)


def answer(
    question: Question,
    *,
    settings: SolverSettings,
    assignment: Assignment,
    verify: bool | None = None,
    on_round: Callable[[ProofRound], None] | None = None,
) -> Plan:
    """Return the plan for `question` with its baselines, or with the conflicts that leave none."""
    found = solve(question.problem, settings=settings, assignment=assignment)
    prove = partial(_proven, settings=settings, assignment=assignment, verify=verify, on_round=on_round)
    if question.scaling and found.status is not PlanStatus.UNKNOWN:
        from planner.planning.giving_back import decided  # noqa: PLC0415 - only those who ask pay for it

        question, found = decided(question, found, prove=prove, settings=settings, assignment=assignment)
    else:
        question, found = prove(question, found)
    found = replace(
        found,
        name=question.name,
        warnings=question.warnings + found.warnings,
        assumptions=question.assumptions + found.assumptions,
    )
    if found.status is PlanStatus.INFEASIBLE:
        conflicts = find_conflicts(question.problem, settings=settings, assignment=assignment)
        conflicts += slo_conflicts(question, settings=settings, assignment=assignment)
        conflicts += disaggregation_conflicts(question, settings=settings, assignment=assignment)
        conflicts = _with_given_back(conflicts, question, found)
        return replace(found, conflicts=conflicts or (UNEXPLAINED,))
    if found.cost_usd_per_hour is None:
        return found
    found = replace(found, warnings=(*found.warnings, *caveats(found, question.unchecked_gpus)))
    if found.unserved:
        found = replace(found, warnings=tuple(_with_ways_out(found.warnings, question, settings)))
    prices = redundancy_prices(question.problem, found, settings=settings, assignment=assignment)
    found = replace(found, redundancy=prices)
    check_redundancy_prices(question.problem, found)
    found = _with_robustness(found, question, settings, assignment)
    if found.jobs:
        extra = price_of_jobs(question.problem, found, settings, assignment=assignment)
        jobs = (replace(job, extra_usd_per_hour=extra.get(job.job)) for job in found.jobs)
        found = replace(found, jobs=tuple(jobs))
    if question.preloaded is not None:
        found = question.preloaded(question.problem, found)
    others = other_ways(question.problem, found, settings, assignment)
    found = with_alternatives(found, others)
    if question.scaling_warnings is not None:
        found = replace(found, warnings=(*found.warnings, *question.scaling_warnings(found.scale_to_zero)))
    if question.compared is not None:
        found = question.compared(question, found, others)
    baselines = single_gpu_baselines(question.problem, settings=settings, assignment=assignment)
    return replace(found, baselines=baselines, savings_vs_best_single=savings_vs_best_single(found, baselines))


def _proven(
    question: Question,
    plan: Plan,
    *,
    settings: SolverSettings,
    assignment: Assignment,
    verify: bool | None,
    on_round: Callable[[ProofRound], None] | None,
) -> tuple[Question, Plan]:
    """Return the plan that holds its objectives in a replay, where one is wanted, and the question that it answers."""
    if verify is False or plan.cost_usd_per_hour is None or not question.problem.demands:
        return question, plan
    from planner.planning.proving.verification import verified  # noqa: PLC0415 - the simulator takes a second to import

    return verified(
        question, plan, settings=settings, assignment=assignment, is_asked=verify is True, on_round=on_round
    )


def _with_robustness(plan: Plan, question: Question, settings: SolverSettings, assignment: Assignment) -> Plan:
    """Return `plan` with what its scenarios cost, and which of them hold its cost up; as it is where it has none."""
    found = robustness(question.problem, plan, settings=settings, assignment=assignment)
    if found is None:
        return plan
    binding = tuple(f"scenario {name}" for name in unsurvived(found))
    plan = replace(plan, robustness=found, binding=(*binding, *plan.binding))
    verify_plan(question.problem, plan)
    return plan


def _with_given_back(conflicts: tuple[Conflict, ...], question: Question, plan: Plan) -> tuple[Conflict, ...]:
    """Return the conflicts, that of a budget with what is enough where services are given back, if that is less."""
    if not plan.fleets_without:
        return conflicts
    from planner.planning.giving_back import budget_with_given_back  # noqa: PLC0415 - only those who ask pay for it

    found = budget_with_given_back(question.problem, plan)
    if found is None:
        return conflicts
    same = [each for each in conflicts if each.requirement == found.requirement]
    if any(each.relaxed <= found.relaxed for each in same if each.relaxed is not None and found.relaxed is not None):
        return conflicts
    return (found, *(each for each in conflicts if each not in same))


UNEXPLAINED = Conflict(
    requirement="all requirements together",
    explanation="No plan meets them all, and loosening any single one, or all objectives alike, does not give one.",
    suggestion="Loosen several limits, or shorten the list of services.",
)


def _with_ways_out(warnings: tuple[Warning_, ...], question: Question, settings: SolverSettings) -> Iterator[Warning_]:
    """Yield the warnings, that of unserved requests with what would serve all of them."""
    conflicts = find_conflicts(replace(question.problem, shed=None), settings=settings)
    ways_out = [conflict.suggestion for conflict in conflicts if conflict.suggestion][:MAX_WAYS_OUT]
    for warning in warnings:
        if warning.code == UNSERVED and ways_out:
            yield replace(warning, message=f"{warning.message} To serve all: {', or '.join(ways_out)}.")
        else:
            yield warning


MAX_WAYS_OUT = 3
"""Relaxations that a warning names; each of them alone is enough."""


def read_request(request: str | Path | Mapping[str, Any]) -> Document:
    """Return the request as a document; "-" is standard input."""
    if isinstance(request, str | Path):
        if str(request) == STDIN:
            return parse_document(sys.stdin.buffer.read(), name=STDIN)
        return load_document(Path(request))
    try:
        text = json.dumps(request, sort_keys=True, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise InputError(f"The request is not a plain document: {error}.", hint=_KINDS) from error
    return parse_document(text.encode(), name=IN_MEMORY)


def read_question(
    document: Document, *, base_dir: Path, today: date, strict: bool, current: Path | None = None
) -> Question:
    """Return the question that `document` asks; Mélange's form is told from a PlanRequest by its keys.

    Raises
    ------
    InputError: if it is neither, or wrong.
    """
    from pydantic import ValidationError  # noqa: PLC0415 - costs a tenth of a second

    data = document.data
    if not isinstance(data, dict):
        raise InputError("A request is a mapping of keys to values.", hint=_KINDS, where=document.where())
    try:
        if "gpu_info" in data and "kind" not in data:
            from planner.files.melange import MelangeConfig as Model  # noqa: PLC0415 - one form per run

            if current is not None:
                raise InputError("A Mélange config cannot be planned from a current plan.", hint=_KINDS)
            return melange_question(Model.model_validate(data))
        return _fleet_question(document, base_dir=base_dir, today=today, strict=strict, current=current)
    except ValidationError as error:
        from planner.files.melange import MelangeConfig  # noqa: PLC0415
        from planner.files.request import PlanRequest  # noqa: PLC0415

        model = MelangeConfig if error.title == MelangeConfig.__name__ else PlanRequest
        raise validation_error(error, model, document) from error
    except PlannerError as error:
        if error.where is not None and error.where.path is None and error.where.field:
            error.where = document.where(*_location(error.where.field))
        raise


_KINDS = "Give a PlanRequest (`gpuplan init` writes one) or a Mélange config."


def _fleet_question(document: Document, *, base_dir: Path, today: date, strict: bool, current: Path | None) -> Question:
    from planner.files.request import PlanRequest  # noqa: PLC0415 - one form per run

    kind = document.data.get("kind")
    if kind != "PlanRequest":
        found = f"kind is {kind!r}" if kind is not None else "there is no `kind`"
        raise InputError(f"This is not a request: {found}.", hint=_KINDS, where=document.where())
    request = PlanRequest.model_validate(document.data)
    from planner.planning.fleet import fleet_question  # noqa: PLC0415 - Mélange's form never pays for it

    return fleet_question(request, base_dir=base_dir, today=today, strict=strict, current=current)


def _location(dotted: str) -> tuple[str | int, ...]:
    parts = dotted.replace("[", ".[").split(".")
    return tuple(int(part[1:-1]) if part.startswith("[") else part for part in parts)


def _assignment(kind: str, *, asked_slices: int | None, slice_factor: int) -> Assignment:
    if kind == "fractional":
        if asked_slices is not None:
            raise InputError("A slice factor means nothing without slices.", hint="Add --assignment sliced.")
        return Assignment.fractional()
    if kind == "sliced":
        return Assignment.sliced(asked_slices or slice_factor)
    raise InputError(f"{kind!r} is not a way to assign requests.", hint="Use fractional or sliced.")


def _reproduce(
    path: str,
    today: date,
    settings: SolverSettings,
    assignment: Assignment,
    *,
    strict: bool,
    current: Path | None,
    verify: bool | None,
) -> str | None:
    """Return the command that gives this plan again, from the same folder and files; None if there was no file."""
    if path in {STDIN, IN_MEMORY}:
        return None
    parts = ["gpuplan", "plan", path, "--as-of", today.isoformat(), "--solver", settings.solver]
    parts += ["--time-limit", f"{settings.time_limit_s:g}s", "--gap", f"{settings.relative_gap * 100:g}%"]
    parts += ["--seed", str(settings.seed), "--threads", str(settings.threads)]
    if assignment.slice_factor is not None:
        parts += ["--assignment", "sliced", "--slice-factor", str(assignment.slice_factor)]
    if strict:
        parts.append("--strict")
    if current is not None:
        parts += ["--current", str(current)]
    if verify is not None:
        parts.append("--verify" if verify else "--no-verify")
    return shlex.join(parts)
