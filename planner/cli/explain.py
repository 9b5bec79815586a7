"""`gpuplan explain`: why a plan is as it is."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from planner.cli import console
from planner.cli.options import (
    GapOption,
    JsonOption,
    SeedOption,
    SolverOption,
    ThreadsOption,
    TimeLimitOption,
    solver_settings,
)

if TYPE_CHECKING:
    from planner.planning.explain import Explanation


def command(
    plan: Annotated[
        Path, typer.Argument(help="plan.json as `gpuplan plan -o plan.json` wrote it.", show_default=False)
    ],
    gpu: Annotated[
        list[str] | None, typer.Option(metavar="GPU", help="Explain why this GPU type is not used. Repeatable.")
    ] = None,
    as_json: JsonOption = False,
    solver: SolverOption = "highs",
    time_limit: TimeLimitOption = "60s",
    gap: GapOption = "0.01%",
    seed: SeedOption = 0,
    threads: ThreadsOption = 1,
) -> None:
    """Say what binds a plan, what each limit and SLO costs, and why other GPUs are not in it."""
    from planner.files.plan_schema import read_plan
    from planner.planning.explain import explain

    settings = solver_settings(solver=solver, time_limit=time_limit, gap=gap, seed=seed, threads=threads)
    explanation = explain(read_plan(plan), plan_path=plan, gpus=gpu or (), settings=settings)
    if as_json:
        console.print_json(explanation.to_dict())
    else:
        console.print_result(*_lines(explanation))


def _lines(explanation: Explanation) -> list[str]:
    if explanation.cost_usd_per_hour is None:
        return ["There is no plan. Any one of these would make one possible:", *_list(explanation.conflicts)]
    fleet = "fleet of the plan" if explanation.given_back else "plan"
    lines = [f"The {fleet} costs {explanation.cost_usd_per_hour:,.2f} USD/h."]
    if explanation.given_back:
        lines += ["", "What could be given back, and what all comes to then:", *_list(explanation.given_back)]
    if explanation.given_back and not explanation.cost_usd_per_hour:
        return [*lines, "", "Nothing is rented all day, so there is no fleet to explain."]
    lines += ["", "What binds:"]
    lines += _list(explanation.binding or ("nothing but the demand itself",))
    lines += ["", "What each limit costs:"]
    lines += _list([price.sentence for price in explanation.limits] or ["the request sets none"])
    lines += ["", "What each service-level objective costs:"]
    lines += _list([price.sentence for price in explanation.objectives] or ["the throughputs were given, not derived"])
    lines += ["", "Why not other GPUs:"]
    lines += _list([reason.sentence for reason in explanation.gpus] or ["every GPU type that could serve is used"])
    if explanation.notes:
        lines += ["", *explanation.notes]
    return lines


def _list(sentences: list[str] | tuple[str, ...]) -> list[str]:
    return [f"  - {sentence}" for sentence in sentences]
