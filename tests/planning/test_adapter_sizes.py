"""Sizes of adapters' requests, from the workload to the routing: which are put together, where they go."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import planner
from planner.domain.workload import Bucket, Demand
from planner.files.documents import parse_document
from planner.files.plan_schema import plan_from_document
from planner.planning.adapter_sizes import size_classes

MODEL = "meta-llama/Llama-3.1-8B-Instruct"


def grid(cells):
    """Return a demand with the cells (row, column) of a grid of doubling sizes, each with a rate."""
    buckets = tuple(
        Bucket(
            row=row,
            column=column,
            rate_rps=rate,
            input_range=(2**row, 2 ** (row + 1)),
            output_range=(2**column, 2 ** (column + 1)),
            input_tokens=1.5 * 2**row,
            output_tokens=1.5 * 2**column,
        )
        for (row, column), rate in sorted(cells.items())
    )
    return Demand(service="s", buckets=buckets)


CELLS = st.dictionaries(st.tuples(st.integers(0, 5), st.integers(0, 5)), st.floats(0.01, 10), min_size=1, max_size=20)


@given(CELLS, st.integers(0, 12))
def test_classes_are_rectangles_that_have_every_bucket_once(cells, most):
    sizes = grid(cells)
    classes = size_classes(sizes, most)
    assert len(classes) <= max(most, 1)
    assert sorted(position for each in classes for position in each.positions) == list(range(len(sizes.buckets)))
    for each in classes:
        for index, bucket in enumerate(sizes.buckets):
            inside = all(
                low <= other[0] and other[1] <= high
                for (low, high), other in (
                    (each.input_range, bucket.input_range),
                    (each.output_range, bucket.output_range),
                )
            )
            assert inside is (index in each.positions)
    if most >= len(sizes.buckets):
        assert len(classes) == len(sizes.buckets)


def test_sizes_that_hardly_matter_are_put_together_first():
    sizes = grid({(0, 0): 5.0, (1, 0): 5.0, (8, 0): 5.0})
    assert [each.positions for each in size_classes(sizes, 2)] == [(0, 1), (2,)]
    # Few requests of another size cost less to put with their neighbours than many.
    rare = grid({(4, 0): 5.0, (5, 0): 0.001, (7, 0): 0.001, (8, 0): 5.0})
    assert [each.positions for each in size_classes(rare, 2)] == [(0, 1), (2, 3)]
    assert size_classes(sizes, 1)[0].input_range == (1, 512)


@pytest.fixture(scope="module")
def planned(tmp_path_factory):
    """Three adapters whose short requests are cheap on small GPUs that cannot serve the long ones."""
    folder = tmp_path_factory.mktemp("sizes")
    rng = np.random.default_rng(0)
    is_long = rng.random(400) < 0.01
    rows = "".join(
        f"{second},{12000 if long else 200},{100 if long else 50}\n" for second, long in enumerate(is_long.tolist())
    )
    (folder / "t.csv").write_text(f"arrival_s,input_tokens,output_tokens\n{rows}", encoding="utf-8")
    adapters = [
        {"name": f"a{i}", "rank": 16, "target_modules": "q k v o", "rate": f"{rate} req/s"}
        for i, rate in enumerate((17.0, 6.0, 6.0))
    ]
    request = {
        "schema_version": "1",
        "kind": "PlanRequest",
        "services": [
            {
                "name": "chat",
                "model": MODEL,
                "adapters": {"each": adapters},
                "parallelism": {"tp": 1},
                "workload": {"trace": "t.csv"},
                "slo": ["ttft p99 <= 1.5s", "tpot mean <= 70ms"],
            }
        ],
        "catalog": {"providers": ["gcp"], "regions": ["us-central1"], "gpus": {"include": ["A100-40GB", "H100-80GB"]}},
    }
    return planner.plan(request, base_dir=folder, verify=False)


def test_long_prompts_of_an_adapter_go_to_another_gpu_than_its_short_ones(planned):
    gpu = {row.option: row.gpu for row in planned.plan.allocation}
    went = {False: {}, True: {}}
    for route in planned.plan.routing:
        here = went[route.input_tokens[0] >= 4000]
        for option, weight in route.weights.items():
            here[gpu[option]] = here.get(gpu[option], 0.0) + weight * route.rate_rps
    assert went[True]["H100-80GB"] > 0.95 * sum(went[True].values())
    assert went[False]["A100-40GB"] > 0.6 * sum(went[False].values())
    # Sent all to one kind, they need two of the dearer one.
    assert planned.plan.adapters[0].alternatives[1].cost_usd_per_hour > 1.4 * planned.plan.cost_usd_per_hour


def test_an_adapters_sizes_add_up_to_what_is_asked_of_it(planned):
    (item,) = planned.plan.adapters
    rates = {route.column: route.rate_rps for route in planned.plan.routing if route.group == 0}
    total = sum(rates.values())
    for share in item.shares:
        held = [h for r in item.placement for h in r.adapters if h.adapter == share.adapter]
        sizes = np.sum([h.by_size_rps for h in held], axis=0)
        assert sizes == pytest.approx([share.rate_rps * rate / total for _, rate in sorted(rates.items())])


def test_reports_say_whose_requests_of_what_size_go_where(planned):
    page = planned.to_html()
    assert "a0: 100 to &lt; 250" in page
    assert "row 0" not in page
    assert "a1: " in page


def test_groups_and_sizes_are_read_back_as_they_were_written(planned):
    again = plan_from_document(parse_document(planned.to_json().encode(), name="plan.json"))
    (item,), (same,) = again.adapters, planned.plan.adapters
    assert [share.group for share in item.shares] == [share.group for share in same.shares]
    assert [len(h.by_size_rps) for r in item.placement for h in r.adapters] == [
        len(h.by_size_rps) for r in same.placement for h in r.adapters
    ]
    assert [route.group for route in again.routing] == [route.group for route in planned.plan.routing]
    assert "group" not in planner.plan(melange_like(), verify=False).to_document()["routing"][0]


def melange_like():
    return {
        "schema_version": "1",
        "kind": "PlanRequest",
        "services": [
            {
                "name": "chat",
                "model": MODEL,
                "workload": {"constant": {"input_tokens": 100, "output_tokens": 10}, "rate": "1 req/s"},
                "slo": ["ttft p99 <= 2s"],
            }
        ],
        "catalog": {"providers": ["gcp"], "regions": ["us-central1"], "gpus": {"include": ["A100-40GB", "H100-80GB"]}},
    }
