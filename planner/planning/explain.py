"""Why a plan is as it is: what each limit and objective costs, and why other GPU types are not in it."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass, replace
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

from planner.domain.plan import Plan, PlanStatus
from planner.domain.problem import Resource
from planner.errors import InputError, SolverLiedError, Where
from planner.files.documents import Document, closest
from planner.optimize import (
    SolverSettings,
    assignment_of,
    format_amount,
    price_of_gpu,
    price_of_limits,
    solve,
    verify_plan,
)
from planner.planning.answer import read_question
from planner.planning.proving.caps import with_found_caps
from planner.report.result import PlanResult
from planner.report.scaling import fleet_texts
from planner.units import HOURS_PER_MONTH, format_duration

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from planner.domain.problem import FleetProblem, Limit
    from planner.planning.question import Question, Relaxation

N_GPUS_EXPLAINED = 5
"""GPU types outside the plan that are explained unasked: the cheapest alone."""
DEFAULT_PLAN_NAME = "plan.json"
LOOSENING = 1.5
"""The price of an objective is what a bound half as large again would save, and one as much smaller would cost."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitPrice:
    """What one requirement costs."""

    requirement: str
    saving_usd_per_hour: float
    """Of a plan without the limit, or with a looser objective."""
    sentence: str
    step: str = ""
    """The other change that was tried: a limit's step ("8 GPUs"), or an objective's tighter bound ("200 ms")."""
    step_saving_usd_per_hour: float | None = None
    """Of a plan with the step; negative if it is dearer, None where none was tried or there is no plan."""


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
    given_back: tuple[str, ...] = ()
    """What each set of services to give back would come to in all, the plan's own first; the rest is of its fleet."""
    notes: tuple[str, ...] = ()
    """How far the differences can be trusted."""

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
    cost, binding, given_back = plan.cost_usd_per_hour, plan.binding, tuple(fleet_texts(plan))
    if not question.problem.demands and not question.problem.jobs:
        return Explanation(
            cost_usd_per_hour=cost,
            binding=binding,
            limits=(),
            objectives=(),
            gpus=(),
            conflicts=(),
            given_back=given_back,
        )
    if plan.proof is not None:
        # Changes are compared with the least cost at the same utilisation caps, which is searched for in the same way.
        least = solve(question.problem, settings=settings, assignment=assignment_of(plan))
        plan = replace(least, baselines=plan.baselines)
    return Explanation(
        cost_usd_per_hour=cost,
        binding=binding,
        limits=tuple(_limit_prices(question, plan, settings)),
        objectives=tuple(_objective_prices(question, plan, settings)),
        gpus=tuple(_gpu_reasons(question, plan, _chosen_gpus(question, plan, gpus), settings)),
        conflicts=(),
        given_back=given_back,
        notes=tuple(_notes(plan, settings)),
    )


def _notes(plan: Plan, settings: SolverSettings) -> Iterator[str]:
    """Yield what of the plan's cost is not proven: other plans are searched for alike, and may be found by luck."""
    if plan.objectives and plan.gap is None:
        yield "Not every objective of the plan is proven: small differences may be those of the searches."
    if plan.gap is None or plan.cost_usd_per_hour is None or plan.gap <= settings.relative_gap + SAME_VALUE:
        return
    left = plan.gap * plan.cost_usd_per_hour
    yield f"{plan.gap:.2%} of the plan is not proven: differences below {_money(left)} may be those of the searches."


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
    question = _of_its_fleet(question, plan, where)
    if plan.proof is not None:
        question = with_found_caps(question, plan.proof)
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


def _of_its_fleet(question: Question, plan: Plan, where: Where) -> Question:
    """Return the question without the services that the plan gives back, which its fleet does not serve."""
    names = [choice.service for choice in plan.given_back]
    if not names:
        return question
    from planner.planning.giving_back import without  # noqa: PLC0415 - few plans give anything back

    for name in sorted(set(names) - {ask.name for ask in question.scaling if ask.decides}):
        raise InputError(
            f"The plan gives back {name}, which its request does not ask for.", hint="Plan again.", where=where
        )
    return without(question, names, usd_per_hour=plan.given_back_usd_per_hour or 0.0)


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


@dataclass(frozen=True, slots=True, kw_only=True)
class _Change:
    """What another plan would be like beside this one."""

    saving_usd_per_hour: float
    words: str
    """To follow "the plan would"; empty if nothing would change."""


def _better(plan: Plan, looser: Plan, settings: SolverSettings) -> _Change:
    """Return how a plan with something loosened differs from `plan`: not at all where its search found a worse one."""
    found = _change(plan, looser, settings)
    values = [(now.value, then.value) for now, then in zip(plan.objectives, looser.objectives, strict=False)]
    values = values or [(plan.cost_usd_per_hour or 0.0, looser.cost_usd_per_hour or 0.0)]
    left = [sum(item.rate_rps for item in each.unserved) for each in (plan, looser)]
    first = next(((a, b) for a, b in [(left[0], left[1]), *values] if abs(a - b) > SAME_VALUE * max(a, b)), (0.0, 0.0))
    is_worse = looser.cost_usd_per_hour is None or first[1] > first[0]
    return _Change(saving_usd_per_hour=0.0, words="") if is_worse else found


def _change(plan: Plan, other: Plan, settings: SolverSettings) -> _Change:
    """Return how `other` differs from `plan`: in what is served, in the first objective that differs, in the cost."""
    cost, tolerance = plan.cost_usd_per_hour or 0.0, settings.relative_gap
    if other.cost_usd_per_hour is None:
        return _Change(saving_usd_per_hour=0.0, words=NO_PLAN)
    saving = cost - other.cost_usd_per_hour
    dearer = f"{_money(abs(saving))} {'cheaper' if saving > 0 else 'dearer'}"
    is_same_cost = abs(saving) <= tolerance * cost
    and_cost = "" if is_same_cost else f" and be {dearer}"
    left, left_then = (sum(item.rate_rps for item in each.unserved) for each in (plan, other))
    if abs(left - left_then) > tolerance * max(left, left_then):
        how = "more" if left > left_then else "less"
        return _Change(saving_usd_per_hour=saving, words=f"serve {abs(left - left_then):.4g} req/s {how}{and_cost}")
    for now, then in zip(plan.objectives, other.objectives, strict=False):
        if abs(now.value - then.value) > max(tolerance, SAME_VALUE) * abs(now.value):
            words = f"come to {then.value:.4g} instead of {now.value:.4g} {now.unit}".rstrip()
            return _Change(saving_usd_per_hour=saving, words=f"{words} in {now.minimise}{and_cost}")
    return _Change(saving_usd_per_hour=saving, words="" if is_same_cost else f"be {dearer}")


NO_PLAN = "not exist"
SAME_VALUE = 1e-6
"""Relative: objectives that differ by less are equal."""


def _limit_prices(question: Question, plan: Plan, settings: SolverSettings) -> Iterator[LimitPrice]:
    if plan.unserved or plan.objectives:
        for limit in question.problem.limits:
            without = _solved(question.problem, plan, settings, without=limit)
            yield _limit_price(question, plan, settings, limit.name, _better(plan, without, settings))
        return
    for name, saving in price_of_limits(question.problem, plan, settings).items():
        is_free = saving <= settings.relative_gap * (plan.cost_usd_per_hour or 0.0)
        words = "" if is_free else f"be {_money(saving)} cheaper"
        change = _Change(saving_usd_per_hour=saving, words=words)
        yield _limit_price(question, plan, settings, name, change)


def _limit_price(question: Question, plan: Plan, settings: SolverSettings, name: str, without: _Change) -> LimitPrice:
    """Return what a limit costs: against no limit at all, and against one that is a step looser."""
    if not without.words:
        return LimitPrice(requirement=name, saving_usd_per_hour=0.0, sentence=f"The limit '{name}' costs nothing.")
    sentence = f"Without the limit '{name}' the plan would {without.words}."
    limit = next((limit for limit in question.problem.limits if limit.name == name), None)
    if limit is None:
        return LimitPrice(requirement=name, saving_usd_per_hour=without.saving_usd_per_hour, sentence=sentence)
    step = limit_step(limit)
    amount = format_amount(limit.resource, step)
    looser = _solved(question.problem, plan, settings, without=limit, instead=replace(limit, bound=limit.bound + step))
    more = _better(plan, looser, settings)
    sentence += f" With {amount} more it would {more.words}." if more.words else f" {amount} more would change nothing."
    return LimitPrice(
        requirement=name,
        saving_usd_per_hour=without.saving_usd_per_hour,
        sentence=sentence,
        step=amount,
        step_saving_usd_per_hour=more.saving_usd_per_hour,
    )


def limit_step(limit: Limit) -> float:
    """Return by how much a limit is loosened to say what a little more of it is worth.

    10 kW, 8 GPUs, one instance; a tenth of budgets, vCPUs, and of power limits that 10 kW would more than half again.
    """
    if limit.resource is Resource.INSTANCES:
        return 1.0
    if limit.resource is Resource.GPUS:
        return STEP_GPUS
    if limit.resource is Resource.WATTS and limit.bound > 2 * STEP_WATTS:
        return STEP_WATTS
    return limit.bound * STEP_FRACTION


STEP_WATTS = 10_000.0
"""A rack."""
STEP_GPUS = 8.0
"""A machine."""
STEP_FRACTION = 0.1


def _solved(
    problem: FleetProblem, plan: Plan, settings: SolverSettings, *, without: Limit, instead: Limit | None = None
) -> Plan:
    """Return the plan without a limit, or with another one instead of it."""
    limits = tuple(instead if limit is without else limit for limit in problem.limits)
    changed = replace(problem, limits=tuple(limit for limit in limits if limit is not None))
    return solve(changed, settings=settings, assignment=assignment_of(plan))


def _objective_prices(question: Question, plan: Plan, settings: SolverSettings) -> Iterator[LimitPrice]:
    for relaxation in question.relaxations:
        yield _objective_price(relaxation, plan, settings)


def _objective_price(relaxation: Relaxation, plan: Plan, settings: SolverSettings) -> LimitPrice:
    """Return what an objective costs: against a looser bound, and what a tighter one would."""
    slo = relaxation.slo
    bounds = (slo.bound_s * LOOSENING, slo.bound_s / LOOSENING)
    looser, tighter = (
        compare(
            plan,
            solve(relaxation.problem_with_bound(bound_s), settings=settings, assignment=assignment_of(plan)),
            settings,
        )
        for compare, bound_s in zip((_better, _change), bounds, strict=True)
    )
    loose, tight = (format_duration(bound_s) for bound_s in bounds)
    name = f"{slo.metric} {slo.statistic}"
    sentence = f"{relaxation.service}: '{slo}' does not bind; {loose} changes nothing"
    if looser.words:
        sentence = (
            f"{relaxation.service}: with {name} of {loose} instead of {format_duration(slo.bound_s)} the plan would "
            f"{looser.words}"
        )
    if tighter.words == NO_PLAN:
        sentence += f"; {tight} cannot be met."
    else:
        sentence += f"; with {tight} it would {tighter.words}." if tighter.words else f"; {tight} would cost the same."
    return LimitPrice(
        requirement=f"{relaxation.service}: {slo}",
        saving_usd_per_hour=looser.saving_usd_per_hour if looser.words else 0.0,
        sentence=sentence,
        step=tight,
        step_saving_usd_per_hour=None if tighter.words == NO_PLAN else tighter.saving_usd_per_hour,
    )


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
        if plan.unserved or plan.objectives:
            sentence = f"{gpu}: what it would cost is only told of plans of the least cost that serve everything."
            yield GpuReason(gpu=gpu, extra_usd_per_hour=None, sentence=sentence)
            continue
        price = price_of_gpu(question.problem, plan, gpu, settings)
        yield GpuReason(gpu=gpu, extra_usd_per_hour=price.extra_usd_per_hour, sentence=price.sentence)
