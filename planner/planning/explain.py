"""Why a plan is as it is: what each limit and objective costs, and why other GPU types are not in it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

from planner.domain.plan import Plan, PlanStatus
from planner.errors import InputError, Where
from planner.files.documents import Document, closest
from planner.optimize import Assignment, SolverSettings, price_of_gpu, price_of_limits, solve
from planner.planning.answer import read_question
from planner.units import HOURS_PER_MONTH, format_duration

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from planner.planning.question import Question, Relaxation

N_GPUS_EXPLAINED = 5
"""GPU types outside the plan that are explained unasked: the cheapest alone."""
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


def explain(plan: Plan, *, plan_path: Path, gpus: Sequence[str] = (), settings: SolverSettings) -> Explanation:
    """Return why `plan` is as it is, by solving again without each limit, with each objective loosened, with each GPU.

    Parameters
    ----------
    plan : as read from plan.json; it carries its request.
    plan_path : where it was read, for files that the request names.
    gpus : GPU types to explain; default: the cheapest that are not in the plan.

    Raises
    ------
    InputError: if the plan carries no request, or a file it was made from has changed.
    """
    if plan.status is PlanStatus.INFEASIBLE or plan.cost_usd_per_hour is None:
        return Explanation(
            cost_usd_per_hour=None,
            binding=plan.binding,
            limits=(),
            objectives=(),
            gpus=(),
            conflicts=tuple(conflict.suggestion or conflict.explanation for conflict in plan.conflicts),
        )
    question = question_of(plan, plan_path)
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
    InputError: if it carries none, or a file it was made from has changed since.
    """
    inputs = plan.inputs
    where = Where(path=str(plan_path))
    if not {"request", "request_path", "as_of"} <= set(inputs):
        raise InputError(
            "This plan does not carry its request.", hint="Make it again with `gpuplan plan ... -o`.", where=where
        )
    folder = Path(inputs["request_path"]).parent
    if not folder.is_dir():
        folder = plan_path.parent
    document = Document(data=inputs["request"], path=inputs["request_path"], sha256=inputs.get("request_sha256", ""))
    question = read_question(document, base_dir=folder, today=date.fromisoformat(inputs["as_of"]), strict=False)
    for name, digest in question.inputs.get("files", {}).items():
        if inputs.get("files", {}).get(name) != digest:
            raise InputError(f"{name} has changed since the plan was made.", hint="Plan again.", where=where)
    return question


def _assignment(plan: Plan) -> Assignment:
    slices = plan.inputs.get("slice_factor")
    return Assignment.fractional() if slices is None else Assignment.sliced(int(slices))


def _money(usd_per_hour: float) -> str:
    return f"{usd_per_hour:,.2f} USD/h ({usd_per_hour * HOURS_PER_MONTH:,.0f} a month)"


def _limit_prices(question: Question, plan: Plan, settings: SolverSettings) -> Iterator[LimitPrice]:
    for name, saving in price_of_limits(question.problem, plan, settings).items():
        sentence = f"Without the limit '{name}' the plan would be {_money(saving)} cheaper."
        if saving <= settings.relative_gap * (plan.cost_usd_per_hour or 0.0):
            sentence = f"The limit '{name}' costs nothing."
        yield LimitPrice(requirement=name, saving_usd_per_hour=saving, sentence=sentence)


def _objective_prices(question: Question, plan: Plan, settings: SolverSettings) -> Iterator[LimitPrice]:
    for relaxation in question.relaxations:
        yield _objective_price(relaxation, plan, settings)


def _objective_price(relaxation: Relaxation, plan: Plan, settings: SolverSettings) -> LimitPrice:
    slo, cost = relaxation.slo, plan.cost_usd_per_hour or 0.0
    looser = relaxation.problem_with_bound(slo.bound_s * LOOSENING)
    found = solve(looser, settings=settings, assignment=_assignment(plan))
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
