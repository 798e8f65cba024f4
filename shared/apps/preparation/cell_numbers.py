"""Numbers as people write them: what could be read in two ways is refused."""

from __future__ import annotations

import re
from collections.abc import Hashable, Mapping
from typing import TypeVar

Key = TypeVar("Key", bound=Hashable)

EMPTY = ("", "na", "n/a", "nan", "none", "null", "-", "?")

# A number with at most one sign that may be the decimal's, and one whose digits stand in groups of three.
_PLAIN = re.compile(r"[+-]?(\d+[.,]?\d*|[.,]\d+)(e[+-]?\d+)?", re.IGNORECASE)
_EITHER = re.compile(r"[+-]?[1-9]\d{0,2}[.,]\d{3}")
_GROUPED = re.compile(r"[+-]?[1-9]\d{0,2}([.,'’\s])\d{3}(\1\d{3})*([.,]\d*)?")


def _kind(text: str) -> str:
    """``plain``, ``either`` (12,345 and 12.345), ``grouped`` (1.234,5 and 1 234), or "" of what is no number."""
    for kind, form in (("either", _EITHER), ("plain", _PLAIN), ("grouped", _GROUPED)):
        if form.fullmatch(text):
            return kind
    return ""


def is_empty(text: str) -> bool:
    """Whether a cell says nothing.

    Example:
        >>> is_empty(" NaN"), is_empty("0")
        (True, False)
    """
    return text.strip().casefold() in EMPTY


def looks_numeric(text: str) -> bool:
    """Whether a text is written as a number, be it one that is refused.

    Example:
        >>> looks_numeric("1.234,5"), looks_numeric("045Y")
        (True, False)
    """
    return bool(_kind(text.strip().replace("\u2212", "-")))


def parse_number(text: str) -> float | None:
    """A finite number with point or comma as its decimal sign; None when ``text`` is none, or may be thousands.

    Alone, 1.234 is a decimal number, and 1,234 may be either: :func:`read_numbers` decides by the whole column.

    Example:
        >>> parse_number("44"), parse_number("61,5"), parse_number("1.234"), parse_number("-2e3")
        (44.0, 61.5, 1.234, -2000.0)
        >>> [parse_number(text) for text in ("NA", "nan", "inf", "1,234", "1.234,5", "1 234", "1_0", "<2")]
        [None, None, None, None, None, None, None, None]
    """
    text = text.strip().replace("\u2212", "-")  # the typographer's minus
    kind = _kind(text)
    if kind != "plain" and not (kind == "either" and "." in text):
        return None
    number = float(text.replace(",", "."))
    return number if abs(number) < float("inf") else None


def read_numbers(cells: Mapping[Key, str], *, delimiter: str = ",") -> tuple[dict[Key, float], dict[Key, str]]:
    """Numbers of a column, and what is wrong with the other cells; empty ones are in neither.

    Point and comma may both be the decimal sign (61.5 and 61,5). Thousands separators (1,234,567, 1.234,5, 1 234) are
    never read. One to three digits, a sign and three digits may be either:

    - ``1,234`` is 1.234 where another value of the column has a decimal comma for certain (61,5 or 0,123), none has a
      decimal point for certain, and none is grouped; else it is refused.
    - ``1.234`` is 1.234, as a program writes it, but refused where a value of the column has a comma or is grouped;
      and, unless another value has a decimal point for certain (61.5), where whole numbers of one to three digits
      stand beside it (12, 845, 1.234: as thousands look) or semicolons part the columns.

    Args:
        cells: the column's text, by patient.
        delimiter: of the table.

    Returns:
        numbers, and problems (``'1,234' may mean ...``), by patient.

    Example:
        >>> read_numbers({"a": "61,5", "b": "1,234", "c": ""})
        ({'a': 61.5, 'b': 1.234}, {})
        >>> numbers, problems = read_numbers({"a": "12", "b": "1,234", "c": "old"})
        >>> numbers, problems["c"]
        ({'a': 12.0}, "must be a number, got 'old'; code it as one in the table")
        >>> problems["b"]
        "may mean 1234 or 1.234, got '1,234'; write 1234 or 1.2340, without thousands separators"
    """
    texts = {key: text.strip().replace("\u2212", "-") for key, text in cells.items() if not is_empty(text)}
    kinds = {key: _kind(text) for key, text in texts.items()}
    plain = [texts[key] for key, kind in kinds.items() if kind == "plain"]
    whole = [text for text in plain if text.lstrip("+-").isdigit()]
    grouped = "grouped" in kinds.values()
    points, commas = (any(sign in text for text in plain) for sign in ".,")
    any_comma = commas or any(kind == "either" and "," in texts[key] for key, kind in kinds.items())
    short = any(len(text.lstrip("+-0")) <= 3 for text in whole)
    readable = {
        ",": commas and not points and not grouped,
        ".": not any_comma and not grouped and (points or (not short and delimiter != ";")),
    }
    numbers, problems = {}, {}
    for key, text in texts.items():
        sign = "," if "," in text else "."
        number = parse_number(text.replace(",", ".")) if kinds[key] in ("plain", "either") else None
        if kinds[key] == "either" and not readable[sign]:
            together, apart = text.replace(sign, ""), text.replace(",", ".")
            problems[key] = (
                f"may mean {together} or {apart}, got {cells[key]!r}; write {together} or {apart}0, without thousands "
                "separators"
            )
        elif kinds[key] == "grouped":
            problems[key] = f"must have no thousands separators, got {cells[key]!r}; write the number without"
        elif number is None:
            problems[key] = f"must be a number, got {cells[key]!r}; code it as one in the table"
        else:
            numbers[key] = number
    return numbers, problems
