"""What surviving scenarios costs, in words, and the regret table."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from planner.domain.robustness import PLAIN, ROBUST
from planner.report.wording import clean, number, percent, plural, usd

if TYPE_CHECKING:
    from planner.domain.plan import Plan
    from planner.domain.robustness import FleetOutcomes, Outcome, Robustness

NOT_KNOWN = "-"


@dataclass(frozen=True, slots=True, kw_only=True)
class ScenarioLine:
    """One scenario, and how the plain and the robust fleet fare in it."""

    name: str
    description: str
    rate: str
    least: str
    """USD/h of the best fleet for it alone."""
    plain: str
    robust: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RegretRow:
    """One fleet through all scenarios."""

    fleet: str
    usd_per_hour: str
    cells: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class RobustnessView:
    """The regret table, short for terminals and whole for pages."""

    title: str
    lines: tuple[ScenarioLine, ...]
    rows: tuple[RegretRow, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class RegretEntry:
    """One line of the regret table as CSV."""

    fleet: str
    scenario: str
    rate_rps: float
    cost_usd_per_hour: float
    least_usd_per_hour: float | None
    regret_usd_per_hour: float | None
    unserved_rps: float
    probability: float | None


def robustness_text(plan: Plan) -> str:
    """Return what surviving costs, in a sentence; empty where there is nothing to survive."""
    found, cost = plan.robustness, plan.cost_usd_per_hour
    if found is None or cost is None:
        return ""
    n_scenarios = len(found.scenarios) - 1 + len(found.unaffected)
    what = plural(n_scenarios, "scenario")
    if found.price_usd_per_hour is None:
        return f"{what} survived; what that costs is not known, as the time limit came first."
    plain = cost - found.price_usd_per_hour
    if abs(found.price_usd_per_hour) < PRICE_DUST_USD:
        return f"surviving {what} costs nothing: the plain fleet does so too, or one as cheap."
    share = f", {percent(found.price_usd_per_hour / plain)} more than the plain fleet" if plain > 0 else ""
    return f"surviving {what} costs {usd(found.price_usd_per_hour)} USD/h{share}."


PRICE_DUST_USD = 5e-4
"""What prints as 0.00."""


def robustness_view(plan: Plan) -> RobustnessView | None:
    """Return the regret table of a plan in words; None if it has none."""
    found = plan.robustness
    if found is None:
        return None
    rows = {row.fleet: row for row in found.fleets}
    lines = tuple(
        ScenarioLine(
            name=clean(case.name),
            description=clean(case.description),
            rate=number(case.rate_rps),
            least=NOT_KNOWN if case.least_usd_per_hour is None else usd(case.least_usd_per_hour),
            plain=_cell(rows[PLAIN].outcomes[index]) if PLAIN in rows else NOT_KNOWN,
            robust=_cell(rows[ROBUST].outcomes[index]),
        )
        for index, case in enumerate(found.scenarios)
    )
    return RobustnessView(
        title=f"USD/h against {_best(plan)} for that scenario alone, and what cannot be served",
        lines=lines,
        rows=tuple(_row(row) for row in found.fleets),
    )


def _best(plan: Plan) -> str:
    """Return what the fleet for one scenario is the best in: under objectives of the request it may be a dear one."""
    return "the best fleet by the objective (not by cost)" if plan.objectives else "the cheapest fleet"


def regret_entries(found: Robustness) -> tuple[RegretEntry, ...]:
    """Return the regret table, one entry per fleet and scenario."""
    return tuple(
        RegretEntry(
            fleet=row.fleet,
            scenario=case.name,
            rate_rps=case.rate_rps,
            cost_usd_per_hour=row.cost_usd_per_hour,
            least_usd_per_hour=case.least_usd_per_hour,
            regret_usd_per_hour=item.regret_usd_per_hour,
            unserved_rps=item.unserved_rps,
            probability=case.probability,
        )
        for row in found.fleets
        for case, item in zip(found.scenarios, row.outcomes, strict=True)
    )


def _row(row: FleetOutcomes) -> RegretRow:
    name = clean(row.fleet) if row.fleet in {PLAIN, ROBUST} else f"for {clean(row.fleet)} alone"
    expected = (
        "" if row.expected_unserved_rps is None else f" ({number(row.expected_unserved_rps)} req/s expected unserved)"
    )
    return RegretRow(
        fleet=name + expected,
        usd_per_hour=usd(row.cost_usd_per_hour),
        cells=tuple(_cell(item) for item in row.outcomes),
    )


def _cell(item: Outcome) -> str:
    """Return an entry in words: "+6.88", or "-5.07, 1.56 req/s unserved"."""
    regret = NOT_KNOWN if item.regret_usd_per_hour is None else f"{item.regret_usd_per_hour + 0.0:+.2f}"
    regret = "0.00" if regret in {"+0.00", "-0.00"} else regret
    return f"{regret}, {number(item.unserved_rps)} req/s unserved" if item.unserved_rps > 0 else regret
