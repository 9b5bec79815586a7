"""The figures and phrases that every report shares."""

from dataclasses import replace
from datetime import date

import pytest

from planner.domain.plan import ObjectiveValue, PlanStatus, RedundancyPrice, Route
from planner.domain.provenance import ProvenanceKind
from planner.report import notes, summary
from planner.report.serves import ServesIndex, range_text
from planner.report.wording import age, clean


def test_cost_figures_follow_from_cost_per_hour(catalog, infeasible):
    assert summary.cost_per_month_usd(catalog) == pytest.approx(36.86 * 730)
    assert summary.usd_per_million_output_tokens(catalog) == pytest.approx(36.86 / (41000 * 3600) * 1e6)
    assert summary.cost_per_month_usd(infeasible) is None
    assert summary.usd_per_million_output_tokens(replace(catalog, output_tokens_per_s=None)) is None
    assert summary.usd_per_million_output_tokens(replace(catalog, output_tokens_per_s=0.0)) is None


def test_rows_add_up_to_the_plan(catalog):
    rows = summary.allocation_rows(catalog)
    assert sum(row.cost_usd_per_hour for row in rows) == pytest.approx(catalog.cost_usd_per_hour)
    assert sum(row.power_w for row in rows) == pytest.approx(catalog.power_w)
    assert [row.gpus for row in rows] == [8, 1, 4]
    chat = [row.request_share_fraction for row in rows if row.service == "chat"]
    assert sum(chat) == pytest.approx(1.0)
    assert chat[0] == pytest.approx((18 + 2) / 30)


def test_rentals_stand_dearest_first_with_what_runs_on_them(catalog):
    views = summary.rental_views(catalog)
    assert [view.what for view in views] == ["a2-ultragpu-2g", "g6.xlarge"]
    assert [item.service for item in views[0].serving] == ["chat", "search"]
    assert views[0].where == "gcp us-central1, on-demand"


@pytest.mark.parametrize(
    ("saving", "phrase"),
    [
        (0.22, "22% below"),
        (0.0872, "8.7% below"),
        (-0.031, "3.1% above"),
        (0.0, "a mix saves nothing"),
        (None, "below"),
    ],
)
def test_saving_names_the_best_single_type(saving, phrase, melange):
    text = notes.saving_text(replace(melange, savings_vs_best_single=saving))
    assert phrase in text
    assert "A100-80GB, 7.34 USD/h" in text


def test_saving_without_baselines_is_silent(melange):
    assert notes.saving_text(replace(melange, baselines=())) == ""


def test_age_is_counted_to_the_given_day():
    assert age(date(2026, 11, 21), today=date(2026, 11, 21)) == "of today"
    assert age(date(2026, 11, 20), today=date(2026, 11, 21)) == "1 day old"
    assert age(date(2026, 9, 23), today=date(2026, 11, 21)) == "59 days old"
    assert age(date(2026, 9, 22), today=date(2026, 11, 21)) == "2 months old"
    assert age(date(2024, 11, 21), today=date(2026, 11, 21)) == "24 months old"
    assert "future" in age(date(2027, 1, 1), today=date(2026, 11, 21))
    assert age(None, today=date(2026, 11, 21)) == "of unknown date"


def test_a_provider_is_as_old_as_its_oldest_price(catalog, today):
    older = replace(catalog.rentals[0], offer="other", price_as_of="2025-11-21")
    undated = replace(catalog.rentals[1], offer="third", price_as_of=None)
    text = notes.price_age_text(replace(catalog, rentals=(*catalog.rentals, older, undated)), today=today)
    assert text == "aws 12 months old, gcp of unknown date."


def test_optimality_never_claims_more_than_was_proven(catalog):
    assert summary.optimality_text(replace(catalog, gap=0.0)) == "proven optimal"
    assert summary.optimality_text(replace(catalog, gap=0.00011)) == "proven within 0.02% of the optimum"
    assert summary.optimality_text(replace(catalog, gap=0.0101)) == "proven within 1.1% of the optimum"


def test_power_counts_only_what_is_known(catalog, melange):
    assert notes.power_text(catalog) == "2.58 kW at peak, the GPUs of all replicas together, without PUE."
    first = replace(catalog.allocation[0], power_w=None)
    partly = replace(catalog, power_w=None, allocation=(first, *catalog.allocation[1:]))
    assert (
        notes.power_text(partly) == "2 kW at peak, the GPUs without PUE and without 1 option whose power is not known."
    )
    assert notes.power_text(melange) == ""


def test_provenance_is_counted_by_option_and_weighed_by_requests(catalog, melange):
    assert notes.provenance_text(melange) == "as given in the request."
    assert notes.provenance_text(catalog) == (
        "of 3 options 1 measured, 1 calibrated, 1 estimated; by requests 12% measured, 88% estimated."
    )
    measured = tuple(replace(row, provenance=ProvenanceKind.MEASURED) for row in catalog.allocation)
    assert notes.provenance_text(replace(catalog, allocation=measured, routing=())) == "measured, for all 3 options."


def grid(weights):
    """A service with 2 x 3 buckets; weights[row][column] go to option "o", the rest to "p"."""
    sizes_in, sizes_out = ((0, 1000), (1000, 4000)), ((0, 250), (250, 1000), (1000, 2000))
    return [
        Route(
            service="s",
            input_tokens=sizes_in[row],
            output_tokens=sizes_out[column],
            row=row,
            column=column,
            rate_rps=1.0,
            weights={"o": weights[row][column], "p": 1 - weights[row][column]},
        )
        for row in range(2)
        for column in range(3)
    ]


@pytest.mark.parametrize(
    ("weights", "phrase"),
    [
        ([[1, 1, 1], [1, 1, 1]], "all requests"),
        ([[1, 1, 1], [0.5, 0.5, 0.5]], "all sizes (75% of requests)"),
        ([[1, 1, 1], [0, 0, 0]], "< 1k in (50% of requests)"),
        ([[0, 0, 0], [1, 1, 1]], ">= 1k in (50% of requests)"),
        ([[1, 0, 0], [0, 0, 0]], "< 1k in, < 250 out (17% of requests)"),
        ([[0, 1, 0], [0, 1, 0]], "250 to < 1k out (33% of requests)"),
        ([[0, 0, 0], [0, 1, 1]], ">= 1k in, >= 250 out (33% of requests)"),
        ([[1, 1, 0], [1, 0, 0]], "3 of 6 buckets, all < 1k out (50% of requests)"),
        ([[1, 0, 0], [0, 0, 1]], "2 of 6 buckets (33% of requests)"),
        ([[0, 0, 0], [0, 0, 1e-9]], "nothing"),
    ],
)
def test_serves_is_a_range_only_if_it_is_one(weights, phrase):
    assert ServesIndex(grid(weights)).text("s", "o") == phrase


def test_serves_counts_buckets_known_by_position_only(melange):
    assert ServesIndex(melange.routing).text("default", "A10G") == "1 of 4 buckets (50% of requests)"


def test_serves_without_routes_is_silent():
    assert ServesIndex([]).text("s", "o") == ""
    assert ServesIndex([]).request_share("s", "o") is None


def test_inclusive_edges_read_as_they_were_meant():
    assert range_text((0, 251), (0, 1001), "out") == "<= 250 out"
    assert range_text((251, 501), (0, 1001), "out") == "> 250 to <= 500 out"


def test_names_cannot_steer_the_terminal():
    assert clean("a\x1b[2Jb\u202ec\nd") == "a\\x1b[2Jb\\u202ec\\nd"
    assert clean("naïve 人工 😀") == "naïve 人工 😀"


def test_what_stands_beside_the_cost_is_added_up_and_named_in_the_objective(catalog):
    assert notes.total_text(catalog) == ""
    plan = replace(
        catalog,
        egress_usd_per_hour=7.74,
        change_usd_per_hour=0.4,
        objectives=(ObjectiveValue(minimise="cost", value=45.0, bound=None, unit="USD/h"),),
    )
    assert notes.total_text(plan) == "45.00 USD/h: 36.86 for what is rented, 7.74 for egress, 0.40 for changes."
    assert notes.objective_text(plan) == "least cost with egress and changes 45 USD/h."
    assert notes.objective_text(replace(plan, egress_usd_per_hour=None, change_usd_per_hour=None)) == (
        "least cost 45 USD/h."
    )


@pytest.mark.parametrize(("status", "word"), [(PlanStatus.OPTIMAL, "at least"), (PlanStatus.FEASIBLE, "about")])
def test_only_an_optimal_plan_costs_at_least_so_much_more(catalog, status, word):
    item = RedundancyPrice(
        requirement="survive zone", cost_without_usd_per_hour=30.0, extra_usd_per_hour=6.86, is_proven=False
    )
    text = notes.redundancy_text(replace(catalog, status=status, redundancy=(item,)))
    assert text == f"survive zone {word} 6.86 USD/h, 19% of the cost."
