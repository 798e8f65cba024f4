"""Every bundle's multi_gpu_train.json in two gloo processes: the same training as in one, files written once."""

import json
import subprocess
import sys

import pytest
import torch

from tests.support.bundle_runs import bundle_workflow, rows
from tests.support.distributed_runs import ROOT, arguments, torchrun
from tests.support.small import small_settings
from tests.support.tiny_glioma import write_cohort

pytestmark = pytest.mark.slow
IRCL, SSCL, GLIOMA = (small_settings(name) for name in ("ircl_mvi", "sscl_crc", "glioma_idh"))
MODULE = "tests.support.distributed_runs"
SGD = {"_target_": "torch.optim.SGD", "lr": 0.05, "momentum": 0.9}


def make(script, folder, *options):
    command = [sys.executable, ROOT / "scripts" / script, "--output", folder, *options]
    subprocess.run(command, check=True, capture_output=True)
    return folder


def ircl(folder):
    """Data, settings under which nothing is drawn but the batches, what the witness keeps, where the run stops."""
    data = make("make_phantom_cohort.py", folder / "data", "--patients", "24", "--test-patients", "5", "--folds", "2")
    fixed = IRCL | {"pretrain#augmentation": None, "network_def#dropout": 0.0, "pretrain#batch_size": 40}
    fixed |= {"pretrain#epochs": 2, "pretrain#max_epochs": 2, "train#epochs": 2, "pretrain#update_every": 1}
    fixed |= {"pretrain#network#_target_": f"{MODULE}.LivelyAutoencoder", "split": "testing"}
    fixed |= {"pretrain#optimizer": SGD | {"params": "$@pretrain#trainer_network.parameters()"}}
    fixed |= {"train#optimizer": SGD | {"params": "$@network.predictor.parameters()"}, "fold": 0, "val_interval": 1}
    fixed |= {"answer": "prototype", "network_def#additive#num_biomarkers": 2}
    watched = {"network": "@pretrain#trainer_network", "bank": "@pretrain#bank_handler"}
    return data, fixed, ("pretrain", watched), "pretrain"


def sscl(folder):
    """As `ircl`."""
    counts = ["--patches", "40", "--test-patches", "13", "--unlabelled", "8", "--folds", "2", "--size", "96"]
    data = make("make_phantom_patches.py", folder / "data", *counts, "--per-slide", "4")
    views = {"_target_": f"{MODULE}.TwoViews", "size": SSCL["pretrain#size"]}
    fixed = SSCL | {"pretrain#augmentation": views, "train#augmentation": None, "network_def#dropout": 0.0}
    fixed |= {"pretrain#network#_target_": f"{MODULE}.DoubleNetwork", "train#trainer#save_interval": 1}
    fixed |= {"pretrain#optimizer": SGD | {"params": "$@pretrain#trainer_network.parameters()"}, "val_interval": 1}
    fixed |= {"train#optimizer": SGD | {"params": "$@network.parameters()", "lr": 0.01}}
    return data, fixed, ("pretrain", {"network": "@pretrain#trainer_network"}), "train"


def glioma(folder):
    """As `ircl`, in float32."""
    data = write_cohort(folder / "data", testing=7)
    fixed = GLIOMA | {"network_def#population#dropout": 0.0, "network_def#brain#dropout": 0.0}
    fixed |= {"contrast#batch_size": 10, "contrast#rotation": 0.0}
    networks = {"nodes": "trainer_network", "edges": "trainer_network", "contrast": "network", "train": "network"}
    for stage, key in networks.items():
        fixed[f"{stage}#optimizer"] = SGD | {"params": f"$@{stage}#{key}.parameters()", "lr": 0.01}
    fixed["contrast#optimizer"]["params"] = "$@contrast#network.trained()"
    # the first of three epochs shields the encoders, the others do not: both are seen
    fixed |= {"contrast#trainer#save_interval": 1, "split": "testing", "contrast#unimodal_share": 0.34}
    return data, fixed, ("contrast", {"network": "@contrast#network"}), "contrast"


# after K-means rounding may put an image between two biomarkers on the other side, which moves what follows
NEAR = {"ircl_mvi": 1e-2, "sscl_crc": 2e-3, "glioma_idh": 2e-3}
BUNDLES = [("ircl_mvi", ircl), ("sscl_crc", sscl), ("glioma_idh", glioma)]


@pytest.fixture(scope="module", params=BUNDLES, ids=lambda pair: pair[0])
def runs(request, tmp_path_factory):
    """A bundle's training in one process, and in two that are stopped after an epoch of a stage and go on."""
    bundle, prepare = request.param
    folder = tmp_path_factory.mktemp(bundle)
    data, fixed, (stage, kept), stopped = prepare(folder)
    one, two = folder / "one", folder / "two"
    train = json.loads((ROOT / "bundles" / bundle / "configs/train.json").read_text())

    def watched(out, stop=None):
        handlers = {name: list(train[name]["handlers"]) for name in {stage, stopped}}
        handlers[stage].append({"_target_": f"{MODULE}.Witness", "path": str(out / "first"), **kept})
        if stop:
            handlers[stop].append({"_target_": f"{MODULE}.Stop", "epoch": 2, "marker": str(out / "was_stopped")})
        return {f"{name}#handlers": part for name, part in handlers.items()} | fixed

    for out in (one, two):
        out.mkdir()
    hook = sys.excepthook
    bundle_workflow(bundle, "train", "cpu", data=data, out=one, **watched(one)).run()
    bundle_workflow(bundle, "train", "cpu", "evaluate", data=data, out=one, run_id="evaluate", **fixed).run()
    sys.excepthook = hook
    (two / "stopped.json").write_text(json.dumps(watched(two, stopped)))
    (two / "fixed.json").write_text(json.dumps(fixed))
    places, configs = {"data": data, "out": two}, (bundle, "train", "cpu", "multi_gpu_train")
    printed = torchrun(
        [
            arguments(*configs, overlay=two / "stopped.json", **places),
            arguments(*configs, overlay=two / "stopped.json", resume=True, **places),
            arguments(*configs, "evaluate", overlay=two / "fixed.json", run_id="evaluate", **places),
        ]
    )
    return bundle, one, two, printed


def first(folder, rank):
    return torch.load(folder / f"first_{rank}.pt", weights_only=True)


def test_the_gradient_is_that_of_one_process_with_the_whole_batch(runs):
    bundle, one, two, _ = runs
    expected = first(one, 0)["gradients"]
    assert max(float(value.abs().max()) for value in expected.values()) > 1e-2
    close = 1e-5 if bundle == "glioma_idh" else 1e-6  # the others are in float64
    for rank in (0, 1):
        found = first(two, rank)["gradients"]
        for key, value in expected.items():
            torch.testing.assert_close(
                found[key], value, atol=close, rtol=0, msg=lambda text, key=key: f"{key}: {text}"
            )


@pytest.mark.parametrize("runs", BUNDLES[:1], ids=["ircl_mvi"], indirect=True)  # the one with a memory bank
def test_the_memory_bank_is_the_same_in_all_processes(runs):
    _, one, two, _ = runs
    alone, zero, other = first(one, 0), first(two, 0), first(two, 1)
    for key in ("embeddings", "inter_positives"):
        assert torch.equal(zero[key], other[key])
    torch.testing.assert_close(zero["embeddings"], alone["embeddings"], atol=1e-5, rtol=0)
    assert (alone["inter_positives"] >= 0).any() and torch.equal(zero["inter_positives"], alone["inter_positives"])


def test_the_whole_training_gives_the_model_of_one_process_also_when_it_goes_on(runs):
    bundle, one, two, _ = runs
    expected, found = (torch.load(out / "models/model.pt", weights_only=True) for out in (one, two))
    assert expected.keys() == found.keys()
    for key, value in expected.items():
        if key.startswith("additive.") and "encoders" not in key:
            # one process clusters thousands of places: after rounding another optimum may be the best
            own = torch.load(two / "models/additive.pt", weights_only=True)["additive"]
            assert torch.equal(found[key], own[key.removeprefix("additive.")])
            continue
        torch.testing.assert_close(
            found[key], value, atol=NEAR[bundle], rtol=1e-3, msg=lambda text, key=key: f"{key}: {text}"
        )
    tables = [path.name for path in (one / "eval").glob("*_loss.csv")]
    assert len(tables) >= 2
    for name in tables:
        for a, b in zip(rows(one / "eval" / name), rows(two / "eval" / name), strict=True):
            assert float(a["loss"]) == pytest.approx(float(b["loss"]), abs=NEAR[bundle])


def test_every_case_is_predicted_once_in_order(runs):
    bundle, one, two, _ = runs
    expected, found = (rows(out / "eval/predictions.csv") for out in (one, two))
    assert len(found) == len(expected) and len(found) % 2, "an odd number, which two processes cannot share evenly"
    for a, b in zip(expected, found, strict=True):
        assert [a.get(key) for key in ("image", "patient", "label")] == [
            b.get(key) for key in ("image", "patient", "label")
        ]
        assert float(a["probability"]) == pytest.approx(float(b["probability"]), abs=NEAR[bundle])


def test_one_process_writes_and_speaks(runs):
    bundle, one, two, printed = runs
    for part in ("models", "eval"):
        assert {path.name for path in (one / part).iterdir()} == {path.name for path in (two / part).iterdir()}
    assert printed.count("going on after epoch 1") == 1
    # the stages before the one that was stopped
    before = {"ircl_mvi": 0, "sscl_crc": 1, "glioma_idh": 2}[bundle]
    assert printed.count("resume is true: the stage is skipped") == before


# --- variants: other losses, other data -----------------------------------------------------------------------------


def exclude_self(folder):
    """Eq. 5 without the row itself: images without a positive count nowhere, however they fall to the processes."""
    data = make("make_phantom_cohort.py", folder / "data", "--patients", "6", "--test-patients", "1", "--folds", "2")
    fixed = IRCL | {"pretrain#augmentation": None, "pretrain#batch_size": 26, "pretrain#exclude_self": True}
    fixed |= {"pretrain#network#_target_": f"{MODULE}.LivelyAutoencoder", "pretrain#num_positives": 1}
    # beyond its patient's images of the same modality an image has no positive: those of one slice have none at all
    fixed |= {"pretrain#epochs": 1, "pretrain#max_epochs": 1, "pretrain#update_every": 1, "num_slices": 1}
    fixed |= {"pretrain#optimizer": SGD | {"params": "$@pretrain#trainer_network.parameters()"}}
    watched = {"network": "@pretrain#trainer_network", "bank": "@pretrain#bank_handler"}
    return "ircl_mvi", data, fixed, "pretrain_run", ("pretrain", watched)


def three_sequences_without_fa(folder):
    """The edge encoder as an autoencoder, whose projection head nobody asks."""
    data = write_cohort(folder / "data", training=12, testing=2, fa=False, sequences=("t1", "t2", "flair"))
    fixed = GLIOMA | {"in_channels": 3, "network_def#population#dropout": 0.0, "network_def#brain#dropout": 0.0}
    fixed |= {"contrast#batch_size": 6, "contrast#rotation": 0.0, "edges#batch_size": 20}
    # a parameter that got no gradient is missed in the second iteration
    fixed |= {"nodes#epochs": 1, "edges#epochs": 2, "contrast#epochs": 2, "train#epochs": 1}
    networks = {"nodes": "trainer_network", "edges": "trainer_network", "contrast": "network", "train": "network"}
    for stage, key in networks.items():
        fixed[f"{stage}#optimizer"] = SGD | {"params": f"$@{stage}#{key}.parameters()", "lr": 0.01}
    fixed["contrast#optimizer"]["params"] = "$@contrast#network.trained()"
    return "glioma_idh", data, fixed, "run", ("edges", {"network": "@edges#trainer_network"})


VARIANTS = (exclude_self, three_sequences_without_fa)


@pytest.fixture(scope="module")
def variants(tmp_path_factory):
    """Each in one process; and all in two processes, one after the other."""
    folders, commands = {}, []
    for variant in VARIANTS:
        folder = folders[variant] = tmp_path_factory.mktemp(variant.__name__)
        bundle, data, fixed, run_id, (stage, kept) = variant(folder)
        handlers = json.loads((ROOT / "bundles" / bundle / "configs/train.json").read_text())[stage]["handlers"]
        places = {name: folder / name for name in ("one", "two")}
        for name, out in places.items():
            out.mkdir()
            witness = {"_target_": f"{MODULE}.Witness", "path": str(out / "first"), **kept}
            settings = fixed | {f"{stage}#handlers": [*handlers, witness]}
            if name == "one":
                hook = sys.excepthook
                bundle_workflow(bundle, "train", "cpu", data=data, out=out, run_id=run_id, **settings).run()
                sys.excepthook = hook
            else:
                (out / "fixed.json").write_text(json.dumps(settings))
        two, configs = places["two"], (bundle, "train", "cpu", "multi_gpu_train")
        commands.append(arguments(*configs, overlay=two / "fixed.json", run_id=run_id, data=data, out=two))
    torchrun(commands)
    return folders


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: variant.__name__)
def test_variants_train_in_two_processes_as_in_one(variants, variant):
    one, two = (variants[variant] / name for name in ("one", "two"))
    expected = first(one, 0)["gradients"]
    assert max(float(value.abs().max()) for value in expected.values()) > 1e-3
    for rank in (0, 1):
        found = first(two, rank)["gradients"]
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            torch.testing.assert_close(found[key], value, atol=1e-5, rtol=0, msg=lambda text, key=key: f"{key}: {text}")
    tables = sorted(path.name for path in (one / "eval").glob("*_loss.csv"))
    assert tables == sorted(path.name for path in (two / "eval").glob("*_loss.csv")) and tables
    for name in tables:
        for a, b in zip(rows(one / "eval" / name), rows(two / "eval" / name), strict=True):
            assert float(a["loss"]) == pytest.approx(float(b["loss"]), abs=2e-3), name
