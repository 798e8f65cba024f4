import pytest

from shared.reports.abstention import reason_text, set_of, set_text


@pytest.mark.parametrize("plausible", [[False, False], [True, False], [False, True], [True, True]])
def test_a_set_is_read_as_it_was_written_also_where_one_name_holds_the_other(plausible):
    names = ["grade 2", "grade 2-3"]
    assert set_of(set_text(plausible, names), names) == plausible


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (([True, False], 0.9), ""),
        (([True, True], 0.9), "both classes are plausible at 90 %"),
        (([False, False], 0.95), "no class is plausible at 95 %"),
        ((None, 0.9, 1.0, 1.0), ""),
        ((None, 0.9, 1.01, 1.0), "unlike the training patients: distance 1.01, limit 1.00"),
        ((None, 0.9, float("nan"), 1.0), "unlike the training patients: distance nan, limit 1.00"),
        ((None, 0.9, 0.5, 1.0, ["T1", "T2"]), "T1 and T2 look exchanged"),
        ((None, 0.9, None, None, [], {"age": -12.4}), "age is 12 SD from the training patients' mean: another unit?"),
    ],
)
def test_the_reason_says_why_and_nothing_where_there_is_none(given, expected):
    assert reason_text(*given) == expected
