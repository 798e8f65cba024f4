"""Numbers with their intervals as text, and Markdown tables of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table.

    Example:
        >>> print(markdown_table(["a", "b"], [["1", "2"]]))
        | a | b |
        |---|---|
        | 1 | 2 |
    """
    return "\n".join(
        ["| " + " | ".join(row) + " |" if row else "|---" * len(header) + "|" for row in [header, [], *rows]]
    )


def interval_text(metric: Mapping, digits: int = 3) -> str:
    """``value [low, high]``; the value alone where there is no interval, a dash where the value is None.

    Example:
        >>> interval_text({"value": 0.5, "low": 0.25, "high": 0.75}, 2), interval_text({"value": None})
        ('0.50 [0.25, 0.75]', '-')
        >>> interval_text({"value": 0.5, "low": None, "high": None})
        '0.500'
    """
    return _interval_text(metric, f".{digits}f")


def difference_text(difference: Mapping, digits: int = 3) -> str:
    """The same with the sign of each number.

    Example:
        >>> difference_text({"value": 0.5, "low": -0.25, "high": 0.75}, 2)
        '+0.50 [-0.25, +0.75]'
    """
    return _interval_text(difference, f"+.{digits}f")


def _interval_text(metric: Mapping, form: str) -> str:
    if metric["value"] is None:
        return "-"
    if metric["low"] is None:
        return format(metric["value"], form)
    return f"{metric['value']:{form}} [{metric['low']:{form}}, {metric['high']:{form}}]"


def number_text(value: float | None) -> str:
    """Three digits; a dash for None.

    Example:
        >>> number_text(0.12345), number_text(None)
        ('0.123', '-')
    """
    return "-" if value is None else f"{value:.3f}"


def bounds_text(metric: Mapping) -> str:
    """``value [low, high]``, a dash for an end that is not bounded.

    Example:
        >>> bounds_text({"value": 2.0, "low": 1.0, "high": None})
        '2.000 [1.000, -]'
    """
    if (metric["low"] is None) == (metric["high"] is None):
        return interval_text(metric)
    return f"{number_text(metric['value'])} [{number_text(metric['low'])}, {number_text(metric['high'])}]"
