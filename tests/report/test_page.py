"""The HTML page and the notebook fragment: well formed, offline, and safe whatever the names are."""

import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from planner.report.page import CHART_WIDTH, plan_html, report_html

NAMES = ("melange", "catalog", "infeasible", "odd_names")
VOID = {"meta", "br", "rect"}


class Checker(HTMLParser):
    """Notes every tag, and fails at one that closes another than the last opened."""

    def __init__(self):
        super().__init__()
        self.open, self.tags, self.text = [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def parsed(html):
    checker = Checker()
    checker.feed(html)
    checker.close()
    assert checker.open == []
    return checker


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("make", [plan_html, report_html])
def test_is_well_formed_and_loads_nothing(make, name, request, today):
    page = parsed(make(request.getfixturevalue(name), today=today))
    names = {tag for tag, _ in page.tags}
    assert not names & {"script", "link", "img", "iframe", "object", "embed"}
    for _, attributes in page.tags:
        assert not set(attributes) & {"src", "href", "onclick", "onload"}


@pytest.mark.parametrize("make", [plan_html, report_html])
def test_a_service_called_script_is_text(make, odd_names, today):
    html = make(odd_names, today=today)
    assert "<script" not in html
    assert "&lt;script&gt;alert(&#34;x&#34;)&lt;/script&gt;" in html
    assert '<script>alert("x")</script>' in "".join(parsed(html).text)


@pytest.mark.parametrize("make", [plan_html, report_html])
def test_shows_costs_names_and_that_nothing_was_simulated(make, catalog, today):
    text = " ".join("".join(parsed(make(catalog, today=today)).text).split())
    wanted = ("q1-fleet", "36.86", "26,908", "a2-ultragpu-2g", "g6.xlarge", "us-central1", "TP2 bf16", "W201")
    for phrase in (*wanted, "replays it request by request", "10% headroom"):
        assert phrase in text


def test_infeasible_page_shows_the_way_out(infeasible, today):
    for make in (plan_html, report_html):
        text = "".join(parsed(make(infeasible, today=today)).text)
        assert "ttft p99 200 ms -> 310 ms" in text
        assert "What to rent" not in text


def test_charts_say_in_words_what_they_show(catalog, today):
    page = parsed(report_html(catalog, today=today))
    charts = [attributes for tag, attributes in page.tags if tag == "svg"]
    assert len(charts) == 2
    ids = {attributes.get("id") for _, attributes in page.tags}
    for chart in charts:
        assert chart["role"] == "img"
        assert set(chart["aria-labelledby"].split()) <= ids
    text = "".join(page.text)
    assert "This plan: 36.86; A100-80GB alone (9 replicas): 45.63;" in text


def test_bars_are_as_long_as_the_costs_are_high(catalog, today):
    html = report_html(catalog, today=today)
    bars = re.findall(r'<title>([^<]*): ([\d.]+)</title>.*?<rect[^>]* width="([\d.]+)"', html)
    assert len(bars) == 2 + 6
    rent, compared = bars[:2], bars[2:]
    for group in (rent, compared):
        scale = [float(width) / float(value) for _, value, width in group]
        assert scale == pytest.approx([scale[0]] * len(scale), rel=0.01)
        assert max(float(width) for _, _, width in group) < CHART_WIDTH


def test_a_gpu_that_cannot_serve_is_named_with_the_reason_but_has_no_bar(catalog, today):
    plan = replace(catalog, baselines=catalog.baselines[:4])
    html = report_html(plan, today=today)
    assert "L4: Qwen2.5-32B does not fit its memory" in "".join(parsed(html).text)
    assert html.count("<rect") == 2 + 4


def test_a_plan_that_costs_nothing_has_a_page(catalog, today):
    free = replace(
        catalog,
        cost_usd_per_hour=0.0,
        bound_usd_per_hour=0.0,
        gap=0.0,
        allocation=(),
        rentals=(),
        routing=(),
        power_w=0.0,
    )
    assert "0.00" in report_html(free, today=today)


def test_same_plan_same_page(catalog, today):
    assert report_html(catalog, today=today) == report_html(catalog, today=today)
