"""Every bundle keeps the rules of ``scripts/verify_bundles.py``, found by glob."""

import json
from pathlib import Path

import pytest

from shared.bundle.checks import cheap_checks, check_schema
from shared.bundle.contents import find_bundles
from shared.bundle.exports import ExportChecks
from shared.bundle.properties import check_properties, phantom_data
from shared.bundle.verify import main
from tests.support.small import small_settings

ROOT = Path(__file__).parents[2]
SCHEMA = ROOT.parent / "shared/data/monai/meta_schema_20240725.json"
BUNDLES = find_bundles(root=ROOT)
NETWORK = ("network_def", "preparing")  # sections of settings that make the network
each_bundle = pytest.mark.parametrize("bundle", BUNDLES, ids=lambda path: path.name)


@each_bundle
def test_files_metadata_versions_and_paths(bundle):
    results = list(cheap_checks(bundle, root=ROOT))
    assert {result.check: result.problems for result in results if result.problems} == {}


@each_bundle
def test_metadata_fits_monais_schema(bundle):
    if not SCHEMA.is_file():
        pytest.skip("MONAI's schema is not beside the repository")
    assert check_schema(bundle, json.loads(SCHEMA.read_text())).problems == []


@each_bundle
def test_all_properties_have_monais_ids(bundle, tmp_path):
    results = list(check_properties(bundle, None, tmp_path))
    assert [result.problems for result in results] == [[], [], []]


@each_bundle
def test_the_network_is_as_described_and_exports_agree(bundle, tmp_path):
    settings = {key: value for key, value in small_settings(bundle.name).items() if key.split("#")[0] in NETWORK}
    overlays = ["cpu"] if (bundle / "configs/cpu.json").is_file() else []
    results = list(ExportChecks(bundle, tmp_path, overlays=overlays, settings=settings).run())
    assert {result.check: result.problems for result in results if result.problems} == {}
    assert [result.status for result in results[:3]] == ["ok"] * 3


@pytest.mark.slow
@each_bundle
def test_the_workflows_are_built_on_phantoms(bundle, tmp_path):
    data = phantom_data(bundle, ROOT, tmp_path / "data")
    results = list(check_properties(bundle, data, tmp_path, overlays=["cpu"]))
    assert [(result.problems, result.note) for result in results] == [([], "built on data")] * 3


@pytest.mark.slow
def test_the_command_verifies_a_bundle_on_phantoms(capsys):
    # the smallest: networks, exports and workflows of all are looked at above
    assert main(["sscl_crc", "--config", "cpu", "--no-schema"]) == 0, capsys.readouterr().out
    found = capsys.readouterr().out
    assert found.count("built on data") == 3 and " 0 failed" in found
