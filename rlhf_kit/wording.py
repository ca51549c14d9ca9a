"""Numbers as people write them, in reports and in warnings."""

from __future__ import annotations

THIN, MINUS = "\u202f", "\u2212"  # a narrow no-break space, and a minus that is no hyphen


def count(value: float) -> str:
    """A whole number with grouped thousands."""
    return f"{value:,.0f}".replace(",", THIN).replace("-", MINUS)


def number(value: float) -> str:
    """A measurement at three significant digits, with a true minus sign."""
    size = abs(value)
    if size == 0:
        return "0"
    if size >= 999.5:
        return count(value) if size < 1e7 else scientific(value)
    if size < 9.95e-4:
        return scientific(value)
    decimals = 0 if size >= 99.95 else 1 if size >= 9.995 else 2 if size >= 0.0995 else 3 if size >= 0.00995 else 4
    text = f"{value:.{decimals}f}"
    return text.replace("-", MINUS)


def scientific(value: float) -> str:
    """A mantissa of two digits and an exponent: `1.5e-4`."""
    mantissa, exponent = f"{value:.1e}".split("e")
    return f"{mantissa.removesuffix('.0')}e{int(exponent)}".replace("-", MINUS)


def percent(value: float) -> str:
    """A share as a percentage with one decimal, none where it is whole."""
    return f"{100 * value:.1f}".removesuffix(".0").replace("-", MINUS) + f"{THIN}%"


def thousandths(value: float) -> str:
    """A number at three decimals, for what differs from 1 by little."""
    return f"{value:.3f}".replace("-", MINUS)
