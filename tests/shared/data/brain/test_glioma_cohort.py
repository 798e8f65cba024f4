import json
import logging

import pytest

from shared.data import GliomaDatalist
from shared.data.brain.datalist import stratified_parts
from shared.errors import DataError
from tests.support.tiny_glioma import write_cohort

SHARES = {"self_supervised": 0.2, "contrastive": 0.4, "population": 0.4}


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    return write_cohort(tmp_path_factory.mktemp("cohort") / "data")


@pytest.mark.parametrize("count", [7, 20, 61])
def test_parts_hold_their_shares_of_each_label_whatever_the_order(count):
    names, labels = [f"P{k}" for k in range(count)], [int(k % 4 == 0) for k in range(count)]
    parts = stratified_parts(names, labels, SHARES, seed=3)
    assert set(parts) == set(names)
    for label in (0, 1):
        group = [parts[name] for name, other in zip(names, labels, strict=True) if other == label]
        for part, share in SHARES.items():
            assert abs(group.count(part) - share * len(group)) <= 1
    assert parts == stratified_parts(names[::-1], labels[::-1], SHARES, seed=3)
    if count > 10:
        assert parts != stratified_parts(names, labels, SHARES, seed=4)


def test_what_is_rounded_off_of_one_label_is_made_good_by_the_next():
    names, labels = [f"P{k}" for k in range(10)], [k % 2 for k in range(10)]
    parts = stratified_parts(names, labels, {"self_supervised": 0.5, "population": 0.5}, seed=0)
    assert sorted(parts.values()) == ["population"] * 5 + ["self_supervised"] * 5


def test_no_patient_is_in_two_parts_and_a_fold_is_in_none(cohort):
    found = GliomaDatalist(cohort, shares=SHARES, fold=0, seed=5)
    parts = found.parts()
    every = [name for names in parts.values() for name in names]
    assert len(every) == len(set(every)) == 26
    assert len(parts["validation"]) == 10 and len(found.training) == 10
    assert set(found.part_of) == {case["patient"] for case in found.training}


def test_without_a_part_of_their_own_the_contrastive_patients_train_the_brain_networks_encoders(cohort):
    found = GliomaDatalist(cohort, shares=SHARES | {"self_supervised": 0})
    assert found.self_supervised == found.contrastive and len(found.with_fa) == 10
    assert all(case["fa"].startswith(str(cohort)) for case in found.with_fa)


def warned(caplog):
    """Warnings alone: another test may have switched on what is merely told."""
    return [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_fa_maps_are_used_where_all_have_one_and_some_are_told(cohort, tmp_path, caplog):
    content = json.loads((cohort / "datalist.json").read_text())
    shares = SHARES | {"self_supervised": 0}
    whole = GliomaDatalist(cohort, shares=shares)
    assert whole.all_fa and not warned(caplog)
    lacking = whole.contrastive[0]["patient"]
    for case in content["training"]:
        if case["patient"] == lacking:
            del case["fa"]
    (tmp_path / "some.json").write_text(json.dumps(content))
    some = GliomaDatalist(cohort, tmp_path / "some.json", shares=shares)
    assert not some.all_fa and len(some.with_fa) == 9
    assert "9 of the 10 patients" in caplog.text and f"so none is used (the others: {lacking});" in caplog.text
    for case in content["training"]:
        case.pop("fa", None)
    (tmp_path / "none.json").write_text(json.dumps(content))
    caplog.clear()
    assert not GliomaDatalist(cohort, tmp_path / "none.json", shares=shares).all_fa
    assert not warned(caplog)


def test_a_datalist_may_name_the_parts_itself(cohort, tmp_path):
    content = json.loads((cohort / "datalist.json").read_text())
    for k, case in enumerate(content["training"]):
        case["part"] = "population" if k < 14 else "contrastive"
    (tmp_path / "parts.json").write_text(json.dumps(content))
    found = GliomaDatalist(cohort, tmp_path / "parts.json", shares=SHARES)
    assert [case["patient"] for case in found.population] == [f"P{k:02d}" for k in range(14)]
    content["training"][0]["part"] = "teaching"
    (tmp_path / "parts.json").write_text(json.dumps(content))
    with pytest.raises(
        DataError, match="P00: part must be one of self_supervised, contrastive, population, got 'teach"
    ):
        GliomaDatalist(cohort, tmp_path / "parts.json", shares=SHARES)


def test_parts_too_small_and_unknown_shares_are_refused(cohort):
    with pytest.raises(DataError, match="the part 'contrastive' has 0 and 0 patients of the two labels, at least 2"):
        GliomaDatalist(cohort, shares=SHARES | {"contrastive": 0})
    with pytest.raises(DataError, match="shares must name the parts self_supervised, contrastive, population, got a"):
        GliomaDatalist(cohort, shares={"a": 1})
    with pytest.raises(DataError, match="at least 0"):
        GliomaDatalist(cohort, shares=SHARES | {"contrastive": -1})


def test_cross_fitting_deals_all_out_to_folds_and_keeps_groups_together(cohort, tmp_path):
    content = json.loads((cohort / "datalist.json").read_text())
    for k, case in enumerate(content["training"] + content["testing"]):
        case["group"] = f"g{k // 4}"
        case.pop("fold", None)
    (tmp_path / "grouped.json").write_text(json.dumps(content))
    found = GliomaDatalist(cohort, tmp_path / "grouped.json", shares=SHARES, folds=4)
    assert found.self_supervised == found.contrastive == found.population == found.training
    assert set(found.fold_of) == set(found.part_of) == {f"P{k:02d}" for k in range(20)}
    assert found.fold_of != GliomaDatalist(cohort, tmp_path / "grouped.json", shares=SHARES, folds=4, seed=1).fold_of
    group_of = {case["patient"]: case["group"] for case in content["training"]}
    assert all(len({found.fold_of[n] for n in group_of if group_of[n] == g}) == 1 for g in set(group_of.values()))
    for fold in range(4):
        without = GliomaDatalist(cohort, tmp_path / "grouped.json", shares=SHARES, folds=4, held_out=fold)
        assert without.fold_of == found.fold_of
        assert {case["patient"] for case in without.contrastive} == {n for n, k in found.fold_of.items() if k != fold}
        assert without.self_supervised == without.contrastive and without.training == found.training


def test_all_folds_learn_with_fa_or_none_does(cohort, tmp_path):
    content = json.loads((cohort / "datalist.json").read_text())
    del content["training"][0]["fa"]
    (tmp_path / "some.json").write_text(json.dumps(content))
    for fold in (-1, 0, 1):
        assert not GliomaDatalist(cohort, tmp_path / "some.json", shares=SHARES, folds=2, held_out=fold).all_fa


def test_the_way_back_to_the_patient_is_found_or_its_lack_told(cohort, tmp_path):
    content = json.loads((cohort / "datalist.json").read_text())
    content["training"][0]["mni_places"] = "way/back.nii.gz"
    (tmp_path / "way.json").write_text(json.dumps(content))
    name = content["training"][0]["patient"]
    with pytest.raises(DataError, match=rf"^{name}: .*way/back.nii.gz: file not found; prepare the patient again"):
        GliomaDatalist(cohort, tmp_path / "way.json", shares=SHARES)
    (cohort / "way").mkdir()
    (cohort / "way/back.nii.gz").touch()
    found = GliomaDatalist(cohort, tmp_path / "way.json", shares=SHARES)
    (case,) = [case for case in found.training if "mni_places" in case]
    assert case["mni_places"] == str(cohort.resolve() / "way/back.nii.gz")


def test_a_fold_that_is_not_there_is_refused(cohort):
    with pytest.raises(DataError, match="must be -1 \\(none\\) to 3, got 4"):
        GliomaDatalist(cohort, shares=SHARES, folds=4, held_out=4)
    assert not GliomaDatalist(cohort, shares=SHARES).fold_of
