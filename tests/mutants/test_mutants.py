"""The planted errors themselves: each applies once, is still Python or JSON, and has tests that are there."""

from collections import Counter
from dataclasses import replace

import pytest

from tests.mutants.run import ROOT, Mutant, mirrored, read_mutants

MUTANTS = read_mutants()


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: f"{mutant.area}/{mutant.name}")
def test_an_error_applies_once_and_can_be_parsed(mutant):
    assert mutant.mutated(ROOT) != (ROOT / mutant.file).read_text(encoding="utf-8")
    assert mutant.why and all((ROOT / test.split("::")[0]).exists() for test in mutant.tests)


def test_they_are_many_and_all_over():
    assert len(MUTANTS) >= 100 and not [name for name, times in Counter(m.name for m in MUTANTS).items() if times > 1]
    folders = {path.parent.name for path in ROOT.glob("shared/*/__init__.py")} - {"visualize"}
    assert folders <= {mutant.file.split("/")[1] for mutant in MUTANTS}
    bundles = {path.parents[1].name for path in ROOT.glob("bundles/*/configs/train.json")}
    assert bundles <= {mutant.file.split("/")[1] for mutant in MUTANTS if mutant.file.endswith(".json")}


@pytest.fixture
def mutant(tmp_path):
    (tmp_path / "a.py").write_text("x = 1\ny = x + 1\n")
    (tmp_path / "a.json").write_text('{"x": 1}\n')
    return Mutant("n", "area", "a.py", "x + 1", "x - 1", "why", ())


def test_what_does_not_apply_is_told(mutant, tmp_path):
    assert mutant.mutated(tmp_path) == "x = 1\ny = x - 1\n"
    for wrong, message in (
        ({"old": "1"}, "a.py has its `old` 2 times"),
        ({"old": "z"}, "a.py has its `old` 0 times"),
        ({"file": "b.py"}, "b.py has its `old` 0 times"),
        ({"new": "x - "}, "a.py cannot be parsed with it"),
        ({"file": "a.json", "old": "1", "new": "1,"}, "a.json cannot be parsed with it"),
    ):
        with pytest.raises(ValueError, match=message):
            replace(mutant, **wrong).mutated(tmp_path)


def test_tests_are_those_that_mirror_the_file():
    assert mirrored("shared/losses/bilevel.py") == ("tests/shared/losses/test_bilevel.py",)
    assert mirrored("shared/losses/bank_streaming.py") == ("tests/shared/losses",)
    assert mirrored("bundles/sscl_crc/configs/paper.json")[-1] == "tests/bundles/test_sscl_crc.py"
    with pytest.raises(SystemExit, match="no area or error nothing"):
        read_mutants(["nothing"])
    assert {found.area for found in read_mutants(["losses"])} == {"losses"} and len(read_mutants(["p_halved"])) == 1
