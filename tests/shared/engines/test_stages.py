import copy
import csv
import json
import logging

import pytest
import torch

from shared.checkpoint import load_checkpoint, save_checkpoint
from shared.engines import BiomarkerStage
from shared.engines.biomarker_stage import encode_cases
from shared.errors import CheckpointError, DataError
from shared.networks import IRCLAutoencoder, IRCLClassifier
from shared.transforms.roi_slices import radiological
from tests.references.ircl_networks import nearest_biomarker
from tests.support.tiny import cohort, lively_images, tiny_classifier

LABELS = [0, 1, 1, 0, 1, 0]


@pytest.fixture(autouse=True)
def drawn(monkeypatch):
    """Galleries take longer than these stages: look at what they are asked to draw instead."""
    asked = []
    monkeypatch.setattr(
        "shared.visualize.biomarker_gallery", lambda *arguments, **named: asked.append((arguments, named))
    )
    return asked


def stage_of(folder, network=None, cases=None, *, channels=(4, 8), count=3, **settings):
    """The biomarker stage after a stage I whose encoder is that of a lively network."""
    if not (folder / "pretrain.pt").exists():
        autoencoder = IRCLAutoencoder(channels, embedding_dim=6)
        autoencoder.encoder.load_state_dict(tiny_classifier(IRCLClassifier, channels=channels).encoder.state_dict())
        save_checkpoint(folder / "pretrain.pt", {"network": autoencoder.state_dict()})
    torch.manual_seed(3)
    sizes = {"num_layers": 1, "dim": 8, "num_heads": 2, "mlp_dim": 8}
    network = network or IRCLClassifier(4, count, channels=(4, 8), embedding_dim=6, **sizes)
    settings = {"pretrained": folder / "pretrain.pt", "checkpoint": folder / "biomarkers.pt", **settings}
    common = {"output_dir": folder, "seed": 0, "resume": False, "record": None, "device": "cpu"}
    common |= {key: settings.pop(key) for key in common.keys() & settings.keys()}
    stage = BiomarkerStage(network, common, cases or cohort(lively_images(6), LABELS), count, **settings)
    return stage, network


def rows_of(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_biomarkers_are_unit_centres_of_the_training_embeddings(tmp_path):
    stage, network = stage_of(tmp_path)
    stage.run()
    state = load_checkpoint(tmp_path / "biomarkers.pt")
    assert torch.equal(state["biomarkers"], network.biomarkers) and network.biomarkers.shape == (3, 6)
    torch.testing.assert_close(network.biomarkers.norm(dim=1), torch.ones(3))
    pretrained = load_checkpoint(tmp_path / "pretrain.pt")["network"]
    for key, value in state["encoder"].items():
        assert torch.equal(value, pretrained[f"encoder.{key}"])
    z = network.eval().encode(lively_images(6))[1].flatten(0, 1)
    chosen, _ = nearest_biomarker(z.tolist(), network.biomarkers.tolist())
    for k in range(3):  # each is the mean direction of the images nearest to it
        members = z[[i for i, nearest in enumerate(chosen) if nearest == k]]
        assert (
            len(members) and torch.nn.functional.cosine_similarity(members.mean(0), network.biomarkers[k], 0) > 0.9999
        )


def test_the_table_counts_images_patients_and_positives(tmp_path, drawn):
    stage, network = stage_of(tmp_path)
    stage.run()
    index = network.assign(network.eval().encode(lively_images(6))[1])[0]
    for k, row in enumerate(rows_of(tmp_path / "biomarkers.csv")):
        patients = [i for i in range(6) if (index[i] == k).any()]
        assert int(row["images"]) == int((index == k).sum()) and int(row["patients"]) == len(patients)
    (images, table, path), named = drawn[0]
    assert torch.equal(images, radiological(lively_images(6).flatten(0, 1))) and path == tmp_path / "biomarkers.png"
    assert named["labels"].tolist() == [label for label in LABELS for _ in range(4)]
    content = json.loads((tmp_path / "biomarkers.json").read_text())
    assert content["biomarkers"] == json.loads(json.dumps(table))
    assert sum(row["images"] for row in content["biomarkers"]) == 24
    assert 0 <= content["same_patient_neighbour_rate"] <= 1 and content["modality_purity"] == 1


def test_biomarkers_of_each_modality_come_from_its_images_alone(tmp_path):
    sizes = {"num_layers": 1, "dim": 8, "num_heads": 2, "mlp_dim": 8, "num_modalities": 2, "per_modality": True}
    network = IRCLClassifier(4, 2, channels=(4, 8), embedding_dim=6, **sizes)
    settings = {"num_modalities": 2, "modalities": ["T1", "FLAIR"], "per_modality": True}
    stage, _ = stage_of(tmp_path, network, count=2, **settings)
    stage.run()
    both = network.biomarkers.clone()
    other = cohort(lively_images(6), LABELS)
    for item in other._cache:
        item["image"] = item["image"].clone()
        item["image"][2:] = item["image"][2:].flip(-1) * 0.5
    stage_of(tmp_path, network, other, count=2, **settings)[0].run()
    assert torch.equal(network.biomarkers[:2], both[:2]) and not torch.allclose(network.biomarkers[2:], both[2:])
    modality = [row["modality"] for row in json.loads((tmp_path / "biomarkers.json").read_text())["biomarkers"]]
    assert modality == ["T1", "T1", "FLAIR", "FLAIR"]


def test_a_seed_repeats_the_biomarkers(tmp_path):
    found = []
    for seed in (1, 1):
        stage, network = stage_of(tmp_path, seed=seed)
        stage.run()
        found.append(network.biomarkers.clone())
    assert torch.equal(*found)


def test_a_stage_that_is_done_is_skipped_when_resuming(tmp_path):
    stage_of(tmp_path)[0].run()
    before = (tmp_path / "biomarkers.pt").read_bytes()
    stage, network = stage_of(tmp_path, resume=True)
    seen = []
    network.encoder.register_forward_pre_hook(lambda module, inputs: seen.append(1))
    stage.run()
    assert not seen and (tmp_path / "biomarkers.pt").read_bytes() == before
    stage_of(tmp_path, network, resume=False)[0].run()
    assert seen


def test_embeddings_that_know_the_patient_raise_an_alarm(tmp_path, caplog):
    one = lively_images(6, 1)
    noise = 0.001 * torch.rand(6, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    with caplog.at_level(logging.WARNING):
        stage_of(tmp_path, cases=cohort(one + noise, LABELS))[0].run()
    assert "The embedding knows the patient: 100 % of nearest neighbours" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        stage_of(tmp_path, cases=cohort(one.flatten(0, 1)[:4].expand(6, 4, 16, 16) + noise, LABELS))[0].run()
    assert "knows the patient" not in caplog.text


def test_encoding_is_in_eval_mode_whatever_the_batches():
    network, cases = tiny_classifier(IRCLClassifier), cohort(lively_images(6))
    network.train()
    whole, parts = encode_cases(network, cases, "cpu"), encode_cases(network, cases, "cpu", batch_size=4)
    for found, expected in zip(parts, whole, strict=True):
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)
    assert whole[0].shape == (6, 4, 8) and whole[1].shape == (6, 4, 6) and not whole[0].requires_grad


# --- refusals -----------------------------------------------------------------------------------------------------


def test_stage_one_must_have_run(tmp_path):
    stage, _ = stage_of(tmp_path)
    (tmp_path / "pretrain.pt").unlink()
    with pytest.raises(
        CheckpointError, match=r"There is no checkpoint .*pretrain.pt\. Run stage I first: --run_id pre"
    ):
        stage.run()


def test_stage_one_of_other_dimensions_is_refused(tmp_path):
    stage, network = stage_of(tmp_path, channels=(4, 6))
    before = copy.deepcopy(network.encoder.state_dict())
    with pytest.raises(CheckpointError, match=r"pretrain.pt does not fit this network: .*in the file.*config overlays"):
        stage.run()
    torch.testing.assert_close(network.encoder.state_dict(), before, atol=0, rtol=0)


def test_a_checkpoint_of_another_stage_is_refused(tmp_path):
    save_checkpoint(tmp_path / "pretrain.pt", tiny_classifier(IRCLClassifier).state_dict())
    with pytest.raises(CheckpointError, match=r"pretrain.pt holds no 'network': it is of another stage"):
        stage_of(tmp_path)[0].run()


def test_more_biomarkers_than_images_are_refused(tmp_path):
    with pytest.raises(DataError, match="25 biomarkers need at least 25 distinct images, got 24"):
        stage_of(tmp_path, count=25)[0].run()
    assert not (tmp_path / "biomarkers.pt").exists()
