"""Labels of a column: both classes named or exactly two; nothing unexpected becomes 0."""

import pytest

from shared.apps.preparation.label_words import IDH_WORDS
from shared.apps.preparation.labels import read_labels


def read(*texts, **named):
    """Labels in the order of the texts (None where there is none), and the problems."""
    found = read_labels({f"P{row}": text for row, text in enumerate(texts)}, "MVI", **named)
    return [found.of.get(f"P{row}") for row in range(len(texts))], found.problems


@pytest.mark.parametrize(
    ("texts", "named", "labels"),
    [
        (("M1", "M0", "M2", "m0", ""), {"positive": ["M1", "M2"]}, [1, 0, 1, 0, None]),
        (("1", "0", "1.0", "0.0", "01", "NA"), {}, [1, 0, 1, 0, 1, None]),
        (("1.0", "0.0", "1,0"), {"positive": ["1"]}, [1, 0, 1]),
        (("1.0", "0.00", "01", ""), {"positive": ["1"], "negative": ["0"]}, [1, 0, 1, None]),
        (("1", "2"), {"positive": ["2"]}, [0, 1]),  # SPSS
        (("1", "0"), {"positive": ["0"]}, [0, 1]),
        (("+", "-"), {"positive": ["+"], "negative": ["-"]}, [1, 0]),
        (("none", "seen"), {"positive": ["seen"], "negative": ["none"]}, [0, 1]),
        (("no  MVI", "no\u00a0mvi", "MVI"), {"positive": ["MVI"]}, [0, 0, 1]),
        (("M1", "M0"), {"negative": ["M0"]}, [1, 0]),
        (("Mu\u0308", "x1"), {"positive": ["M\u00fc"], "negative": ["X1"]}, [1, 0]),
        (("pending", "M1"), {"positive": ["M1"], "negative": ["pending"]}, [0, 1]),  # who names it means it
    ],
)
def test_two_classes(texts, named, labels):
    assert read(*texts, **named) == (labels, [])


@pytest.mark.parametrize("odd", ["Mx", "M 1", "M1?", "unknown", "pending", "n.k.", "not assessed", "Ml", "М1", "#N/A"])
def test_what_is_not_known_or_looks_like_a_positive_is_never_zero(odd):
    for others in ((), ("M0",)):
        labels, problems = read("M1", odd, *others, positive=["M1"])
        assert labels == [None] * (2 + len(others)) and len(problems) == 1 and repr(odd) in problems[0]
    labels, problems = read("M1", odd, "M0", positive=["M1"], negative=["M0"])
    assert labels == [1, None, 0] and len(problems) == 1
    assert problems[0].startswith(f"P1: label {odd!r} is neither among --positive M1 nor --negative M0")


@pytest.mark.parametrize(
    ("texts", "named"),
    [
        (("M1", "1"), {"positive": ["M1"]}),
        (("present", "yes"), {"positive": ["present"]}),
        (("M0", "no"), {"negative": ["M0"]}),
        (("M1", "+"), {"positive": ["M1"]}),
        (("mutiert", "IDH1 p.R132H"), {"positive": ["mutiert"], "words": IDH_WORDS}),
        (("wt", "WT (negative)", "wildtype"), {"negative": ["wt", "WT (negative)"], "words": IDH_WORDS}),
    ],
)
def test_a_value_that_seems_to_mean_the_same_is_not_the_other_class(texts, named):
    labels, (problem,) = read(*texts, **named)
    assert labels == [None] * len(texts) and f"{texts[-1]!r} (1 patient" in problem and "mean the same" in problem


def test_meanings_may_be_turned_round():
    assert read("no", "yes", positive=["no"]) == ([1, 0], [])
    assert read("alive", "dead", negative=["alive"]) == ([0, 1], [])


def test_other_values_are_listed_with_their_counts():
    _, (problem,) = read("M1", "M0", "M0", "Mx", "M 1", positive=["M1"])
    assert problem == (
        "column 'MVI' holds several values beside --positive M1: 'M0' (2 patients: P1, P2), 'Mx' (1 patient: P3), "
        "'M 1' (1 patient: P4); name what means 0 with --negative, correct or empty the others; 'M 1' and 'M1' look "
        "alike, the difference: spaces"
    )
    _, (problem,) = read("M1", "M2", "0", positive=["M1"])
    assert "'M2' (1 patient: P1), and '0'; name what means 0" in problem


def test_a_named_value_that_does_not_occur_is_an_error():
    labels, problems = read("M0", "M1", "M1", positive=["M1", "M2"], negative=["M0", "m3"])
    assert labels == [0, 1, 1]
    assert problems == [
        "--positive 'M2': no row of column 'MVI' holds it; its values are 'M0' (1), 'M1' (2)",
        "--negative 'm3': no row of column 'MVI' holds it; its values are 'M0' (1), 'M1' (2)",
    ]


def test_a_value_is_of_one_class():
    assert read("1", "0", positive=["1"], negative=["0", "1.0"])[1] == ["'1' is named by --positive and by --negative"]


def test_without_names_only_numbers_are_labels():
    labels, problems = read("yes", "yes", "1", "2")
    assert labels == [None, None, 1, None]
    assert problems == [
        "P0: label must be 0 or 1, got 'yes'; name the positive values with --positive (2 patients: P0, P1)",
        "P3: label must be 0 or 1, got '2'; name the positive values with --positive (1 patient: P3)",
    ]


def test_words_for_idh():
    texts = ("wildtype", "IDH1 p.R132H", "mutated (NOS)", "WT", "no", "1.0", "unknown", "?")
    assert read(*texts, words=IDH_WORDS) == ([0, 1, 1, 0, 0, 1, None, None], [])
    assert read("mutiert", "wt", "wildtype", "unknown", positive=["mutiert"], words=IDH_WORDS)[0] == [1, 0, 0, None]
    assert read("mutant", "Wildtyp", negative=["Wildtyp"], words=IDH_WORDS)[0] == [1, 0]
    _, (problem,) = read("wt", "perhaps", words=IDH_WORDS)
    assert problem.startswith("P1: label 'perhaps' is neither among the words for mutant")


def test_what_became_of_the_values_is_told():
    cells = {"a": "M1", "b": "M0", "c": "M0", "d": "M2", "e": ""}
    found = read_labels(cells, "MVI", positive=["M1", "M2"])
    assert found.told("MVI", ["no", "yes"]) == (
        "column 'MVI': 'M0' (2) -> 0, no; 'M1' (1), 'M2' (1) -> 1, yes ('M0' is the only other value)"
    )
    assert found.values == {"M0": 0, "M1": 1, "M2": 1} and found.unknown == ["e"]
