"""Why a plan is as it is: what each limit and objective costs, and why other GPU types are not in it."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass, replace
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

from planner.domain.plan import Plan, PlanStatus
from planner.errors import InputError, SolverLiedError, Where
from planner.files.documents import Document, closest
from planner.optimize import SolverSettings, assignment_of, price_of_gpu, price_of_limits, solve, verify_plan
from planner.planning.answer import read_question
from planner.report.result import PlanResult
from planner.units import HOURS_PER_MONTH, format_duration

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from planner.planning.question import Question, Relaxation

N_GPUS_EXPLAINED = 5
"""GPU types outside the plan that are explained unasked: the cheapest alone."""
DEFAULT_PLAN_NAME = "plan.json"
LOOSENING = 1.5
"""The price of an objective is what a bound half as large again would save."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitPrice:
    """What one requirement costs."""

    requirement: str
    saving_usd_per_hour: float
    sentence: str


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuReason:
    """Why a GPU type is not in the plan."""

    gpu: str
    extra_usd_per_hour: float | None
    """What forcing one replica of it would add; None if it cannot be used at all."""
    sentence: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """A plan, explained."""

    cost_usd_per_hour: float | None
    binding: tuple[str, ...]
    limits: tuple[LimitPrice, ...]
    objectives: tuple[LimitPrice, ...]
    gpus: tuple[GpuReason, ...]
    conflicts: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the explanation as JSON-ready data."""
        return asdict(self)


def explain(
    plan: Plan | PlanResult,
    *,
    plan_path: Path | None = None,
    gpus: Sequence[str] = (),
    settings: SolverSettings | None = None,
) -> Explanation:
    """Return why `plan` is as it is, by solving again without each limit, with each objective loosened, with each GPU.

    Parameters
    ----------
    plan : as `planner.plan` returned it, or as read from plan.json; it carries its request.
    plan_path : where it was read, to find the files that the request names; default: the working directory.
    gpus : GPU types to explain; default: the cheapest that are not in the plan.
    settings : as for `planner.plan`.

    Raises
    ------
    InputError: if the plan carries no request, does not fit it, or a file it was made from has changed.
    """
    settings = settings or SolverSettings()
    plan = plan.plan if isinstance(plan, PlanResult) else plan
    if plan.status is PlanStatus.INFEASIBLE or plan.cost_usd_per_hour is None:
        return Explanation(
            cost_usd_per_hour=None,
            binding=plan.binding,
            limits=(),
            objectives=(),
            gpus=(),
            conflicts=tuple(conflict.suggestion or conflict.explanation for conflict in plan.conflicts),
        )
    question = question_of(plan, plan_path or Path(DEFAULT_PLAN_NAME))
    return Explanation(
        cost_usd_per_hour=plan.cost_usd_per_hour,
        binding=plan.binding,
        limits=tuple(_limit_prices(question, plan, settings)),
        objectives=tuple(_objective_prices(question, plan, settings)),
        gpus=tuple(_gpu_reasons(question, plan, _chosen_gpus(question, plan, gpus), settings)),
        conflicts=(),
    )


def question_of(plan: Plan, plan_path: Path) -> Question:
    """Return the question that `plan` answers, from the request it carries.

    Raises
    ------
    InputError: if it carries none, does not fit it, or a file it was made from has changed since.
    """
    where = Where(path=str(plan_path))
    made = _made_from(plan.inputs, where)
    folder = _folder(made, plan_path)
    current = Path(plan.inputs["current"]) if "current" in plan.inputs else None
    question = read_question(made.document, base_dir=folder, today=made.as_of, strict=False, current=current)
    for name, digest in question.inputs.get("files", {}).items():
        if made.files.get(name) != digest:
            raise InputError(f"{name} has changed since the plan was made.", hint="Plan again.", where=where)
    if question.inputs.get("bundled") != plan.inputs.get("bundled"):
        raise InputError("The bundled data have changed since the plan was made.", hint="Plan again.", where=where)
    try:
        verify_plan(question.problem, plan)
    except SolverLiedError as error:
        raise InputError(
            f"The plan does not fit its request: {error.message}", hint="Plan again.", where=where
        ) from error
    return question


@dataclass(frozen=True, slots=True, kw_only=True)
class _MadeFrom:
    """What a plan says of its own making, checked."""

    document: Document
    as_of: date
    files: Mapping[str, str]


def _made_from(inputs: Mapping[str, Any], where: Where) -> _MadeFrom:
    missing = {"request", "request_path", "as_of"} - set(inputs)
    if missing:
        raise InputError(
            "This plan does not carry its request.", hint="Make it again with `gpuplan plan ... -o`.", where=where
        )
    slices, files = inputs.get("slice_factor"), inputs.get("files", {})
    for key, is_right in (
        ("request_path", isinstance(inputs["request_path"], str)),
        ("request", isinstance(inputs["request"], dict)),
        ("files", isinstance(files, dict)),
        ("current", isinstance(inputs.get("current", ""), str)),
        ("slice_factor", slices is None or (isinstance(slices, int) and slices >= 1)),
    ):
        if not is_right:
            value = inputs.get(key)
            raise InputError(f"inputs.{key} cannot be {value!r}.", hint="Plan again.", where=where)
    try:
        as_of = date.fromisoformat(inputs["as_of"])
    except (TypeError, ValueError) as error:
        raise InputError(
            f"inputs.as_of is not a date: {inputs['as_of']!r}.", hint="Plan again.", where=where
        ) from error
    document = Document(
        data=inputs["request"], path=inputs["request_path"], sha256=str(inputs.get("request_sha256", ""))
    )
    return _MadeFrom(document=document, as_of=as_of, files=files)


def _folder(made: _MadeFrom, plan_path: Path) -> Path:
    """Return the folder that the request's paths start from: where a file of its name and content still lies."""
    asked = Path(made.document.path)
    beside = plan_path.absolute().parent
    candidates = (asked, beside / asked, beside / asked.name)
    for path in candidates:
        if path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() == made.document.sha256:
            return path.parent
    return asked.parent if asked.parent != Path() or not plan_path.is_file() else beside


def _money(usd_per_hour: float) -> str:
    return f"{usd_per_hour:,.2f} USD/h ({usd_per_hour * HOURS_PER_MONTH:,.0f} a month)"


def _limit_prices(question: Question, plan: Plan, settings: SolverSettings) -> Iterator[LimitPrice]:
    if plan.unserved:
        yield from _shed_prices(question, plan, settings)
        return
    for name, saving in price_of_limits(question.problem, plan, settings).items():
        sentence = f"Without the limit '{name}' the plan would be {_money(saving)} cheaper."
        if saving <= settings.relative_gap * (plan.cost_usd_per_hour or 0.0):
            sentence = f"The limit '{name}' costs nothing."
        yield LimitPrice(requirement=name, saving_usd_per_hour=saving, sentence=sentence)


def _shed_prices(question: Question, plan: Plan, settings: SolverSettings) -> Iterator[LimitPrice]:
    """Yield what each limit costs in requests, where the limits do not hold all of them."""
    left = sum(item.rate_rps for item in plan.unserved)
    cost = plan.cost_usd_per_hour or 0.0
    for limit in question.problem.limits:
        others = tuple(other for other in question.problem.limits if other is not limit)
        without = replace(question.problem, limits=others)
        found = solve(without, settings=settings, assignment=assignment_of(plan))
        more = left - sum(item.rate_rps for item in found.unserved)
        saving = cost - (found.cost_usd_per_hour if found.cost_usd_per_hour is not None else cost)
        sentence = (
            f"Without the limit '{limit.name}' {more:.4g} req/s more would be served, for {_money(-saving)} more."
        )
        if more <= settings.relative_gap * left or found.cost_usd_per_hour is None:
            sentence = f"Without the limit '{limit.name}' no more would be served."
        yield LimitPrice(requirement=limit.name, saving_usd_per_hour=saving, sentence=sentence)


def _objective_prices(question: Question, plan: Plan, settings: SolverSettings) -> Iterator[LimitPrice]:
    for relaxation in question.relaxations:
        yield _objective_price(relaxation, plan, settings)


def _objective_price(relaxation: Relaxation, plan: Plan, settings: SolverSettings) -> LimitPrice:
    slo, cost = relaxation.slo, plan.cost_usd_per_hour or 0.0
    looser = relaxation.problem_with_bound(slo.bound_s * LOOSENING)
    found = solve(looser, settings=settings, assignment=assignment_of(plan))
    saving = max(0.0, cost - (found.cost_usd_per_hour if found.cost_usd_per_hour is not None else cost))
    change = f"{slo.metric} {slo.statistic} of {format_duration(slo.bound_s * LOOSENING)}"
    sentence = f"{relaxation.service}: {change} instead of {format_duration(slo.bound_s)} would save {_money(saving)}."
    if saving <= settings.relative_gap * cost:
        sentence = (
            f"{relaxation.service}: '{slo}' does not bind; {format_duration(slo.bound_s * LOOSENING)} saves nothing."
        )
    return LimitPrice(requirement=f"{relaxation.service}: {slo}", saving_usd_per_hour=saving, sentence=sentence)


def _chosen_gpus(question: Question, plan: Plan, asked: Sequence[str]) -> list[str]:
    known = {option.offer.gpu for option in question.problem.options}
    for name in asked:
        if name not in known:
            near = closest(name, known)
            hint = f"Did you mean {' or '.join(near)}?" if near else f"It has: {', '.join(sorted(known))}."
            raise InputError(f"No offer of the request has the GPU {name!r}.", hint=hint)
    if asked:
        return list(asked)
    used = {allocation.gpu for allocation in plan.allocation}
    ranked = sorted(
        (baseline for baseline in plan.baselines if baseline.feasible and baseline.offer not in used),
        key=lambda baseline: (baseline.cost_usd_per_hour or 0.0, baseline.offer),
    )
    return [baseline.offer for baseline in ranked[:N_GPUS_EXPLAINED]]


def _gpu_reasons(question: Question, plan: Plan, gpus: Sequence[str], settings: SolverSettings) -> Iterator[GpuReason]:
    for gpu in gpus:
        price = price_of_gpu(question.problem, plan, gpu, settings)
        yield GpuReason(gpu=gpu, extra_usd_per_hour=price.extra_usd_per_hour, sentence=price.sentence)
