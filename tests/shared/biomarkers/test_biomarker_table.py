import json

import numpy as np
import pytest

from shared.biomarkers import biomarker_table, flat_rows, same_patient_neighbour_rate
from shared.errors import DataError


def _columns(count=60, biomarkers=4, seed=0):
    random = np.random.default_rng(seed)
    patient = np.array([f"P{i // 6:02d}" for i in range(count)])
    label = np.array([(i // 6) % 3 == 0 for i in range(count)]).astype(int)
    return random.integers(0, biomarkers, count), random.random(count), patient, label, np.arange(count) % 3


def test_every_figure_against_a_plain_loop():
    assignment, similarity, patient, label, modality = _columns()
    names = ["T1", "T1D", "T1V"]
    for row in biomarker_table(assignment, similarity, patient, label, modality, modality_names=names):
        mine = [i for i in range(60) if assignment[i] == row["biomarker"]]
        people = sorted({patient[i] for i in mine})
        assert row["images"] == len(mine) and row["patients"] == len(people)
        assert row["positive_share_images"] == pytest.approx(sum(label[i] for i in mine) / len(mine))
        positive = [p for p in people if label[patient.tolist().index(p)] == 1]
        assert row["positive_share_patients"] == pytest.approx(len(positive) / len(people))
        tally = {name: sum(names[modality[i]] == name for i in mine) for name in names}
        assert row["modalities"] == tally
        assert row["purity"] == pytest.approx(max(tally.values()) / len(mine))
        assert tally[row["modality"]] == max(tally.values())
        assert row["similarity"] == pytest.approx(sum(similarity[i] for i in mine) / len(mine))
        assert row["nearest"] == sorted(mine, key=lambda i: -similarity[i])[:8]
        assert row["nearest_patients"] == [patient[i] for i in row["nearest"]]
        assert row["nearest_similarity"] == [similarity[i] for i in row["nearest"]]


def test_nearest_images_of_different_patients():
    assignment, similarity, patient, label, modality = _columns()
    rows = biomarker_table(assignment, similarity, patient, label, modality, distinct_patients=True, nearest=4)
    for row in rows:
        mine = [i for i in range(60) if assignment[i] == row["biomarker"]]
        best = {}
        for i in sorted(mine, key=lambda i: -similarity[i]):
            best.setdefault(patient[i], i)
        assert row["nearest"] == list(best.values())[:4]


def test_a_biomarker_without_images_has_none_and_the_table_is_json():
    rows = biomarker_table(*_columns(), num_biomarkers=6)
    assert len(rows) == 6 and rows[5]["images"] == 0 and rows[5]["nearest"] == []
    assert all(rows[5][name] is None for name in ("positive_share_images", "positive_share_patients", "purity"))
    assert json.loads(json.dumps(rows, allow_nan=False)) == rows
    flat = flat_rows(rows)
    assert all(isinstance(value, (str, int, float, type(None))) for row in flat for value in row.values())
    assert flat[0]["nearest"] == " ".join(str(i) for i in rows[0]["nearest"])


def test_columns_of_different_lengths_are_refused():
    assignment, similarity, patient, label, modality = _columns()
    with pytest.raises(DataError, match=r"equally long, got lengths \[59, 60\]"):
        biomarker_table(assignment, similarity[:59], patient, label, modality)


def test_neighbour_rate_against_a_plain_loop_in_blocks():
    random = np.random.default_rng(0)
    x = random.standard_normal((50, 4))
    patient = [f"P{i // 5}" for i in range(50)]
    x += 0.8 * np.repeat(random.standard_normal((10, 4)), 5, axis=0)
    hits = 0
    for i in range(50):
        cosine = [-2 if j == i else np.dot(x[i], x[j]) / np.linalg.norm(x[i]) / np.linalg.norm(x[j]) for j in range(50)]
        hits += patient[int(np.argmax(cosine))] == patient[i]
    assert 0 < hits < 50
    for block in (1, 7, 1024):
        assert same_patient_neighbour_rate(x, patient, block=block) == pytest.approx(hits / 50)


def test_neighbour_rate_at_its_ends():
    x = np.repeat(np.eye(4), 2, axis=0)
    assert same_patient_neighbour_rate(x, ["a", "a", "b", "b", "c", "c", "d", "d"]) == 1.0
    assert same_patient_neighbour_rate(x, ["a", "b", "a", "b", "a", "b", "a", "b"]) == 0.0
    assert same_patient_neighbour_rate(x[:1], ["a"]) is None
    with pytest.raises(DataError, match="got 2 for 8"):
        same_patient_neighbour_rate(x, ["a", "b"])
