"""Every stage of every bundle on a device that refuses to meet tensors of the CPU, as a GPU does."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from shared.losses.reconstruction import PerceptualReconstructionLoss
from tests.support.bundle_runs import ROOT, bundle_workflow, rows
from tests.support.small import small_settings
from tests.support.strict_device import DEVICE, StrictTensor, strict_device
from tests.support.tiny_glioma import write_cohort

BUNDLES = sorted(path.parents[1].name for path in ROOT.glob("bundles/*/configs/metadata.json"))


def phantoms(script, folder, *options):
    command = [sys.executable, ROOT / "scripts" / script, "--output", folder, *options]
    subprocess.run(command, check=True, capture_output=True)
    return folder


def ircl_mvi(folder):
    """Data, settings of training (Eq. 2 whole, with VGG16's first two layers), and of the explanations."""
    counts = ["--patients", "6", "--test-patients", "2", "--folds", "2"]
    data = phantoms("make_phantom_cohort.py", folder / "data", *counts)
    torch.save({f"features.{i}.{name}": value for i, name, value in _two_layers()}, folder / "vgg16.pth")
    vgg = {"pretrain#vgg_weights": str(folder / "vgg16.pth"), "pretrain#loss#reconstruction#layers": ["relu1_2"]}
    brief = {"pretrain#epochs": 1, "pretrain#max_epochs": 1, "train#epochs": 1, "val_interval": 1}
    return data, vgg | brief | {"covariates": ["age"]}, {"mask#steps": 2}


def _two_layers():
    for i, inputs in ((0, 3), (2, 64)):
        yield i, "weight", 0.05 * torch.randn(64, inputs, 3, 3)
        yield i, "bias", torch.zeros(64)


def sscl_crc(folder):
    counts = ["--patches", "24", "--test-patches", "4", "--unlabelled", "4", "--folds", "2", "--size", "64"]
    data = phantoms("make_phantom_patches.py", folder / "data", *counts, "--per-slide", "2")
    brief = {"pretrain#epochs": 1, "finetune_epochs": 1, "val_interval": 1, "train#samples_per_epoch": 16}
    fewer = {"randomisation_images": 2, "randomisation_draws": 1, "gallery_size": 2}
    return data, brief, {f"explain_stage#{key}": value for key, value in fewer.items()}


def glioma_idh(folder):
    data = write_cohort(folder / "data", training=12, testing=2)
    brief = {"nodes#epochs": 1, "edges#epochs": 1, "contrast#epochs": 2, "train#epochs": 1, "val_interval": 1}
    brief |= {"contrast#unimodal_share": 0.5, "contrast#pos_weight": 2.0, "train#pos_weight": 2.0}
    fewer = {"edge_mask#epochs": 2, "edge_mask#draws": 1, "contribution_steps": 2, "max_patients": 1}
    return data, brief | {"covariates": ["age"]}, fewer


def strict(bundle, *configs, monkeypatch, **settings):
    """Run a workflow on the strict device."""
    hook = sys.excepthook
    # pictures take longer than all else, and are of arrays on the CPU
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda figure, path, **_: Path(path).touch())
    with strict_device(monkeypatch):
        flow = bundle_workflow(bundle, *configs, device=f"$torch.device('{DEVICE}')", **settings)
        flow.run()
    sys.excepthook = hook
    return flow


@pytest.mark.parametrize("bundle", BUNDLES)
def test_every_stage_keeps_its_tensors_on_one_device(bundle, tmp_path, monkeypatch):
    data, brief, explained = globals()[bundle](tmp_path)
    out, settings = tmp_path / "out", small_settings(bundle) | brief
    places = {"data": data, "out": out, "monkeypatch": monkeypatch}
    flow = strict(bundle, "train", "cpu", **places, **settings)
    assert all(isinstance(p, StrictTensor) for p in flow.parser.get_parsed_content("network").parameters())
    settings |= {"split": "testing"}
    for run_id in ("evaluate", "explain"):
        more = explained if run_id == "explain" else {}
        strict(bundle, "train", "cpu", run_id, run_id=run_id, **places, **settings, **more)
    evaluated = [row["probability"] for row in rows(out / "eval/predictions.csv")]
    given = {"output_dir": str(out / "new")} | {k: v for k, v in explained.items() if k == "mask#steps"}
    given |= {} if bundle == "ircl_mvi" else {"bf16": False}
    strict(bundle, "inference", **places, kind="infer", **given)
    found = [row["probability"] for row in rows(out / "new/predictions.csv")]
    assert [float(p) for p in found] == pytest.approx([float(p) for p in evaluated], abs=1e-5)


def test_a_loss_left_behind_is_refused(tmp_path, monkeypatch):
    torch.save({f"features.{i}.{name}": value for i, name, value in _two_layers()}, tmp_path / "vgg16.pth")
    loss = PerceptualReconstructionLoss(tmp_path / "vgg16.pth", ["relu1_2"])
    image = torch.rand(2, 1, 8, 8)
    expected = loss(image, 1 - image)
    with strict_device(monkeypatch) as device:
        with pytest.raises(RuntimeError, match="same device"):
            loss(image.to(device), 1 - image.to(device))
        torch.testing.assert_close(loss.to(device)(image.to(device), 1 - image.to(device)).cpu(), expected)


def test_the_strict_device_refuses_what_a_gpu_refuses(monkeypatch):
    x, row = torch.randn(4, 3), torch.tensor([0, 2])
    with strict_device(monkeypatch) as device:
        there = x.to(device)
        assert there.device == device and torch.equal((there[row] * torch.tensor(2.0)).cpu(), x[row] * 2)
        for wrong in (lambda: there + x, lambda: x[row.to(device)], there.numpy):
            with pytest.raises((RuntimeError, TypeError), match="strict"):
                wrong()
        with pytest.raises(RuntimeError, match="generator"):
            torch.rand(2, device=device, generator=torch.Generator())
