"""Numbers of a column: decimal signs that its other values settle, thousands separators refused."""

import pytest

from shared.apps.preparation.cell_numbers import parse_number, read_numbers


def read(*texts, delimiter=","):
    """Values, with None where a cell is refused."""
    numbers, problems = read_numbers(dict(enumerate(texts)), delimiter=delimiter)
    assert not set(numbers) & set(problems)
    return [numbers.get(row) for row in range(len(texts))]


@pytest.mark.parametrize(
    ("texts", "values"),
    [
        (("12", "1,234", "845", "3.4"), [12, None, 845, 3.4]),  # English thousands
        (("12", "1,234", "845", "3,4"), [12, 1.234, 845, 3.4]),  # decimal commas
        (("0,987", "1,234"), [0.987, 1.234]),
        (("1,234", "2,345"), [None, None]),  # nothing settles it
        (("1,234", "3,4", "5.6"), [None, 3.4, 5.6]),
        (("1,234", "3,4", "1.234,5"), [None, 3.4, None]),
        (("12", "1.234", "845", "3,4"), [12, None, 845, 3.4]),  # German thousands
        (("12", "1.234", "845"), [12, None, 845]),  # as thousands look
        (("12", "1.234", "845", "3.4"), [12, 1.234, 845, 3.4]),  # a decimal point for certain
        (("0", "1.234", "0.987"), [0, 1.234, 0.987]),
        (("12", "1.234", "1500"), [12, None, 1500]),  # two programs may have written them
        (("1.234", "1500"), [1.234, 1500]),  # thousands are written without
        (("1.234", "2.345"), [1.234, 2.345]),  # as a program writes them
        (("1.234", "2,345", "3.4"), [None, None, 3.4]),
        (("1.234", "1.234.567", "3.4"), [None, None, 3.4]),
        (
            ("61,5", "61.5", "-7", "+2", "\u22125", "1e3", "1,5e3", ".5", "1234,5"),
            [61.5, 61.5, -7, 2, -5, 1000, 1500, 0.5, 1234.5],
        ),
        (("1,234,567", "1.234,5", "1,234.5", "1 234", "1\u202f234", "1'234"), [None] * 6),
        (("<2", ">20000", "045Y", "inf", "1e999", "1_0", "1.2.3", "#N/A", "45%"), [None] * 9),
    ],
)
def test_the_column_settles_what_a_sign_means(texts, values):
    assert read(*texts) == values


def test_semicolons_speak_for_decimal_commas():
    assert read("1.234", "2.345", delimiter=";") == [None, None]
    assert read("1.234", "2.34", delimiter=";") == [1.234, 2.34]
    assert read("1.234", "2500", delimiter=";") == [None, 2500]
    assert read("1500", "1.234", "12.500", "20", "4", "2.100", delimiter=";") == [1500, None, None, 20, 4, None]
    assert read("1.234", "2.345", delimiter="\t") == [1.234, 2.345]


def test_empty_cells_are_neither_numbers_nor_problems():
    assert read_numbers({"a": "", "b": "NaN", "c": "n/a", "d": "-", "e": " 4 "}) == ({"e": 4.0}, {})


def test_messages_give_the_ways_out_and_these_are_read():
    _, problems = read_numbers({"a": "12,500", "b": "1,234,567", "c": "old"})
    assert problems == {
        "a": "may mean 12500 or 12.500, got '12,500'; write 12500 or 12.5000, without thousands separators",
        "b": "must have no thousands separators, got '1,234,567'; write the number without",
        "c": "must be a number, got 'old'; code it as one in the table",
    }
    assert read("12.5000", "4") == [12.5, 4] and read("12500", "4") == [12500, 4]


def test_a_number_by_itself():
    assert [parse_number(text) for text in ("61,5", "1.234", "1,234", "1e999", "٣")] == [61.5, 1.234, None, None, 3]
