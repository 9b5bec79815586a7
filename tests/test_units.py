from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner import units
from planner.errors import InputError


@pytest.mark.parametrize(
    ("parse", "text", "value"),
    [
        (units.parse_duration_s, "30s", 30.0),
        (units.parse_duration_s, "200 ms", 0.2),
        (units.parse_duration_s, "1_000us", 1e-3),
        (units.parse_duration_s, "180d", 180 * 86400.0),
        (units.parse_rate_rps, "3600 req/h", 1.0),
        (units.parse_usd_per_hour, "7300 USD/month", 10.0),
        (units.parse_power_w, "1.5 MW", 1.5e6),
        (units.parse_fraction, "0.5%", 0.005),
        (units.parse_fraction, 1, 1.0),
    ],
)
def test_what_is_read(parse, text, value):
    assert parse(text) == pytest.approx(value)


@pytest.mark.parametrize(
    ("parse", "text"),
    [
        (units.parse_duration_s, 30),
        (units.parse_duration_s, "30"),
        (units.parse_duration_s, "thirty s"),
        (units.parse_duration_s, "30 S"),
        (units.parse_duration_s, None),
        (units.parse_duration_s, True),
        (units.parse_duration_s, "1e999 s"),
        (units.parse_rate_rps, "30 s"),
        (units.parse_usd_per_hour, "2.49"),
        (units.parse_power_w, "40"),
        (units.parse_power_w, "40 kWh"),
        (units.parse_fraction, 20),
        (units.parse_fraction, "20 percent"),
    ],
)
def test_what_is_refused_says_how_to_write_it(parse, text):
    with pytest.raises(InputError) as caught:
        parse(text)
    assert "Write it as" in caught.value.hint


@given(st.floats(min_value=1e-3, max_value=1e9))
def test_formatted_durations_read_back(seconds):
    assert units.parse_duration_s(units.format_duration(seconds)) == pytest.approx(seconds, rel=0.01)


@given(st.floats(min_value=1.0, max_value=1e12))
def test_formatted_power_reads_back(watts):
    assert units.parse_power_w(units.format_power(watts)) == pytest.approx(watts, rel=0.01)
