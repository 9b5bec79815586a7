"""Numbers and names as a person reads them; plain ASCII but for what the user named."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from planner.units import format_usd

if TYPE_CHECKING:
    from datetime import date

DAYS_PER_MONTH = 365.0 / 12.0
DAYS_UNTIL_MONTHS = 60
"""Ages below are told in days."""


def clean(text: str) -> str:
    """Return `text` without characters that would steer a terminal or reorder the line.

    Examples
    --------
    >>> clean("caf\u00e9 \\x1b[31m")
    'caf\u00e9 \\\\x1b[31m'
    """
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode("ascii") for char in text)


def usd(amount: float | None) -> str:
    """Return dollars and cents, or an empty text for None."""
    return "" if amount is None else format_usd(amount)


def whole_usd(amount: float | None) -> str:
    """Return dollars without cents where these no longer matter.

    Examples
    --------
    >>> whole_usd(29720.4), whole_usd(9.5)
    ('29,720', '9.50')
    """
    if amount is None:
        return ""
    return f"{amount:,.0f}" if abs(amount) >= 100 else format_usd(amount)


def price(amount: float) -> str:
    """Return a small price with at least two digits that say something.

    Examples
    --------
    >>> price(12.345), price(0.3141), price(0.00314159)
    ('12.35', '0.31', '0.0031')
    """
    return format_usd(amount) if abs(amount) >= 0.1 or not amount else f"{amount:.2g}"


def number(value: float) -> str:
    """Return a count or a rate with three digits, never in powers of ten.

    Examples
    --------
    >>> number(150.0), number(12345.6), number(0.1234), number(3.0)
    ('150', '12,346', '0.123', '3')
    """
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}" if abs(value) >= 1e-3 or not value else f"{value:.1g}"


def percent(fraction: float, *, up: bool = False) -> str:
    """Return a fraction in percent; `up` rounds so that the true value is never larger than what is shown.

    Examples
    --------
    >>> percent(0.219), percent(0.0871), percent(0.0004), percent(0.00002, up=True)
    ('22%', '8.7%', '0.04%', '0.01%')
    """
    value = 100.0 * fraction
    digits = 0 if abs(value) >= 10 else 1 if abs(value) >= 1 else 2
    if up:
        value = math.ceil(round(value * 10**digits, 6)) / 10**digits
    return f"{value:.{digits}f}%"


def plural(count: int, noun: str) -> str:
    """Return "1 option", "2 options"."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def age(as_of: date | None, *, today: date) -> str:
    """Return how old something is: "12 days old", "4 months old"."""
    if as_of is None:
        return "of unknown date"
    days = (today - as_of).days
    if days < 0:
        return f"dated {as_of.isoformat()}, in the future"
    if days < DAYS_UNTIL_MONTHS:
        return f"{plural(days, 'day')} old" if days else "of today"
    return f"{round(days / DAYS_PER_MONTH)} months old"
