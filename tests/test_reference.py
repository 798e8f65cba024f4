"""The pages of docs/reference say what the code does: configs, equations, outputs."""

from pathlib import Path

import pytest

from shared.apps.reference.configs import configs_page, undescribed

ROOT = Path(__file__).parents[1]
REFERENCE = ROOT / "docs" / "reference"
BUNDLES = sorted(path.parents[1].name for path in ROOT.glob("bundles/*/configs/train.json"))


def test_the_page_of_configs_is_what_the_script_makes():
    made = configs_page(ROOT / "bundles")
    assert (REFERENCE / "configs.md").read_text(encoding="utf-8") == made, "run python scripts/make_reference.py"


@pytest.mark.parametrize("bundle", BUNDLES)
def test_every_key_of_a_config_is_explained(bundle):
    assert not undescribed(ROOT / "bundles" / bundle)
