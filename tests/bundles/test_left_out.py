"""Nothing of a model comes from who is left out: with other pixels, labels and covariates it is bitwise the same."""

import json
import sys

import pytest
import torch

from tests.support.bundle_runs import bundle_workflow
from tests.support.left_out import CONFIGS, SMALL, left_out, settings, write_data

STAGES = {
    "ircl_mvi": {"pretrain.pt", "biomarkers.pt", "additive.pt", "model.pt"},
    "glioma_idh": {"nodes.pt", "edges.pt", "contrast.pt", "model.pt"},
    "sscl_crc": {"pretrain.pt", "model.pt"},
}
DESCRIBED = ("biomarkers.json", "biomarkers.csv", "additive_biomarkers.json", "additive_biomarkers.csv")


@pytest.fixture(scope="module", params=SMALL)
def pair(request, tmp_path_factory):
    """The bundle's name, and the folders of two trainings: the second one's left-out patients are others."""
    bundle, folder, hook = request.param, tmp_path_factory.mktemp(request.param), sys.excepthook
    outputs = []
    for name in ("plain", "changed"):
        data = write_data(bundle, folder / name / "data", changed=name == "changed")
        bundle_workflow(bundle, *CONFIGS[bundle], data=data, out=folder / name, **settings(bundle)).run()
        outputs.append(folder / name)
    sys.excepthook = hook
    return bundle, *outputs


def tensors(value, place=""):
    """All tensors and numbers of a checkpoint, by their place in it."""
    if isinstance(value, dict):
        return {key: x for name, part in value.items() for key, x in tensors(part, f"{place}/{name}").items()}
    return {place: value}


def same(one, other):
    return torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other


def test_every_checkpoint_of_every_stage_is_bitwise_the_same(pair):
    bundle, plain, changed = pair
    assert {path.name for path in (plain / "models").glob("*.pt")} == STAGES[bundle]
    for name in STAGES[bundle]:
        one, other = (tensors(torch.load(path / "models" / name, weights_only=True)) for path in (plain, changed))
        assert one.keys() == other.keys()
        # of the bytes of an earlier checkpoint's file, which PyTorch names after a temporary one
        one = {key: value for key, value in one.items() if "/record/parents/" not in key}
        different = [key for key in one if not same(one[key], other[key])]
        assert not different, f"{name}: {different[:5]}"


def test_so_are_the_losses_and_what_is_told_of_the_training(pair):
    _, plain, changed = pair
    tables = sorted(path.name for path in (plain / "eval").glob("*_loss.csv"))
    tables += [name for name in DESCRIBED if (plain / "eval" / name).is_file()]
    assert tables
    for name in tables:
        assert (plain / "eval" / name).read_text() == (changed / "eval" / name).read_text(), name
    one, other = (json.loads((path / "models/model.json").read_text()) for path in (plain, changed))
    assert one["network"] == other["network"]


def test_the_left_out_are_others_in_all_that_could_leak(pair):
    bundle, plain, changed = pair
    one, other = (json.loads((path / "data/datalist.json").read_text()) for path in (plain, changed))
    apart = [case["patient"] for case in left_out(one)]
    assert len(apart) >= 8 and apart == [case["patient"] for case in left_out(other)]
    for before, after in zip(left_out(one), left_out(other), strict=True):
        assert before.get("label") != after.get("label") or "label" not in before
        files = before["image"] if isinstance(before["image"], list) else [before["image"]]
        for name in files:
            assert (plain / "data" / name).read_bytes() != (changed / "data" / name).read_bytes(), (bundle, name)
    for before, after in zip(one["training"], other["training"], strict=True):
        assert before == after or before["patient"] in apart
