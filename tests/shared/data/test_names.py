"""Names: two spellings of one are one, and what tells apart two that look alike."""

import pytest

from shared.data.names import clean, look_alikes, why_alike


def test_one_name_in_two_spellings():
    assert clean(" Mu\u0308ller\u00a0") == clean("\ufeffM\u00fcller\u200b") == "Müller"
    assert clean(" \u200b\ufeff ") == "" and clean("P 1") == "P 1"


@pytest.mark.parametrize(
    ("a", "b", "why"),
    [
        ("P001", "P1", "leading zeros"),
        ("P001", "p001", "capitals"),
        ("P1", "P1.", "a space or a dot at an end"),
        ("P1", "P1 ", "a space or a dot at an end"),
        ("P 1", "P\u00a01", "a non-breaking space"),
        ("P1", "P 1", "spaces"),
        ("P1", "P\u00a01", "a non-breaking space, spaces"),
        ("TCGA-DU-1", "TCGA_DU_1", "dashes, dots or underscores"),
        ("P-1", "P\u20131", "another kind of dash"),
        ("PO01", "P001", "0 and O, or 1, l and I"),
        ("P1", "\u04201", "a Cyrillic or Greek letter"),
        ("P1", "\u03a11", "a Cyrillic or Greek letter"),
        ("P1", "P1\u200b", "an invisible character"),
        ("Müller", "Mueller", "an accent or umlaut"),
        ("Łukasz", "Lukasz", "an accent or umlaut"),
        ("Müller", "Mu\u0308ller", "accents as characters of their own (NFD)"),
        ("Müller", "MÃ¼ller", "the encoding of the text"),
        ("Müller", "MŸller", "the encoding of the text"),
        ("104", "104.0", "a whole number with decimals"),
        ("3E5", "3.00E+05", "a number that a spreadsheet wrote anew"),
        ("P-001", "p_1", "dashes, dots or underscores, capitals, leading zeros"),
    ],
)
def test_why_two_names_that_look_alike_differ(a, b, why):
    assert why_alike(a, b) == why and why_alike(b, a) == why


@pytest.mark.parametrize(("a", "b"), [("P1", "P2"), ("P1", "P11"), ("P10", "P1"), ("M0", "M1"), ("P1", "P1")])
def test_names_that_differ_or_are_equal_look_not_alike(a, b):
    assert why_alike(a, b) is None


def test_each_name_is_told_its_look_alike():
    hints = look_alikes(["Müller", "0001", "x"], ["MŸller", "1", "y"])
    assert hints == {
        "Müller": "; 'MŸller' looks alike, the difference: the encoding of the text",
        "0001": "; '1' looks alike, the difference: leading zeros",
        "x": "",
    }
