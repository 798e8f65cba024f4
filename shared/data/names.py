"""Names as people and computers write them: when two are one, and why two that look alike are not."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable

_SPACES = dict.fromkeys(map(ord, "\u00a0\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u202f\u3000"), " ")
_DASHES = dict.fromkeys(map(ord, "\u2010\u2011\u2012\u2013\u2014\u2015\u2212\ufe63\uff0d"), "-")
_FOREIGN = str.maketrans(  # Cyrillic and Greek letters that look like Latin ones
    "АВЕКМНОРСТУХІЈЅавекмнорстухіјѕΑΒΕΖΗΙΚΜΝΟΡΤΥΧαβεζηικμνορτυχ",
    "ABEKMHOPCTYXIJSabekmhopctyxijsABEZHIKMNOPTYXabezhikmnoptyx",
)
_STROKES = str.maketrans("øØłŁđĐæÆœŒ", "oOlLdDaAoO")


def nfc(text: str) -> str:
    """``text`` in Unicode's composed form, as names are compared: macOS writes ü as u and a combining diaeresis.

    Example:
        >>> len("u\\u0308"), len(nfc("u\\u0308"))
        (2, 1)
    """
    return unicodedata.normalize("NFC", text)


def clean(text: str) -> str:
    """:func:`nfc` without spaces and invisible characters (byte-order mark, zero-width space) at either end.

    Example:
        >>> clean("\\ufeff P001\\u00a0\\u200b")
        'P001'
    """
    text = text.strip()
    if text.isascii():
        return text
    kept = [i for i, sign in enumerate(text) if not sign.isspace() and unicodedata.category(sign) not in ("Cf", "Cc")]
    return nfc(text[kept[0] : kept[-1] + 1]) if kept else ""


def _without_accents(text: str) -> str:
    plain = "".join(sign for sign in unicodedata.normalize("NFD", text) if not unicodedata.combining(sign))
    return re.sub("([aou])e", r"\1", plain.translate(_STROKES), flags=re.IGNORECASE)


def _visible(text: str) -> str:
    return "".join(sign for sign in text if unicodedata.category(sign) != "Cf")


# Each takes away one kind of difference and leaves the others' alone, so that leaving it out shows whether it matters.
_FOLDS: tuple[tuple[str, Callable[[str], str]], ...] = (
    ("an invisible character", _visible),
    ("a non-breaking space", lambda text: text.translate(_SPACES)),
    ("another kind of dash", lambda text: text.translate(_DASHES)),
    ("a space or a dot at an end", lambda text: text.strip(" ").rstrip(". ")),
    ("a whole number with decimals", lambda text: re.sub(r"(?<=\d)\.0+$", "", text)),
    ("spaces", lambda text: re.sub(r"(?<=\S) +(?=\S)", "", text)),
    ("dashes, dots or underscores", lambda text: re.sub(r"(?<=[^\W_])[_.-]+(?=[^\W_])", "", text)),
    ("a Cyrillic or Greek letter", lambda text: text.translate(_FOREIGN)),
    ("an accent or umlaut", _without_accents),
    ("capitals", str.casefold),
    ("0 and O, or 1, l and I", lambda text: re.sub("[liI|]", "1", re.sub("[oO]", "0", text))),
    ("leading zeros", lambda text: re.sub(r"(?<!\d)0+(?=\d)", "", text)),
)


def _folded(text: str, without: int | None = None) -> str:
    for row, (_, fold) in enumerate(_FOLDS):
        text = text if row == without else fold(text)
    return text


def _misread(text: str) -> set[str]:
    """What ``text`` is, if it was written as UTF-8 or by a Mac and read as Windows-1252."""
    found: set[str] = set()
    if text.isascii():
        return found
    for encoding in ("utf-8", "mac_roman"):
        try:
            found.add(nfc(text.encode("cp1252").decode(encoding)))
        except UnicodeError:
            continue
    return found


def _number(text: str) -> float | None:
    return float(text) if re.fullmatch(r"\d+(\.\d+)?(e[+-]?\d{1,3})?", text, re.IGNORECASE) else None


def why_alike(a: str, b: str) -> str | None:
    """Why two names that look alike differ; None where they are equal or do not look alike.

    Example:
        >>> why_alike("P001", "P1"), why_alike("P 1", "P\\u00a01"), why_alike("P001", "PO01")
        ('leading zeros', 'a non-breaking space', '0 and O, or 1, l and I')
        >>> why_alike("TCGA-DU-1", "tcga_du_1"), why_alike("P1.", "P1"), why_alike("104", "104.0")
        ('dashes, dots or underscores, capitals', 'a space or a dot at an end', 'a whole number with decimals')
        >>> why_alike("P1", "\\u0420" + "1"), why_alike("Müller", "Mueller"), why_alike("Müller", "MÃ¼ller")
        ('a Cyrillic or Greek letter', 'an accent or umlaut', 'the encoding of the text')
        >>> why_alike("3E5", "3.00E+05"), why_alike("P1", "P2"), why_alike("P1", "P1")
        ('a number that a spreadsheet wrote anew', None, None)
    """
    if a == b:
        return None
    if nfc(a) == nfc(b):
        return "accents as characters of their own (NFD)"
    if a.casefold() == b.casefold():
        return "capitals"
    if nfc(a) in _misread(b) or nfc(b) in _misread(a):
        return "the encoding of the text"
    if _folded(a) == _folded(b):
        reasons = [reason for row, (reason, _) in enumerate(_FOLDS) if _folded(a, row) != _folded(b, row)]
        return ", ".join(reasons) or "characters that look alike"
    if _number(a) is not None and _number(a) == _number(b):
        return "a number that a spreadsheet wrote anew"
    return None


def look_alikes(names: Iterable[str], others: Iterable[str]) -> dict[str, str]:
    """What to add to a message on each of ``names`` that looks like one of ``others``; "" where none does.

    Example:
        >>> look_alikes(["P1", "P7"], ["P001", "P002"])
        {'P1': "; 'P001' looks alike, the difference: leading zeros", 'P7': ''}
    """

    def keys(name: str) -> list[str | float]:
        number = _number(name)
        return [_folded(name), *map(_folded, _misread(name)), *([] if number is None else [number])]

    by_key: dict[str | float, str] = {}
    for other in others:
        for key in keys(other):
            by_key.setdefault(key, other)
    hints = {}
    for name in names:
        found = ((by_key[key], why_alike(name, by_key[key])) for key in keys(name) if key in by_key)
        hints[name] = next((f"; {other!r} looks alike, the difference: {why}" for other, why in found if why), "")
    return hints


def differing_in_case(names: Iterable[str]) -> list[tuple[str, str]]:
    """Pairs of names that differ in capitals only, the earlier first.

    Example:
        >>> differing_in_case(["P1", "p1", "P2", "P1"])
        [('P1', 'p1')]
    """
    first: dict[str, str] = {}
    found = []
    for name in dict.fromkeys(names):
        earlier = first.setdefault(name.casefold(), name)
        if earlier != name:
            found.append((earlier, name))
    return found
