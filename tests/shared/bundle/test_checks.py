"""What is said of a bundle that breaks a rule, each on a copy of a real one."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from shared.bundle import checks
from shared.bundle.contents import LARGEST, bundle_files, find_bundles
from shared.errors import DataError

ROOT = Path(__file__).parents[3]
SCHEMA = {"type": "object", "properties": {"version": {"type": "string"}}, "required": ["task"]}


@pytest.fixture
def bundle(tmp_path):
    """A copy of the histology bundle, without what was trained in it."""
    folder = tmp_path / "sscl_crc"
    shutil.copytree(ROOT / "bundles/sscl_crc", folder, ignore=shutil.ignore_patterns("models", "eval", "data"))
    return folder


def edit(path, **values):
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_a_sound_bundle_has_no_problem(bundle):
    results = list(checks.cheap_checks(bundle, root=ROOT, schema=SCHEMA))
    assert [each.status for each in results] == ["ok"] * 8, [each.problems for each in results]


def test_missing_and_broken_files_are_named_together(bundle):
    (bundle / "docs/README.md").unlink()
    (bundle / "LICENSE").write_text("")
    (bundle / "configs/cpu.json").write_text("{")
    problems = checks.check_files(bundle).problems
    assert [problem.split()[0] for problem in problems] == ["LICENSE", "docs/README.md", "cpu.json"]


def test_metadata_says_what_users_look_for(bundle):
    path = bundle / "configs/metadata.json"
    edit(
        path,
        intended_use="",
        eval_metrics={"AUC": "good"},
        network_data_format={"inputs": {"image": {}}, "outputs": {}},
    )
    problems = " ".join(checks.check_metadata(bundle).problems)
    for part in ("intended_use must be a text", "measured numbers", "'image' lacks type", "no outputs", "have 'pred'"):
        assert part in problems


def test_the_schema_is_applied(bundle):
    assert checks.check_schema(bundle, None).status == "skipped"
    edit(bundle / "configs/metadata.json", version=1)
    assert "version: 1 is not of type 'string'" in checks.check_schema(bundle, SCHEMA).problems


def test_a_version_must_be_in_the_changelog(bundle):
    edit(bundle / "configs/metadata.json", version="0.3.0")
    assert checks.check_version(bundle).problems == ["the changelog says nothing of version 0.3.0"]


def test_versions_are_those_of_the_requirements(bundle):
    edit(bundle / "configs/metadata.json", numpy_version="1.0", required_packages_version={"nosuch": "2"})
    first, second = checks.check_requirements(bundle, ROOT).problems
    assert (
        first.startswith("numpy: 1.0 in the metadata")
        and second == "nosuch: 2 in the metadata, nothing in the requirements"
    )


@pytest.mark.parametrize(
    "value", ["/data/cohort", "~/cohort", "C:\\cohort", "$os.path.join('/data', 'x')", "$open('/etc/hosts')"]
)
def test_absolute_paths_of_configs_are_found(bundle, value):
    edit(bundle / "configs/cpu.json", dataset_dir=value)
    problems = checks.check_paths(bundle).problems
    assert problems[-1].startswith("configs/cpu.json#dataset_dir: absolute path")


@pytest.mark.parametrize("value", ["$@bundle_root + '/models'", "data/x", "$@size // 2", "$'a/b' if @x else '.'"])
def test_relative_paths_are_fine(bundle, value):
    edit(bundle / "configs/cpu.json", dataset_dir=value)
    assert checks.check_paths(bundle).problems == []


def test_somebodys_own_folder_is_found_in_any_text(bundle):
    place = "/".join(("", "home", "somebody", "cohort"))
    (bundle / "docs/README.md").write_text(f"I put it into {place}, you do not.")
    assert checks.check_paths(bundle).problems == [f"docs/README.md: personal path {place}"]


def test_large_files_are_refused_but_for_models(bundle):
    for name in ("docs/scan.bin", "models/model.pt"):
        (bundle / name).parent.mkdir(exist_ok=True)
        with (bundle / name).open("wb") as file:
            file.truncate(LARGEST + 1)
    result = checks.check_sizes(bundle)
    assert result.problems == ["docs/scan.bin has 25 MB"] and "models/model.pt by large_files.yml" in result.note


def test_a_package_takes_the_model_and_leaves_the_rest_of_a_training(bundle):
    along = ("histogram_reference.json", "model.json", "model.pt", "preparation.json")
    for name in (*along, "pretrain.pt", "model.ts", "demo/model.pt"):
        (bundle / "models" / name).parent.mkdir(parents=True, exist_ok=True)
        (bundle / "models" / name).write_text("x")
    models = [name for name in bundle_files(bundle) if name.startswith("models")]
    assert models == [f"models/{name}" for name in along]


def test_bundles_are_found_by_name_or_folder(bundle):
    assert find_bundles([str(bundle)], root=ROOT) == [bundle]
    assert find_bundles(root=bundle) == [bundle]
    with pytest.raises(DataError, match=r"no bundle 'nosuch'.*sscl_crc"):
        find_bundles(["nosuch"], root=ROOT)


@pytest.mark.parametrize(
    ("state", "settings", "words"),
    [
        ({"a": torch.ones(2)}, None, "model.json is missing"),
        ({"a": torch.ones(2)}, {"weights": "0" * 64}, "of two trainings"),
        ({"features.seen": torch.ones(2)}, {"network": {}}, "hashes of patients' names"),
        ({"a": torch.ones(2)}, {"network": {}}, None),
    ],
)
def test_a_model_is_packed_with_its_own_settings_and_no_names(bundle, state, settings, words):
    (bundle / "models").mkdir()
    torch.save(state, bundle / "models/model.pt")
    (bundle / "models/split.json").write_text('{"images": {"train": {"Jane Doe": []}}}')
    if settings is not None:
        (bundle / "models/model.json").write_text(json.dumps(settings))
    problems = checks.check_model(bundle).problems
    assert (words in " ".join(problems)) if words else not problems
    assert "models/split.json" not in bundle_files(bundle)
