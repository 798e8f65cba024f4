"""Which label a value of a table's column means: nothing becomes 0 because it was not expected."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from shared.apps.preparation.cell_numbers import is_empty, parse_number
from shared.apps.preparation.label_words import NUMBERS, Words, is_unsure
from shared.data.names import clean, why_alike
from shared.data.tables import some


@dataclass
class Labels:
    """What a column says.

    Attributes:
        of: labels by patient, of those who have one; unknown: patients whose cell says that nothing is known.
        values: label of every value that has one; counts: of every value that is not empty.
        problems: what cannot be read, and what was named and does not occur.
        note: why a value that nobody named has a label.
    """

    of: dict[str, int] = field(default_factory=dict)
    unknown: list[str] = field(default_factory=list)
    values: dict[str, int] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)
    note: str = ""

    def told(self, column: str, classes: Sequence[str]) -> str:
        """A line on which values mean which class.

        Example:
            >>> read_labels({"a": "M1", "b": "M0"}, "MVI", positive=["M1"]).told("MVI", ["no", "yes"])
            "column 'MVI': 'M0' (1) -> 0, no; 'M1' (1) -> 1, yes ('M0' is the only other value)"
        """
        shown = []
        for label, name in enumerate(classes):
            values = ", ".join(f"{text!r} ({self.counts[text]})" for text, of in self.values.items() if of == label)
            shown.append(f"{values or 'nothing'} -> {label}, {name}")
        return f"column {column!r}: {'; '.join(shown)}{self.note and f' ({self.note})'}"


def read_labels(
    cells: Mapping[str, str],
    column: str,
    *,
    positive: Sequence[str] = (),
    negative: Sequence[str] = (),
    words: Words = NUMBERS,
) -> Labels:
    """Labels of a whole column.

    Where both sides are named, any other value is a problem. Where one is, the one other value is the other class;
    several are a problem, and so is one that says that nothing is known (Mx, pending), that looks like a value that is
    named (M 1), or seems to mean the same (1, yes). Values are equal as numbers (1, 1.0, 01), or as text but for
    capitals and the kind of spaces.

    Args:
        cells: the column's text, by patient.
        column: its name.
        positive: values that mean 1.
        negative: values that mean 0.
        words: what values of a side that is not named mean.

    Example:
        >>> read_labels({"a": "M1", "b": "m0", "c": "M2", "d": ""}, "MVI", positive=["M1", "M2"]).of
        {'a': 1, 'b': 0, 'c': 1}
        >>> read_labels({"a": "1.0", "b": "0"}, "x", positive=["1"], negative=["0"]).of
        {'a': 1, 'b': 0}
        >>> read_labels({"a": "M1", "b": "Mx"}, "MVI", positive=["M1"]).problems[0].partition(";")[0]
        "column 'MVI': 'Mx' (1 patient: b) is not named by --positive M1 and may mean that nothing is known"
    """
    found = Labels()
    named = {_key(text): label for label, texts in ((0, negative), (1, positive)) for text in texts}
    both = {_key(text) for text in positive} & {_key(text) for text in negative}
    found.problems += [f"{text!r} is named by --positive and by --negative" for text in positive if _key(text) in both]
    groups: dict[str, list[str]] = {}  # patients by the value as written
    for patient, text in cells.items():
        groups.setdefault(text, []).append(patient)
    others, read = [], 0
    for text, patients in groups.items():
        label = named.get(_key(text))
        if label is None and is_empty(text):
            found.unknown += patients
            continue
        found.counts[text] = len(patients)
        if label is None:
            try:
                label = words.read(text)
                if label in named.values():
                    raise ValueError(text)
            except ValueError:
                others.append(text)
                continue
            if label is None:
                found.unknown += patients
                continue
            read += 1
        found.values[text] = label
    if named:
        contrary = {text for text in others if _is_contrary(text, positive, negative, words)}
        _place_others(found, others, groups, column, positive, negative, alone=not read, contrary=contrary)
    else:
        found.problems += [
            f"{groups[text][0]}: {words.refusal.format(text)} ({_whom(groups[text])})" for text in others
        ]
    there = {_key(text) for text in groups}
    shown = ", ".join(f"{text!r} ({count})" for text, count in found.counts.items())
    found.problems += [
        f"{option} {text!r}: no row of column {column!r} holds it; its values are {shown or 'all empty'}"
        for option, texts in (("--positive", positive), ("--negative", negative))
        for text in texts
        if _key(text) not in there
    ]
    found.of = {patient: found.values[text] for patient, text in cells.items() if text in found.values}
    return found


def _place_others(
    found: Labels,
    others: Sequence[str],
    groups: Mapping[str, Sequence[str]],
    column: str,
    positive: Sequence[str],
    negative: Sequence[str],
    *,
    alone: bool,
    contrary: set[str],
) -> None:
    """Values that nobody named: the other class, where one is named and there is one other value; else a problem."""
    if not others:
        return
    shown = {text: f"{text!r} ({_whom(groups[text])})" for text in others}
    likeness = {text: _like(text, [*positive, *negative]) for text in others}
    if positive and negative:
        known = f"--positive {','.join(positive)} nor --negative {','.join(negative)}"
        found.problems += [
            f"{groups[text][0]}: label {text!r} is neither among {known}; correct the table, name the value, or empty "
            f"the cell ({_whom(groups[text])}){likeness[text]}"
            for text in others
        ]
        return
    given, missing = ("--positive", "--negative") if positive else ("--negative", "--positive")
    given = f"{given} {','.join(positive or negative)}"
    remedy = f"; name what means {int(bool(negative))} with {missing}, correct or empty the others"
    if len({_key(text) for text in others}) > 1 or not alone:
        rest = [repr(text) for text, label in found.values.items() if label == bool(negative)]
        beside = f", and {', '.join(rest)}" if rest else ""
        found.problems.append(
            f"column {column!r} holds several values beside {given}: {', '.join(shown.values())}{beside}{remedy}"
            + "".join(likeness.values())
        )
    elif why := (
        ("looks like it" if likeness[others[0]] else "")
        or ("seems to mean the same" if contrary else "")
        or ("may mean that nothing is known" if is_unsure(others[0]) else "")
    ):
        found.problems.append(
            f"column {column!r}: {shown[others[0]]} is not named by {given} and {why}{remedy}{likeness[others[0]]}"
        )
    else:
        found.values |= dict.fromkeys(others, int(bool(negative)))
        found.note = f"{' = '.join(map(repr, others))} is the only other value"
        return
    found.values = {}  # one class alone would be a cohort of its own


def _is_contrary(text: str, positive: Sequence[str], negative: Sequence[str], words: Words) -> bool:
    """Whether a value that is about to become the other class says of itself that it is of the class that is named."""
    given, side = (positive, 1) if positive else (negative, 0)
    if parse_number(text) is not None and all(parse_number(value) is not None for value in given):
        return False  # 1 and 2, as SPSS codes two classes
    return words.says(text) == side and not any(words.says(value) == 1 - side for value in given)


def _key(text: str) -> str | float:
    """What makes two values one: the number, or the text without capitals and kinds of spaces."""
    number = parse_number(text)
    return " ".join(clean(text).casefold().split()) if number is None else number


def _whom(patients: Sequence[str]) -> str:
    return f"{len(patients)} patient{'s' * (len(patients) > 1)}: {some(patients, 4)}"


def _like(text: str, named: Sequence[str]) -> str:
    """What tells a value from one that is named and looks alike."""
    found = ((other, why_alike(clean(text).casefold(), clean(other).casefold())) for other in named)
    return next((f"; {text!r} and {other!r} look alike, the difference: {why}" for other, why in found if why), "")
