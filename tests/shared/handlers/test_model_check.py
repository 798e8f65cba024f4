import json
from types import SimpleNamespace

import pytest

from shared.digests import sha256
from shared.errors import CheckpointError, DataError
from shared.handlers.model_check import ModelCheck


@pytest.fixture
def model(tmp_path):
    """A model trained on P1 of the cohort `here`, with a region of 64."""
    image = tmp_path / "a.nii"
    image.write_bytes(b"a")
    folder = tmp_path / "models"
    folder.mkdir()
    (folder / "model.pt").touch()
    (folder / "model.json").write_text(json.dumps({"roi": {"size": 64}, "views": 8}))
    split = {"cohort": "here", "images": {"train": {"P1": [sha256(image)]}}}
    (folder / "split.json").write_text(json.dumps(split))
    return folder


def case(tmp_path, patient, content=b"a"):
    path = tmp_path / f"{patient}.nii"
    path.write_bytes(content)
    return {"patient": patient, "image": [str(path)]}


def test_other_settings_than_the_models_are_refused(model):
    ModelCheck(model, used={"roi": {"size": 64}, "views": 8, "later": 1}, split="testing").run()
    with pytest.raises(CheckpointError, match="roi#size is 32, the model was trained with 64"):
        ModelCheck(model, used={"roi": {"size": 32}, "views": 1}, split="testing").run()


def test_views_change_no_weight_and_are_told_but_not_of_a_model_of_slides(model, caplog):
    # a model.json that does not say averages probabilities
    check = ModelCheck(model, used={"views": 1, "average": "logits"}, split="testing")
    check.run()
    assert check.switched == {"views": 1, "average": "logits"} and "views is 1, the model's own is 8" in caplog.text
    assert "average is logits, the model's own is probabilities" in caplog.text
    assert ModelCheck(model, used={"views": 8, "average": "probabilities"}).switched == {}
    content = json.loads((model / "model.json").read_text()) | {"tiles": {}}
    (model / "model.json").write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match="views is 1, the model was trained with 8"):
        check.run()


def test_patients_of_the_training_are_not_evaluated_under_any_name(model, tmp_path, caplog):
    with pytest.raises(DataError, match=r"1 of the 2 patients to evaluate trained this model \(X \(then P1\)\)"):
        ModelCheck(model, cases=[case(tmp_path, "X"), case(tmp_path, "Y", b"y")], split="validation").run()
    ModelCheck(model, cases=[case(tmp_path, "X")], split="training").run()
    assert "the model was trained on" in caplog.text


def test_the_same_name_elsewhere_is_another_patient_and_here_is_not(model, tmp_path, caplog):
    cases = [case(tmp_path, "P1", b"other pixels")]
    ModelCheck(model, cases=cases, split="testing", cohort="elsewhere").run()
    assert "taken for other people" in caplog.text
    with pytest.raises(DataError, match=r"trained this model by name \(P1\)"):
        ModelCheck(model, cases=cases, split="testing", cohort="here").run()


def test_new_patients_are_told_not_refused(model, tmp_path, caplog):
    check = ModelCheck(model, cases=[case(tmp_path, "X"), case(tmp_path, "Y", b"y")])
    check.run()
    assert check.seen() == {"X": "P1"} and check.known()
    assert "trained on 1 of the 2 patients to predict (X)" in caplog.text


def test_a_model_without_its_split_says_that_nothing_can_be_checked(model, tmp_path, caplog):
    (model / "split.json").unlink()
    check = ModelCheck(model, cases=[case(tmp_path, "X")], split="testing")
    check.run()
    assert "cannot be checked" in caplog.text and not check.known()


def test_a_model_without_model_json_is_not_guessed_at(model):
    (model / "model.json").unlink()
    with pytest.raises(CheckpointError, match=r"model\.json is missing"):
        ModelCheck(model).run()


def test_a_split_of_an_older_version_is_asked_by_name_and_knows_no_images(model, tmp_path, caplog):
    (model / "split.json").write_text(json.dumps({"contrastive": ["P1"], "population": ["P2"], "testing": ["X"]}))
    with pytest.raises(DataError, match=r"1 of the 2 patients to evaluate trained this model by name \(P2\)"):
        ModelCheck(model, cases=[case(tmp_path, "P2"), case(tmp_path, "X")], split="testing").run()
    check = ModelCheck(model, cases=[case(tmp_path, "X")], split="testing")
    check.run()
    assert "cannot be checked" in caplog.text and not check.known()


@pytest.mark.parametrize(
    ("now", "trained", "words"),
    [
        ((256, 1.0), (128, 2.0), None),  # the same tissue, finer
        ((128, 2.04), (128, 2.0), None),
        ((256, None), (256, 2.0), None),
        ((128, 1.0), (128, 2.0), r"128 micrometres wide \(128 pixels of 1\), the model was trained on 256 \(128"),
        ((256, 2.0), (128, 2.0), r"512 micrometres wide \(256 pixels of 2\), the model was trained on 256 \(128"),
        ((256, None), (128, 2.0), None),
        ((256, 1.0), (128, None), None),
    ],
)
def test_patches_show_as_much_tissue_as_those_of_the_training(tmp_path, caplog, now, trained, words):
    (tmp_path / "model.pt").touch()
    (tmp_path / "model.json").write_text(json.dumps({"patch_size": trained[0], "mpp": trained[1]}))
    check = ModelCheck(tmp_path, patches=SimpleNamespace(patch_size=(now[0], now[0]), mpp=now[1]))
    if words:
        with pytest.raises(DataError, match=words):
            check.run()
        return
    check.run()
    unknown = now[0] != trained[0] and None in (now[1], trained[1])
    assert ("another magnification" in caplog.text or "the same width of tissue" in caplog.text) == unknown
