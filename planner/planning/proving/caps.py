"""A question with the utilisation caps that a proof found: what changes is asked of the same replicas, as full."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from planner.errors import InputError
from planner.optimize.fleets import kind_of, with_caps
from planner.optimize.naming import option_keys

if TYPE_CHECKING:
    from collections.abc import Callable

    from planner.domain.problem import FleetProblem
    from planner.domain.proof import Proof
    from planner.planning.question import Question


def with_found_caps(question: Question, proof: Proof) -> Question:
    """Return `question`, and all that could be asked instead of it, with the caps of `proof`.

    Raises
    ------
    InputError: if the proof names an option that the question does not have.
    """
    problem = question.problem
    kinds = {
        (option.service, key): kind_of(option)
        for option, key in zip(problem.options, option_keys(problem.options), strict=True)
    }
    unknown = [cap.option for cap in proof.caps if (cap.service, cap.option) not in kinds]
    if unknown:
        raise InputError(
            f"The plan's proof is about {unknown[0]}, which its request does not have.", hint="Plan again."
        )
    caps = {kinds[cap.service, cap.option]: cap.utilization_cap for cap in proof.caps}
    others = {service.service: service.other_cap for service in proof.services}

    def capped(problem: FleetProblem) -> FleetProblem:
        return with_caps(problem, caps, others)

    def after(make: Callable[[float], FleetProblem]) -> Callable[[float], FleetProblem]:
        return lambda value: capped(make(value))

    together = question.problem_with_all_bounds
    return replace(
        question,
        problem=capped(problem),
        relaxations=tuple(
            replace(item, problem_with_bound=after(item.problem_with_bound)) for item in question.relaxations
        ),
        problem_with_all_bounds=None if together is None else after(together),
    )
