"""The pages of docs/reference say what the code does: configs, equations, outputs."""

import re
from pathlib import Path
from pydoc import locate

import pytest

from shared.apps.reference.configs import configs_page, undescribed
from shared.bundle.configs import read_config

ROOT = Path(__file__).parents[1]
REFERENCE = ROOT / "docs" / "reference"
BUNDLES = sorted(path.parents[1].name for path in ROOT.glob("bundles/*/configs/train.json"))


def test_the_page_of_configs_is_what_the_script_makes():
    made = configs_page(ROOT / "bundles")
    assert (REFERENCE / "configs.md").read_text(encoding="utf-8") == made, "run python scripts/make_reference.py"


@pytest.mark.parametrize("bundle", BUNDLES)
def test_every_key_of_a_config_is_explained(bundle):
    assert not undescribed(ROOT / "bundles" / bundle)


def page_tables(page):
    """By heading of the second level, the cells of all table rows below it, headers left out."""
    tables, heading = {}, ""
    for line in (REFERENCE / page).read_text(encoding="utf-8").splitlines():
        if line.startswith("## "):
            heading = line[3:].strip()
        elif line.startswith("|") and not line.startswith("|---"):
            tables.setdefault(heading, []).append([cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]])
    return tables


def has_key(config, key):
    place = config
    for part in key.split("#"):
        if not isinstance(place, dict) or part not in place:
            return False
        place = place[part]
    return True


@pytest.mark.parametrize("bundle", BUNDLES)
def test_keys_and_targets_of_the_equations_exist(bundle):
    configs = [read_config(path) for path in (ROOT / "bundles" / bundle / "configs").glob("*.json")]
    rows = [row for row in page_tables("equations.md")[bundle] if row[0] != "paper"]
    wrong = []
    for paper, _, keys, code in rows:
        named = [key for key in re.findall(r"`([^`]+)`", keys) if not key.endswith(".json")]
        wrong += [f"{paper}: no key {key}" for key in named if not any(has_key(config, key) for config in configs)]
        targets = re.findall(r"`([^`]+)`", code)
        wrong += [f"{paper}: no {target}" for target in targets if locate(target) is None]
        if not targets or not (named or keys == "-"):
            wrong.append(f"{paper}: an empty cell")
    assert rows and not wrong


@pytest.mark.parametrize(("bundle", "equations"), [("ircl_mvi", 10), ("sscl_crc", 4), ("glioma_idh", 8)])
def test_all_equations_of_the_papers_are_there(bundle, equations):
    named = set()
    for row in page_tables("equations.md")[bundle]:
        for first, last in re.findall(r"Eq\. (\d+)(?: to (\d+))?", row[0]):
            named |= set(range(int(first), int(last or first) + 1))
        named |= {int(number) for number in re.findall(r", (\d+)", row[0]) if row[0].startswith("Eq.")}
    assert named == set(range(1, equations + 1))
