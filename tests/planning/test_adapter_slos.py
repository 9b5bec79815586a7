"""Objectives of adapters in few classes: each plan keeps the strictest, each bound the loosest."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from planner.domain.adapters import Adapter
from planner.domain.slo import Metric, Slo
from planner.planning.adapter_slos import slo_classes


def adapter(name, slos, rate=1.0):
    return Adapter(name=name, rank=8, target_modules=("q_proj",), rate_rps=rate, slos=slos)


BOUND = st.floats(1e-3, 10.0)
SLOS = st.one_of(
    st.builds(lambda s: (Slo(metric=Metric.TPOT, percentile=None, bound_s=s),), BOUND),
    st.builds(
        lambda s, t: (
            Slo(metric=Metric.TTFT, percentile=99.0, bound_s=s),
            Slo(metric=Metric.TPOT, percentile=None, bound_s=t),
        ),
        BOUND,
        BOUND,
    ),
    st.just(()),
)


@given(st.lists(st.tuples(SLOS, st.floats(0.0, 5.0)), min_size=1, max_size=30), st.integers(2, 8))
def test_a_class_is_as_strict_as_its_strictest_and_as_loose_as_its_loosest(drawn, most):
    adapters = [adapter(f"a{i}", slos, rate) for i, (slos, rate) in enumerate(drawn)]
    found = slo_classes(adapters, most)
    assert set(found) == {slos for slos, _ in drawn if slos}
    assert len(set(found.values())) <= most
    for slos, each in found.items():
        for strict, own, loose in zip(each.strictest, sorted_like(slos, each), each.loosest, strict=True):
            assert (strict.metric, strict.percentile) == (loose.metric, loose.percentile)
            assert strict.bound_s <= own.bound_s <= loose.bound_s


def sorted_like(slos, each):
    """Return an adapter's objectives in the order of its class."""
    by_name = {(slo.metric, slo.percentile): slo for slo in slos}
    return [by_name[slo.metric, slo.percentile] for slo in each.strictest]


def test_few_objectives_stay_as_they_are_and_many_are_cut_where_they_differ_most():
    made = [adapter(f"a{i}", (Slo(metric=Metric.TPOT, percentile=None, bound_s=s),)) for i, s in enumerate([1, 2, 90])]
    assert all(each.strictest == each.loosest == slos for slos, each in slo_classes(made, 3).items())
    bounds = {slos[0].bound_s: (each.strictest[0].bound_s, each.loosest[0].bound_s) for slos, each in
              slo_classes(made, 2).items()}  # fmt: skip
    assert bounds == {1: (1, 2), 2: (1, 2), 90: (90, 90)}
