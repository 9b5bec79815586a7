"""Quantities: what the user writes ("30s", "40kW", "2.49 USD/h") to SI floats and back.

Inside gpuplan every number is in seconds, bytes, tokens, requests per second, US dollars per hour, watts or a
fraction of one; the unit stands in the name. A bare number is refused where its unit would be a guess.
"""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, NewType

from planner.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Mapping

# Prices are per instance, capacity is per replica, specifications are per GPU. Mixing them up is the classic
# error of GPU planners (a factor of 8 on an 8-GPU machine), so each has a type of its own.
UsdPerInstanceHour = NewType("UsdPerInstanceHour", float)
UsdPerReplicaHour = NewType("UsdPerReplicaHour", float)
WattsPerReplica = NewType("WattsPerReplica", float)
WattsPerGpu = NewType("WattsPerGpu", float)
BytesPerGpu = NewType("BytesPerGpu", float)

HOURS_PER_MONTH = 730.0
"""365 days x 24 h / 12, the month that cloud providers bill by."""

_SI = {"": 1.0, "k": 1e3, "K": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15}

_DURATION_S = {
    "ns": 1e-9,
    "us": 1e-6,
    "ms": 1e-3,
    "s": 1.0,
    "sec": 1.0,
    "m": 60.0,
    "min": 60.0,
    "h": 3600.0,
    "d": 86400.0,
    "w": 604800.0,
}
_RATE_RPS = {
    "req/s": 1.0,
    "rps": 1.0,
    "/s": 1.0,
    "qps": 1.0,
    "req/min": 1 / 60,
    "/min": 1 / 60,
    "req/h": 1 / 3600,
    "/h": 1 / 3600,
    "req/d": 1 / 86400,
}
_BYTES = {prefix + "B": factor for prefix, factor in _SI.items() if prefix not in {"K", "P"}} | {
    "MiB": 2.0**20,
    "GiB": 2.0**30,
}
_USD_PER_HOUR = {"USD/h": 1.0, "$/h": 1.0, "USD/month": 1 / HOURS_PER_MONTH, "$/month": 1 / HOURS_PER_MONTH}
_USD = {"USD": 1.0, "$": 1.0}
_POWER_W = {prefix + "W": factor for prefix, factor in _SI.items() if prefix not in {"K", "P"}}
_FRACTION = {"%": 0.01}
_USD_PER_KWH = {"USD/kWh": 1.0, "$/kWh": 1.0, "USD/MWh": 1e-3, "$/MWh": 1e-3}
_USD_PER_GB = {"USD/GB": 1.0, "$/GB": 1.0, "USD/TB": 1e-3, "$/TB": 1e-3}
_USD_PER_KG = {"USD/t": 1e-3, "$/t": 1e-3, "USD/kg": 1.0, "$/kg": 1.0}
_KG_PER_HOUR = {
    "kg/h": 1.0,
    "g/h": 1e-3,
    "kg/d": 1 / 24,
    "kg/month": 1 / HOURS_PER_MONTH,
    "t/month": 1000 / HOURS_PER_MONTH,
    "t/year": 1000 / (12 * HOURS_PER_MONTH),
}
_MEAN_KW = {
    "kWh/h": 1.0,
    "kWh/d": 1 / 24,
    "kWh/month": 1 / HOURS_PER_MONTH,
    "MWh/month": 1000 / HOURS_PER_MONTH,
    "MWh/year": 1000 / (12 * HOURS_PER_MONTH),
}
_GRAMS_PER_KWH = {"g/kWh": 1.0, "kg/kWh": 1000.0, "kg/MWh": 1.0, "t/MWh": 1000.0}

BITS_PER_BYTE = 8.0
_BIT_RATE = {f"{prefix}bit/s": factor / BITS_PER_BYTE for prefix, factor in _SI.items() if prefix not in {"K", "P"}}
_BYTE_RATE = {f"{prefix}B/s": factor for prefix, factor in _SI.items() if prefix not in {"K", "P"}}

_NUMBER = re.compile(r"\s*([+-]?(?:\d[\d_]*\.?[\d_]*|\.\d+)(?:[eE][+-]?\d+)?)\s*(.*?)\s*", re.DOTALL)


def _parse(text: object, units: Mapping[str, float], *, what: str, example: str, bare_unit: str | None) -> float:
    """Return `text` in the base unit of `units`; `bare_unit` is assumed for a bare number, None refuses one."""
    hint = f"Write it as {example!r} (units: {', '.join(unit for unit in units if unit)})."
    if isinstance(text, bool) or not isinstance(text, str | int | float):
        raise InputError(f"{what} must be a number with a unit, not {text!r}.", hint=hint)
    match = _NUMBER.fullmatch(str(text))
    if match is None:
        raise InputError(f"{text!r} is not {what}.", hint=hint)
    unit = match[2]
    if not unit:
        if bare_unit is None:
            raise InputError(f"{text!r} has no unit, and as {what} it could mean several things.", hint=hint)
        unit = bare_unit
    if unit not in units:
        raise InputError(f"{unit!r} in {text!r} is not a unit of {what}.", hint=hint)
    value = float(match[1].replace("_", "")) * units[unit]
    if not math.isfinite(value):
        raise InputError(f"{text!r} is not a finite number.", hint=hint)
    return value


def parse_duration_s(text: object) -> float:
    """Return a duration in seconds.

    Raises
    ------
    InputError: if `text` has no unit or is not a duration.

    Examples
    --------
    >>> parse_duration_s("200ms"), parse_duration_s("1.5 h")
    (0.2, 5400.0)
    """
    return _parse(text, _DURATION_S, what="a duration", example="30s", bare_unit=None)


def parse_rate_rps(text: object) -> float:
    """Return a request rate in requests per second.

    Examples
    --------
    >>> parse_rate_rps("30 req/s"), parse_rate_rps("120 req/min")
    (30.0, 2.0)
    """
    return _parse(text, _RATE_RPS, what="a request rate", example="30 req/s", bare_unit=None)


def parse_usd_per_hour(text: object) -> float:
    """Return a price in US dollars per hour.

    Examples
    --------
    >>> parse_usd_per_hour("2.49 USD/h"), parse_usd_per_hour("730 USD/month")
    (2.49, 1.0)
    """
    return _parse(text, _USD_PER_HOUR, what="a price", example="2.49 USD/h", bare_unit=None)


def parse_usd(text: object) -> float:
    """Return an amount of US dollars.

    Examples
    --------
    >>> parse_usd("2.50 USD"), parse_usd("3 $")
    (2.5, 3.0)
    """
    return _parse(text, _USD, what="an amount of money", example="2.50 USD", bare_unit=None)


def parse_power_w(text: object) -> float:
    """Return a power in watts.

    Examples
    --------
    >>> parse_power_w("40kW")
    40000.0
    """
    return _parse(text, _POWER_W, what="a power", example="40kW", bare_unit=None)


def parse_carbon_g_per_kwh(text: object) -> float:
    """Return what a kWh emits in grams of CO2e.

    Examples
    --------
    >>> parse_carbon_g_per_kwh("230 g/kWh"), parse_carbon_g_per_kwh("0.5 t/MWh")
    (230.0, 500.0)
    """
    return _parse(text, _GRAMS_PER_KWH, what="a carbon intensity", example="230 g/kWh", bare_unit=None)


def parse_usd_per_kwh(text: object) -> float:
    """Return a price of electricity in US dollars per kWh.

    Examples
    --------
    >>> parse_usd_per_kwh("0.12 USD/kWh"), parse_usd_per_kwh("90 USD/MWh")
    (0.12, 0.09)
    """
    return _parse(text, _USD_PER_KWH, what="a price of electricity", example="0.12 USD/kWh", bare_unit=None)


def parse_usd_per_kg(text: object) -> float:
    """Return a price of emissions in US dollars per kg CO2e.

    Examples
    --------
    >>> parse_usd_per_kg("80 USD/t")
    0.08
    """
    return _parse(text, _USD_PER_KG, what="a price of emissions", example="80 USD/t", bare_unit=None)


def parse_usd_per_gb(text: object) -> float:
    """Return the price of traffic in USD per 10^9 bytes.

    Examples
    --------
    >>> parse_usd_per_gb("0.02 USD/GB"), parse_usd_per_gb("20 USD/TB")
    (0.02, 0.02)
    """
    return _parse(text, _USD_PER_GB, what="a price of traffic", example="0.02 USD/GB", bare_unit=None)


def parse_kg_per_hour(text: object) -> float:
    """Return emissions over time in kg CO2e per hour.

    Examples
    --------
    >>> parse_kg_per_hour("12 kg/h"), round(parse_kg_per_hour("10 t/year"), 4)
    (12.0, 1.1416)
    """
    return _parse(text, _KG_PER_HOUR, what="emissions over time", example="12 kg/h", bare_unit=None)


def parse_mean_kw(text: object) -> float:
    """Return energy over time in kW.

    Examples
    --------
    >>> parse_mean_kw("1460 kWh/month"), parse_mean_kw("48 kWh/d")
    (2.0, 2.0)
    """
    return _parse(text, _MEAN_KW, what="energy over time", example="3000 kWh/month", bare_unit=None)


def parse_bytes_per_s(text: object) -> float:
    """Return a rate of data in bytes per second.

    Examples
    --------
    >>> parse_bytes_per_s("100 Gbit/s"), parse_bytes_per_s("12.5 GB/s")
    (12500000000.0, 12500000000.0)
    """
    return _parse(text, _BIT_RATE | _BYTE_RATE, what="a rate of data", example="100 Gbit/s", bare_unit=None)


def parse_bytes(text: object) -> float:
    """Return a size in bytes.

    Examples
    --------
    >>> parse_bytes("12 GB"), parse_bytes("1 GiB")
    (12000000000.0, 1073741824.0)
    """
    return _parse(text, _BYTES, what="a size", example="12 GB", bare_unit=None)


def parse_fraction(text: object) -> float:
    """Return a fraction (0.1 for "10%"); a bare number below or equal to 1 is taken as a fraction.

    Examples
    --------
    >>> parse_fraction("10%"), parse_fraction(0.1)
    (0.1, 0.1)
    """
    if isinstance(text, int | float) and not isinstance(text, bool) and abs(text) > 1:
        raise InputError(f"{text!r} has no unit: is it {text}% or a factor of {text}?", hint="Write it as '10%'.")
    return _parse(text, _FRACTION | {"": 1.0}, what="a fraction", example="10%", bare_unit="")


def _with_prefix(value: float, unit: str, *, digits: int = 3) -> str:
    for prefix in ("P", "T", "G", "M", "k"):
        if abs(value) >= _SI[prefix]:
            return f"{value / _SI[prefix]:.{digits}g} {prefix}{unit}"
    return f"{value:.{digits}g} {unit}"


def format_count(amount: float, unit: str) -> str:
    """Return how many of something there are, never in powers of ten; `unit` is a plural with an s.

    Examples
    --------
    >>> format_count(1e9, "tokens"), format_count(1.0, "tokens"), format_count(2.5, "requests")
    ('1,000,000,000 tokens', '1 token', '2.5 requests')
    """
    number = f"{amount:,.0f}" if abs(amount) >= 1000 else f"{amount:.3g}"
    return f"{number} {unit.removesuffix('s') if amount == 1 else unit}"


def format_duration(seconds: float) -> str:
    """Return a duration as a person would write it.

    Examples
    --------
    >>> format_duration(0.31), format_duration(2.0), format_duration(5400)
    ('310 ms', '2 s', '1.5 h')
    """
    for unit, factor in (("d", 86400.0), ("h", 3600.0), ("min", 60.0), ("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if abs(seconds) >= factor:
            return f"{seconds / factor:.3g} {unit}"
    return f"{seconds:.3g} s"


def format_bytes(size: float) -> str:
    """Return a size in decimal units.

    Examples
    --------
    >>> format_bytes(16.06e9)
    '16.1 GB'
    """
    return _with_prefix(size, "B")


def format_bit_rate(bytes_per_s: float) -> str:
    """Return a rate of data as networks are sold.

    Examples
    --------
    >>> format_bit_rate(12.5e9), format_bit_rate(400e9)
    ('100 Gbit/s', '3.2 Tbit/s')
    """
    return f"{_with_prefix(bytes_per_s * BITS_PER_BYTE, 'bit')}/s"


def format_power(watts: float) -> str:
    """Return a power with its SI prefix.

    Examples
    --------
    >>> format_power(3100)
    '3.1 kW'
    """
    return _with_prefix(watts, "W")


def format_usd(amount: float) -> str:
    """Return an amount of dollars with thousands separators and cents.

    Examples
    --------
    >>> format_usd(29720.4)
    '29,720.40'
    """
    return f"{amount:,.2f}"
