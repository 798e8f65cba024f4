"""Records: what a stage depends on is found, what differs is named, what was made from an older checkpoint goes."""

import json
from types import SimpleNamespace

import pytest
import torch
from monai.bundle import ConfigParser

from shared.bundle.record import (
    TrainingRecord,
    building_config,
    check_weights,
    plain_settings,
    read_model,
    read_split,
    seen_patients,
    weights_digest,
)
from shared.checkpoint import save_checkpoint
from shared.errors import CheckpointError

CONFIG = {
    "seed": 0,
    "roi": {"size": 64, "mask_background": True},
    "covariates": [],
    "resume": False,
    "dataset_dir": "/data/somewhere",
    "encoder": {"channels": [8, 16], "views": 2},
    "one": {
        "epochs": 5,
        "rate": 0.1,
        "checkpoint": "$@ckpt_dir + '/one.pt'",
        "trainer": {
            "_target_": "a.Trainer",
            "epochs": "@one#epochs",
            "rate": "@one#rate",
            "roi": "@roi",
            "seed": "@seed",
        },
    },
    "two": {
        "checkpoint": "$@ckpt_dir + '/two.pt'",
        "stage": {"_target_": "a.Stage", "channels": "@encoder#channels", "dataset_dir": "@dataset_dir"},
    },
    "train": {
        "trainer": {
            "_target_": "a.Trainer",
            "network": "$@encoder.to(@device)",
            "first": "@one#checkpoint",
            "covariates": "$len(@covariates)",
            "resume": "@resume",
        }
    },
}


def case(folder, name, content, **more):
    path = folder / f"{name}.nii"
    path.write_bytes(content)
    return {"patient": name, "image": [str(path)], "label": 1, **more}


@pytest.fixture
def datalist(tmp_path):
    cases = [case(tmp_path, f"P{k}", bytes([k])) for k in range(3)]
    return SimpleNamespace(training=cases, classes=["no", "yes"], modalities=["T1", "T2"], name="here")


@pytest.fixture
def make(tmp_path, datalist):
    def record(config=CONFIG, label_free=(), **changes):
        listed = SimpleNamespace(**{**vars(datalist), **changes})
        stages = ["one", "two", "train"]
        return TrainingRecord(tmp_path / "models", listed, stages=stages, config=config, label_free=label_free)

    return record


def changed(key, value):
    config = json.loads(json.dumps(CONFIG))
    place = config
    *parents, last = key.split("#")
    for part in parents:
        place = place[part]
    place[last] = value
    return config


def finish(record, stage):
    record.begin(stage, None, finished=False, going_on=False)
    save_checkpoint(record.path(stage), {"network": {}, "record": record.of(stage)})


def stored(record, stage):
    return torch.load(record.path(stage), weights_only=True)["record"]


def test_references_are_followed_and_places_left_out():
    values, epochs, visited = plain_settings(CONFIG, "one#trainer")
    assert values == {"one#rate": 0.1, "one#trainer": "Trainer", "roi#mask_background": True, "roi#size": 64, "seed": 0}
    assert epochs == {"one#epochs": 5} and "one#checkpoint" not in visited
    assert plain_settings(CONFIG, "two#stage")[0] == {"encoder#channels": [8, 16], "two#stage": "Stage"}
    values, _, visited = plain_settings(CONFIG, "train#trainer", unused=["encoder::views"])
    assert values == {"covariates": [], "encoder#channels": [8, 16], "train#trainer": "Trainer"}
    assert "one#checkpoint" in visited


def test_a_training_is_kept_whose_configuration_put_its_stages_together_itself(make):
    now = make().of("one") | {"settings": {"one#trainer": "StageTrainer", "one#handlers": [], "one#rate": 0.1}}
    parts = {"one#dataloader": "DataLoader", "one#dataloader#shuffle": True, "one#log": "TrainingLog"}
    before = now | {"settings": {"one#trainer": "SupervisedTrainer", **parts, "one#rate": 0.1}}
    assert make().differences(before, now) == []
    before["settings"]["one#rate"] = 0.2
    assert make().differences(before, now) == ["one#rate was 0.2, is now 0.1"]
    newer = now | {"settings": {**now["settings"], "one#trainer": "Other"}}
    assert make().differences(now, newer) == ["one#trainer was StageTrainer, is now Other"]


def test_a_setting_that_came_later_is_what_was_computed_before_it(make):
    now = make().of("one")
    settings = {"network_def#attention": "prototype", "use_modalities": None}
    newer = now | {"settings": {**now["settings"], **settings}}
    older = now | {"settings": {**now["settings"], "num_modalities": 3}}  # plain then, an expression now
    assert make().differences(older, newer) == [] and make().differences(now, now) == []
    other = newer | {"settings": {**newer["settings"], "network_def#attention": "self", "use_modalities": ["T1"]}}
    assert make().differences(older, other) == [
        "network_def#attention was prototype, is now self",
        'use_modalities was null, is now ["T1"]',
    ]
    fewer = newer | {"settings": {**newer["settings"], "num_modalities": 2}}
    assert make().differences(older, fewer) == ["num_modalities was 3, is now 2"]


def test_wrappers_of_several_processes_change_nothing():
    config = changed(
        "train#trainer#network", {"_target_": "torch.DistributedDataParallel", "module": "@encoder", "x": 1}
    )
    assert plain_settings(config, "train#trainer")[0] == plain_settings(CONFIG, "train#trainer")[0]


def test_handlers_that_look_on_are_left_out_and_others_followed():
    handlers = [
        {"_target_": "MLFlowHandler", "uri": "@uri"},
        {"_target_": "shared.handlers.TrainingLog", "every": 5},
        {"_target_": "shared.handlers.StartContrast", "nodes": "@one#checkpoint", "share": "@share"},
        {"_target_": "LrScheduleHandler", "lr_scheduler": "@scheduler", "print_lr": False},
    ]
    config = {"uri": "here", "share": 0.4, "scheduler": {"_target_": "Step", "gamma": 0.9}, "one": CONFIG["one"]}
    values, _, visited = plain_settings({**config, "train": {"trainer": {"train_handlers": handlers}}}, "train#trainer")
    assert values == {"scheduler": "Step", "scheduler#gamma": 0.9, "share": 0.4} and "one#checkpoint" in visited


def test_a_component_sees_the_configuration_that_builds_it():
    parser = ConfigParser({"a": 3, "b": {"_target_": "shared.bundle.record.building_config"}})
    assert parser.get_parsed_content("b")["a"] == 3
    assert building_config() == {}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"config": changed("roi#size", 32)}, "roi#size was 64, is now 32"),
        ({"config": changed("seed", 1)}, "seed was 0, is now 1"),
        ({"config": changed("one#epochs", 6)}, "one#epochs was 5, is now 6"),
        ({"classes": ["yes", "no"]}, "the classes were no, yes, are now yes, no"),
        ({"modalities": ["T2", "T1"]}, "the modalities were T1, T2, are now T2, T1"),
    ],
)
def test_a_finished_stage_of_another_training_is_refused_by_name(make, change, words):
    finish(make(), "one")
    record = make(**change)
    with pytest.raises(CheckpointError) as raised:
        record.begin("one", stored(record, "one"), finished=True, going_on=True)
    assert words in str(raised.value) and "--resume False" in str(raised.value)
    assert record.path("one").is_file()


def test_what_changes_no_number_is_not_compared(make, caplog):
    finish(make(), "one")
    for key, value in (("resume", True), ("dataset_dir", "/elsewhere"), ("encoder#views", 5)):
        record = make(config=changed(key, value))
        record.begin("one", stored(record, "one"), finished=True, going_on=True)
    record.begin("one", None, finished=True, going_on=True)
    assert "holds no record of its training" in caplog.text


def test_a_half_finished_stage_may_have_more_epochs_and_nothing_else(make):
    half = make().of("one")
    make(config=changed("one#epochs", 50)).begin("one", half, finished=False, going_on=True)
    with pytest.raises(
        CheckpointError, match=r"one\.pt\.resume was trained otherwise .* one#rate was 0\.1, is now 0\.2"
    ):
        make(config=changed("one#rate", 0.2)).begin("one", half, finished=False, going_on=True)


def test_a_stage_without_labels_goes_on_under_other_labels_and_not_under_other_images(make, datalist, tmp_path):
    datalist.pretraining = [*datalist.training, case(tmp_path, "free", b"free")]
    first = make(label_free=["one"])
    finish(first, "one")
    datalist.training[0]["label"] = 0  # corrected, shuffled, or taken away for fewer labels
    datalist.pretraining = datalist.training = [*datalist.training[1:], datalist.training[0], datalist.pretraining[-1]]
    again = make(label_free=["one"])
    again.begin("one", stored(again, "one"), finished=True, going_on=True)
    again.begin("train", None, finished=False, going_on=False)
    datalist.pretraining = datalist.training[:-1]
    fewer = make(label_free=["one"])
    with pytest.raises(CheckpointError, match=r"the pretraining part .* is another one"):
        fewer.begin("one", stored(fewer, "one"), finished=True, going_on=True)


def test_a_file_that_a_setting_names_counts_by_what_is_in_it(tmp_path, monkeypatch):
    for folder, content in (("a", b"1"), ("b", b"1"), ("c", b"2")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "w.pt").write_bytes(content)
    monkeypatch.chdir(tmp_path)

    def value(path):
        return plain_settings({"train": {"trainer": {"weights": path}}}, "train#trainer")[0]["train#trainer#weights"]

    assert value(str(tmp_path / "a/w.pt")) == value("b/w.pt") != value("c/w.pt")
    assert str(tmp_path) not in value(str(tmp_path / "a/w.pt")) and value("/gone/w.pt") == "w.pt"


def test_whom_another_folders_checkpoint_saw_stays_known_when_the_training_goes_on(make, tmp_path):
    other = tmp_path / "other/models"
    other.mkdir(parents=True)
    (other / "split.json").write_text(json.dumps({"images": {"one": {"far": ["d1"]}}}))
    record = make()
    finish(record, "train")
    record.inherit(other / "one.pt")
    make().begin("train", stored(record, "train"), finished=True, going_on=True)
    assert read_split(record.ckpt_dir)["images"]["models/one"] == {"far": ["d1"]}
    make().begin("train", None, finished=False, going_on=False)
    assert "models/one" not in read_split(record.ckpt_dir)["images"]


def test_nothing_is_written_down_of_a_checkpoint_without_a_record(make):
    record = make()
    record.begin("train", None, finished=True, going_on=True)
    assert read_split(record.ckpt_dir) == {}


@pytest.mark.parametrize("what", ["pixels", "label", "patient"])
def test_another_training_part_is_refused(make, datalist, tmp_path, what):
    finish(make(), "one")
    if what == "pixels":
        (tmp_path / "P0.nii").write_bytes(b"x")
    elif what == "label":
        datalist.training[0]["label"] = 0
    else:
        datalist.training.pop()
    record = make()
    with pytest.raises(CheckpointError, match=r"the training part .* is another one"):
        record.begin("one", stored(record, "one"), finished=True, going_on=True)


def test_the_order_of_patients_is_no_difference(make, datalist):
    finish(make(), "one")
    datalist.training.reverse()
    record = make()
    record.begin("one", stored(record, "one"), finished=True, going_on=True)


def test_a_stage_that_starts_anew_removes_what_was_made_from_it_and_nothing_else(make):
    record = make()
    for stage in record.stages:
        finish(record, stage)
    for name in ("model.json", "cohort.npz", "conformal.json"):
        (record.ckpt_dir / name).write_text("{}")
    make().begin("one", None, finished=False, going_on=False)
    # two does not start from one; train does
    assert {path.name for path in record.ckpt_dir.glob("[a-z]*")} == {"two.pt", "split.json"}


def test_a_stage_does_not_start_from_a_checkpoint_of_other_settings(make):
    finish(make(), "one")
    with pytest.raises(CheckpointError, match=r"stage 'train' would start from .*one\.pt.* roi#size was 64, is now 32"):
        make(config=changed("roi#size", 32)).begin("train", None, finished=False, going_on=False)


def test_an_exchanged_parent_is_seen(make):
    record = make()
    finish(record, "one")
    finish(record, "train")
    known = stored(record, "train")
    save_checkpoint(record.path("one"), {"network": {"x": torch.ones(1)}, "record": record.of("one")})
    with pytest.raises(CheckpointError, match=r"one\.pt, from which it started, is another one now"):
        make().begin("train", known, finished=True, going_on=True)


def test_who_was_trained_on_is_known_by_images_not_by_names(make, tmp_path):
    finish(make(), "one")
    new = tmp_path / "new"
    new.mkdir()
    same, other = case(new, "renamed", bytes([1])), case(new, "P1", b"other")
    assert seen_patients(tmp_path / "models", [same, other]) == {"renamed": "P1"}
    assert read_split(tmp_path / "models")["cohort"] == "here"
    assert seen_patients(new, [same]) == {}


def test_every_image_of_a_patient_tells_who_was_trained_on(make, datalist, tmp_path):
    paths = [tmp_path / f"{name}.nii" for name in "xyz"]
    for path in paths:
        path.write_bytes(path.stem.encode())
    both = {"patient": "both", "image": [str(path) for path in paths], "label": 0}
    finish(make(training=[*datalist.training, both]), "one")
    for path in paths:
        assert seen_patients(tmp_path / "models", [{"patient": "new", "image": str(path)}]) == {"new": "both"}


def test_a_digest_of_weights_tells_names_kinds_and_shapes_apart_and_no_order():
    one, two = torch.arange(6.0), torch.zeros(2)
    known = weights_digest({"a": one, "b": two})
    assert known == weights_digest({"b": two, "a": one})
    others = [{"a": one, "c": two}, {"a": one.reshape(2, 3), "b": two}, {"a": one, "b": two.long()[:1]}, {"a": one}]
    others += [{"a": one, "b": two + 1e-7}, {"a": torch.cat([one, two]), "b": two[:0]}]
    assert len({known, *map(weights_digest, others)}) == 7


def test_weights_of_another_training_do_not_fit_model_json(tmp_path):
    state = {"a": torch.arange(3.0), "b": torch.zeros(2, dtype=torch.long)}
    (tmp_path / "model.json").write_text(json.dumps({"weights": weights_digest(state)}))
    check_weights(tmp_path / "model.pt", state)
    with pytest.raises(CheckpointError, match="of two trainings"):
        check_weights(tmp_path / "model.pt", {**state, "a": state["a"] + 1})
    with pytest.raises(CheckpointError, match="of two trainings"):
        check_weights(tmp_path / "model.pt", {"network": state, "record": {}})  # an earlier stage's checkpoint
    (tmp_path / "model.json").write_text("{}")  # of an older version
    check_weights(tmp_path / "model.pt", state)


@pytest.mark.parametrize("content", ["", '{"images": {', "[]"])
def test_a_record_that_is_half_copied_makes_nobody_a_new_patient(tmp_path, content):
    assert read_split(tmp_path) == {} and read_model(tmp_path) == {}
    for name, read in (("split.json", read_split), ("model.json", read_model)):
        (tmp_path / name).write_text(content)
        with pytest.raises(CheckpointError, match=rf"{name} .*; copy it again from the training's folder"):
            read(tmp_path)
