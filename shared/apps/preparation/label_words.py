"""What words of a label's column mean by themselves: 0 and 1, mutant and wild type, yes and no, not known."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from shared.apps.preparation.cell_numbers import is_empty, parse_number
from shared.data.names import clean

# Values that say that nothing is known, in some languages: never one of two classes unless they are named.
_UNSURE = re.compile(
    r".*\?.*|#.+|[pcyr]{0,2}[tnmglrv]?x|n\.? ?[kad]\.?|nos|tb[ad]|unk|unkn?own|missing|pending|to be .+"
    r"|un(clear|certain|determined|bekannt|klar)|indeterminate|equivocal|inconclusive"
    r"|(not|nicht|non|no) (known|available|assess.+|done|determined|reported|tested|data|bekannt|bestimmt)"
    r"|ausstehend|fehlt|offen|fraglich|inconnue?|desconocid[oa]|sconosciut[oa]|未知|不详|待定"
)
_SAYS = {
    **dict.fromkeys(("yes", "y", "true", "positive", "pos", "+", "present", "ja", "oui"), 1),
    **dict.fromkeys(("no", "n", "false", "negative", "neg", "-", "absent", "nein", "non"), 0),
}
UNKNOWN = {"", "na", "nan", "none", "unknown", "indeterminate", "notavailable", "notdone", "?", "-"}
_WILD = {"wt", "wildtype", "idhwt", "idhwildtype", "negative", "no", "false"}
_MUTANT = {"mt", "mut", "mutant", "mutated", "idhmut", "idhmutant", "idhmutated", "positive", "yes", "true"}


def is_unsure(text: str) -> bool:
    """Whether a value may say that nothing is known.

    Example:
        >>> [is_unsure(text) for text in ("Mx", "M1?", "pending", "not assessed", "M0", "no MVI")]
        [True, True, True, True, False, False]
    """
    return _UNSURE.fullmatch(clean(text).casefold()) is not None


def zero_or_one(text: str) -> int | None:
    """Label of a cell that holds 0 or 1 as a number, None where it is empty.

    Raises:
        ValueError: neither of these.

    Example:
        >>> [zero_or_one(text) for text in ("1.0", "01", "0", "NA")]
        [1, 1, 0, None]
    """
    number = parse_number(text)
    if number in (0.0, 1.0):
        return int(number)
    if is_empty(text):
        return None
    raise ValueError(text)


def idh_label(text: str) -> int | None:
    """1 of an IDH mutation, 0 of wild type, None where it is not known.

    Raises:
        ValueError: neither of these.

    Example:
        >>> [idh_label(text) for text in ("wildtype", "IDH-wild type", "IDH1 p.R132H", "mutated (NOS)", "unknown")]
        [0, 0, 1, 1, None]
    """
    plain = re.sub(r"\(nos\)|[\s_-]", "", text.lower()) if text.strip() not in ("?", "-") else ""
    if plain in UNKNOWN:
        return None
    if plain in _WILD:
        return 0
    if plain in _MUTANT or re.fullmatch(r"idh[12]?(mut\w*|(p\.)?(r|arg)(132|140|172)[a-z]{0,3})", plain):
        return 1
    return zero_or_one(text)


@dataclass(frozen=True)
class Words:
    """What values mean that nobody named.

    Args:
        read: label of a text, None where it is not known; ValueError where it is neither.
        refusal: what to say of a text that is neither, with ``{}`` for it.
    """

    read: Callable[[str], int | None]
    refusal: str

    def says(self, text: str) -> int | None:
        """Which class a text seems to mean, None where that is open.

        Example:
            >>> [NUMBERS.says(text) for text in ("Yes", "-", "1.0", "M1", "")]
            [1, 0, 1, None, None]
        """
        word = clean(text).casefold()
        if word in _SAYS:
            return _SAYS[word]
        try:
            return self.read(text)
        except ValueError:
            return None


NUMBERS = Words(zero_or_one, "label must be 0 or 1, got {!r}; name the positive values with --positive")
IDH_WORDS = Words(
    idh_label,
    "label {!r} is neither among the words for mutant (IDH1 p.R132H, 1, ...) nor among those for wild type (0, "
    "wt, ...); name it with --positive or --negative, or empty the cell",
)
