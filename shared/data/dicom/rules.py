"""Rules on a header that choose a series: ``SeriesDescription~portal & EchoTime<3``."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from shared.data.dicom.headers import IDENTITY
from shared.data.dicom.library import dicom_library
from shared.errors import DataError

_PART = re.compile(r"\s*(\w+)\s*(!=|!~|<=|>=|=|~|<|>)\s*(.*?)\s*")


@dataclass(frozen=True)
class Comparison:
    """One comparison of a header's value; see :func:`parse_rule`.

    Example:
        >>> header = {"SeriesDescription": "t1 PORTAL", "EchoTime": 1.2}
        >>> Comparison("SeriesDescription", "~", "portal")(header), Comparison("EchoTime", ">", "2")(header)
        (True, False)
    """

    keyword: str
    sign: str
    value: str

    def __call__(self, values: Mapping[str, Any]) -> bool:
        """Whether a header passes; one that lacks the value passes only ``!=`` and ``!~``."""
        found = values.get(self.keyword)
        many = [one for one in (found if isinstance(found, list) else [found]) if one is not None]
        text = "\\".join(map(str, many))
        if self.sign in ("~", "!~"):
            return (re.search(self.value, text, re.IGNORECASE) is not None) == (self.sign == "~")
        if self.sign in ("=", "!="):
            return any(_equal(one, self.value) for one in (*many, text)) == (self.sign == "=")
        limit = float(self.value)
        numbers = [one for one in map(_number, many) if one is not None]
        compare = {"<": float.__lt__, "<=": float.__le__, ">": float.__gt__, ">=": float.__ge__}[self.sign]
        return bool(numbers) and all(compare(one, limit) for one in numbers)


Rule = tuple[Comparison, ...]


def parse_rule(text: str) -> Rule:
    """Comparisons joined by ``&``, all of which a header must pass.

    ``KEYWORD~TEXT`` finds a regular expression, whatever its capitals; ``=`` the whole value (of several: one, or all),
    ``<``, ``<=``, ``>``, ``>=`` numbers; ``!~`` and ``!=`` say the opposite. Keywords are those of DICOM (PS3.6).

    Args:
        text: the rule.

    Raises:
        DataError: it is no such rule, or DICOM has no such keyword.
    """
    tests = []
    for part in text.split("&"):
        found = _PART.fullmatch(part)
        if not found or not found[3]:
            raise DataError(f"--series: {text!r} must be KEYWORD~TEXT, KEYWORD=VALUE or KEYWORD<NUMBER, joined by &")
        keyword, sign, value = found.groups()
        if dicom_library("pydicom.datadict").tag_for_keyword(keyword) is None:
            raise DataError(f"--series: {text!r}: DICOM has no attribute {keyword!r}; as SeriesDescription, EchoTime")
        if keyword in IDENTITY:  # it would be missing in every header
            raise DataError(f"--series: {text!r}: {keyword} tells who somebody is and is not kept; ask another field")
        if "<" in sign or ">" in sign:
            if _number(value) is None:
                raise DataError(f"--series: {text!r}: {value!r} must be a number")
        elif "~" in sign:
            try:
                re.compile(value)
            except re.error as error:
                raise DataError(f"--series: {text!r}: {value!r} is no regular expression ({error})") from error
        tests.append(Comparison(keyword, sign, value))
    return tuple(tests)


def parse_series(items: Sequence[str], allowed: Sequence[str]) -> dict[str, list[Rule]]:
    """Rules by modality; several of one are alternatives.

    Args:
        items: ``MODALITY=RULE`` each, as ``T1V=SeriesDescription~portal``.
        allowed: names that may be given.

    Raises:
        DataError: an unknown modality, or no rule.
    """
    rules: dict[str, list[Rule]] = {}
    for item in items:
        name, equals, rule = item.partition("=")
        if not equals or name.strip() not in allowed:
            raise DataError(f"--series {item!r} must be MODALITY=RULE with one of {', '.join(allowed)}")
        rules.setdefault(name.strip(), []).append(parse_rule(rule))
    return rules


def passes(rules: Sequence[Rule], values: Mapping[str, Any]) -> bool:
    """Whether a header passes every comparison of one of the rules."""
    return any(all(test(values) for test in rule) for rule in rules)


def _number(value: Any) -> float | None:
    try:
        return float(value)
    except (TypeError, ValueError):
        return None


def _equal(value: Any, wanted: str) -> bool:
    number, other = _number(value), _number(wanted)
    if number is not None and other is not None:
        return abs(number - other) <= 1e-6 * max(1.0, abs(other))
    return str(value).strip().casefold() == wanted.casefold()
