from __future__ import annotations

from dataclasses import replace
from datetime import date, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.catalog.gpus import load_gpus
from planner.catalog.offers import load_offers
from planner.catalog.select import DEFAULT_MAX_PRICE_AGE_DAYS, OfferFilter, plannable, select_offers
from planner.domain.hardware import Market
from planner.errors import DataMissingError, InputError

TODAY = date(2026, 11, 21)


def select(offers=None, today=TODAY, **wanted):
    return select_offers(
        load_offers() if offers is None else offers, OfferFilter(**wanted), today=today, gpus=load_gpus()
    )


def test_no_filter_keeps_everything():
    selection = select()
    assert selection.offers == load_offers()
    assert sum(selection.n_dropped_by.values()) == 0


def test_filters_combine_and_count_what_they_drop():
    selection = select(providers=["aws", "gcp"], regions=["us-*"], gpus_include=["L4"], markets=[Market.ON_DEMAND])
    assert selection.offers
    for offer in selection.offers:
        assert offer.provider in {"aws", "gcp"}
        assert offer.region.startswith("us-")
        assert (offer.gpu, offer.market) == ("L4", Market.ON_DEMAND)
    assert set(selection.n_dropped_by) == {"provider", "region", "gpu", "market"}
    assert sum(selection.n_dropped_by.values()) + len(selection.offers) == len(load_offers())


def test_gpu_families_and_exclusions():
    all_a100 = {offer.gpu for offer in select(gpus_include=["A100"]).offers}
    assert all_a100 == {"A100-40GB", "A100-40GB-PCIe", "A100-80GB", "A100-80GB-PCIe"}
    assert {offer.gpu for offer in select(gpus_include=["A100-80GB"]).offers} == {"A100-80GB"}
    without = {offer.gpu for offer in select(gpus_exclude=["V100", "T4"]).offers}
    assert not [gpu for gpu in without if gpu.startswith("V100") or gpu == "T4"]
    assert "T4G" in without


def test_case_does_not_matter():
    assert (
        select(providers=["AWS"], gpus_include=["nvidia l4"]).offers
        == select(providers=["aws"], gpus_include=["L4"]).offers
    )


@pytest.mark.parametrize(
    ("wanted", "message", "hint"),
    [
        ({"providers": ["awz"]}, "No offer is of the provider 'awz'", "Did you mean 'aws'?"),
        ({"regions": ["us-esat-1"]}, "No offer is of the region 'us-esat-1'", "us-east-1"),
        ({"gpus_include": ["H10"]}, "The GPU 'H10' is not known", "Did you mean"),
        ({"gpus_include": ["MI355X"]}, "No offer has the GPU 'MI355X'", "MI350X"),
        ({"gpus_exclude": ["H1000"]}, "The GPU 'H1000' is not known", "H100"),
    ],
)
def test_a_filter_that_matches_nothing_is_an_error(wanted, message, hint):
    with pytest.raises((InputError, DataMissingError), match=message) as caught:
        select(**wanted)
    assert hint in caught.value.hint


def test_stale_prices_are_one_warning_per_provider():
    offers = select(providers=["aws", "oracle-cloud", "tensordock"])
    assert [warning.code for warning in offers.warnings] == ["W201", "W201"]
    oracle, tensordock = offers.warnings
    assert oracle.message == (
        "oracle-cloud: all 5 prices up to 630 days (20.7 months) old, as of 2025-03-01; the limit is 180 days."
    )
    assert (oracle.observed, oracle.threshold) == (20.7, 5.9)
    assert tensordock.message.startswith("tensordock: all 10 prices")
    assert len(offers.offers) == 115


def test_a_stale_price_is_warned_of_after_the_limit_and_not_on_it():
    offers = [offer for offer in load_offers() if offer.provider == "aws"]
    limit = offers[0].as_of + timedelta(days=DEFAULT_MAX_PRICE_AGE_DAYS)
    assert select(offers, today=limit).warnings == ()
    assert len(select(offers, today=limit + timedelta(days=1)).warnings) == 1
    assert len(select(offers, today=limit, max_price_age_days=179).warnings) == 1


def test_some_stale_prices_are_counted():
    gcp = select(providers=["gcp"], max_price_age_days=365)
    assert [warning.message.split(" up to")[0] for warning in gcp.warnings] == ["gcp: 20 of 788 prices"]


def test_undated_prices_are_warned_of_but_not_those_of_owned_machines():
    offer = replace(load_offers()[0], as_of=None)
    assert [warning.code for warning in select([offer]).warnings] == ["W202"]
    assert select([replace(offer, market=Market.OWNED)]).warnings == ()


def test_shares_of_a_gpu_are_not_planned_on():
    whole, warnings = plannable(load_offers())
    assert all(float(offer.gpus_per_instance).is_integer() for offer in whole)
    assert [warning.code for warning in warnings] == ["W203"]
    assert warnings[0].observed == len(load_offers()) - len(whole) == 167
    assert plannable(whole) == (whole, ())


@given(
    st.lists(st.sampled_from(sorted({offer.provider for offer in load_offers()})), min_size=1, max_size=3),
    st.lists(st.sampled_from(list(Market)), min_size=1, max_size=2),
)
def test_more_filters_never_give_more_offers(providers, markets):
    loose, tight = select(providers=providers), select(providers=providers, markets=markets)
    assert {offer.name for offer in tight.offers} <= {offer.name for offer in loose.offers}
