"""The terminal report: fits its width, says what it must, and takes no name for markup."""

import io
from dataclasses import replace

import pytest
from rich.cells import cell_len
from rich.console import Console

from planner.domain.plan import Allocation, PlanStatus
from planner.report.terminal import plan_renderables

NAMES = ("melange", "catalog", "infeasible", "odd_names")
WIDTHS = (60, 80, 120)


def rendered(plan, today, width=120, *, verbose=False, encoding="utf-8"):
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding, write_through=True)
    console = Console(file=stream, width=width, highlight=False)
    for part in plan_renderables(plan, today=today, verbose=verbose):
        console.print(part)
    return stream.buffer.getvalue().decode(encoding)


def squeezed(text):
    """Folding may break a name anywhere: compare without white space."""
    return "".join(text.split())


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("verbose", [False, True])
def test_no_line_is_longer_than_the_terminal(name, width, verbose, request, today):
    text = rendered(request.getfixturevalue(name), today, width, verbose=verbose)
    assert max(cell_len(line) for line in text.splitlines()) <= width
    assert "…" not in text


@pytest.mark.parametrize("width", WIDTHS)
def test_tells_what_to_rent_where_and_at_what_price(width, catalog, today):
    text = rendered(catalog, today, width)
    wanted = ("q1-fleet", "3 x a2-ultragpu-2g", "8 x g6.xlarge", "gcp us-central1,", "on-demand", "2x A100-80GB")
    wanted += ("chat + search, 150 req/s", "36.86", "26,908", "6.44", "TP2 bf16", "77%", "81%", "< 1k in")
    for phrase in wanted:
        assert phrase in text
    flat = " ".join(text.split())
    assert "0.25 USD per million output tokens" in flat
    assert "proven within 0.01% of the optimum" in flat
    assert "19% below the best single GPU type (A100-80GB, 45.63 USD/h)" in flat
    assert "aws 4 months old, gcp 3 months old" in flat
    assert "of 3 options 1 measured, 1 calibrated, 1 estimated" in flat
    assert "W201: Prices of aws are 134 days old" in flat
    assert "replays it request by request" in flat
    assert "1 of 14 rented GPUs run no replica" in flat
    assert "10% headroom is kept" in flat


def test_wide_table_splits_the_cost_of_a_shared_machine(catalog, today):
    text = rendered(catalog, today, 120)
    (chat,) = [line for line in text.splitlines() if line.startswith(" 3 x a2")]
    assert "5.07" in chat
    assert "25.35" in text
    (total,) = [line for line in text.splitlines() if line.startswith(" total")]
    assert total.split()[-2:] == ["36.86", "26,908"]


def test_shows_the_five_cheapest_baselines_and_says_how_many_more(catalog, today):
    text = rendered(catalog, today)
    order = ["A100-80GB", "MI300X", "L40S", "H200-141GB", "H100-80GB"]
    positions = [text.rindex(gpu) if gpu != "A100-80GB" else text.index("A100-80GB          9") for gpu in order]
    assert positions == sorted(positions)
    assert "B200" not in text
    assert "2 more in plan.json" in text


def test_an_infeasible_baseline_says_why(catalog, today):
    text = rendered(replace(catalog, baselines=catalog.baselines[3:4], savings_vs_best_single=None), today)
    assert "Qwen2.5-32B does not fit its memory" in text
    assert "No single GPU type can serve this demand." in text


@pytest.mark.parametrize("width", WIDTHS)
def test_an_infeasible_request_names_conflicts_and_ways_out(width, infeasible, today):
    text = rendered(infeasible, today, width)
    assert "no feasible plan exists" in text
    for phrase in (
        "chat: ttft p99 <= 200 ms",
        "ttft p99 200 ms -> 310 ms",
        "5 -> 7.25 USD/h",
        "changing this alone does not help",
    ):
        assert phrase in text
    assert "total" not in text
    assert "SLO:" not in text


@pytest.mark.parametrize("width", WIDTHS)
def test_long_and_odd_names_stand_there_in_full(width, odd_names, today):
    text = rendered(odd_names, today, width)
    assert "\x1b" not in text
    if width == 60:  # elsewhere the name's pieces are interleaved with the other columns
        assert squeezed(r"a|b,c\n*[red]très_long-" + "interminable-" * 8 + r"人工\x1b[31m") in squeezed(text)
    assert "[red]" in text
    assert "人工" in text


def test_offers_that_differ_in_the_last_letter_stay_apart(odd_names, today):
    row = odd_names.allocation[0]
    long = "x" * 100
    rows = tuple(replace(row, offer=long + end, option=long + end) for end in "ab")
    text = squeezed(rendered(replace(odd_names, allocation=rows, rentals=(), routing=()), today, 60))
    assert long + "a" in text
    assert long + "b" in text


def test_verbose_shows_each_bucket_and_its_weights(catalog, melange, today):
    text = rendered(catalog, today, verbose=True)
    assert "Routing of chat" in text
    assert "A = aws/g6.xlarge/us-east-1/on-demand" in text
    assert "B = gcp/a2-ultragpu-2g/us-central1/on-demand[bf16 tp1]" in text
    (split,) = [line for line in text.splitlines() if "0 to < 1k" in line and "250 to < 2k" in line]
    assert split.split()[-5:] == ["4", "50%", "A,", "50%", "B"]
    assert "row 1  column 0" in rendered(melange, today, verbose=True)
    assert "Routing of" not in rendered(catalog, today)


def test_a_limit_is_said_with_its_gap(odd_names, today):
    text = " ".join(rendered(odd_names, today).split())
    assert "not proven optimal: a limit stopped the search at a gap of 2.8%" in text
    assert "no plan can cost less than 1,200.00 USD/h" in text


def test_no_plan_before_the_limit(infeasible, today):
    plan = replace(infeasible, status=PlanStatus.UNKNOWN, conflicts=(), bound_usd_per_hour=4.5)
    text = " ".join(rendered(plan, today).split())
    assert "No feasible plan exists." in rendered(replace(infeasible, name="", rate_rps=0.0), today)
    assert "no plan was found before a limit was reached" in text
    assert "No plan can cost less than 4.50 USD/h." in text


def test_ascii_terminals_get_ascii(catalog, today):
    assert rendered(catalog, today, encoding="ascii").isascii()


def test_colour_only_where_it_is_wanted(catalog, today, monkeypatch):
    def print_to(**settings):
        stream = io.StringIO()
        console = Console(file=stream, width=80, force_terminal=True, **settings)
        for part in plan_renderables(catalog, today=today):
            console.print(part)
        return stream.getvalue()

    monkeypatch.delenv("NO_COLOR", raising=False)
    assert "\x1b[1;36m" in print_to(color_system="standard")
    monkeypatch.setenv("NO_COLOR", "1")
    assert "36m" not in print_to(color_system="standard")


def test_a_plan_without_rentals_still_says_what_to_rent(catalog, today):
    text = rendered(replace(catalog, rentals=()), today)
    assert "3 x a2-ultragpu-2g" in text
    assert "30.42" not in text  # the wide table shows each option's share


def test_many_services_are_counted_not_listed(melange, today):
    row = melange.allocation[0]
    rows = tuple(replace(row, service=f"s{index}") for index in range(50))
    assert isinstance(rows[0], Allocation)
    assert "50 services, 30 req/s" in rendered(replace(melange, allocation=rows, routing=()), today)
