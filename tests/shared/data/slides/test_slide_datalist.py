"""Slides with one label each: sections, folds by patient, names of classes; what does not fit is refused at once."""

import numpy as np
import pytest

from shared.data.slides.datalist import SlideDatalist
from shared.errors import DataError
from tests.support.tiny_slides import write_png


@pytest.fixture
def folder(tmp_path):
    """Twelve slides of white."""
    for number in range(12):
        write_png(tmp_path / f"s{number:02d}.png", np.full((40, 40, 3), 243, np.uint8), 1.0)
    return tmp_path


def write(folder, rows, heading="slide,label,patient"):
    (folder / "labels.csv").write_text("\n".join([heading, *rows]) + "\n")


def usual(change=lambda number, row: row):
    """Two slides a patient, of both labels in turn by patient."""
    return [",".join(change(n, [f"s{n:02d}", "AB"[n // 2 % 2], f"P{n // 2}"])) for n in range(12)]


def names(entries):
    return {entry["patient"] for entry in entries}


def test_folds_are_drawn_by_patient_and_cover_all(folder):
    write(folder, usual())
    held = []
    for fold in range(3):
        found = SlideDatalist(folder, fold=fold, folds=3)
        assert found.classes == ["A", "B"] and not found.testing
        assert len(found.training) == 8 and {entry["label"] for entry in found.validation} == {0, 1}
        assert not names(found.training) & names(found.validation)
        held += sorted(names(found.validation))
    assert sorted(held) == [f"P{number}" for number in range(6)]
    whole = SlideDatalist(folder, fold=-1)
    assert len(whole.training) == 12 and not whole.validation
    assert whole.training[3] == {
        "image": str(folder / "s03.png"), "slide": "s03.png", "patient": "P1", "label": 1, "mpp": 1.0
    }  # fmt: skip
    with pytest.raises(DataError, match=r"no slides in 'testing', there are in training"):
        whole.part("testing")


def test_sections_of_the_table_win(folder):
    rows = [f"{row},{'testing' if n < 2 else 'validation' if n < 6 else ''}" for n, row in enumerate(usual())]
    write(folder, rows, "slide,label,patient,section")
    found = SlideDatalist(folder)
    assert names(found.testing) == {"P0"} and names(found.validation) == {"P1", "P2"} and len(found.training) == 6
    assert found.part("testing") == found.testing


def test_numbers_are_classes_and_given_names_keep_their_order(folder):
    write(folder, [row.replace(",A,", ",0,").replace(",B,", ",1,") for row in usual()])
    assert SlideDatalist(folder, fold=-1).classes == ["class 0", "class 1"]
    write(folder, usual())
    found = SlideDatalist(folder, fold=-1, classes=["B", "A"])
    assert found.training[0]["label"] == 1


def problems(folder, **given):
    with pytest.raises(DataError) as raised:
        SlideDatalist(folder, **given)
    return str(raised.value)


def test_what_does_not_fit_is_told_at_once(folder):
    def change(number, row):
        return {1: ["s01", "", "P0"], 2: ["nowhere", "B", "P1"], 4: ["s04", "A", ""]}.get(number, row)

    write(folder, usual(change))
    message = problems(folder)
    assert "2 of 12 slides have no label in labels.csv: s01.png, s02.png; complete the table" in message
    assert "2 of 12 slides have no patient in labels.csv: s02.png, s04.png" in message
    assert "1 rows are of no slide of the folder: nowhere" in message
    assert "two classes are needed, the labels are A, B, C" in problems_of(folder, usual(lambda n, r: odd(n, r)))
    rows = [f"{row},{['testing', 'train'][n] if n < 2 else ''}" for n, row in enumerate(usual())]
    write(folder, rows, "slide,label,patient,section")
    assert "s01.png: section 'train' is none of training, validation, testing" in problems(folder)
    rows = [f"{row},{'testing' if n == 1 else ''}" for n, row in enumerate(usual())]
    write(folder, rows, "slide,label,patient,section")
    assert "patient P0: has slides in testing and training" in problems(folder)
    rows = [f"{row},{'testing' if n // 2 % 2 else ''}" for n, row in enumerate(usual())]
    write(folder, rows, "slide,label,patient,section")
    assert "the training slides are all of A; slides of both classes are needed" in problems(folder)
    write(folder, usual())
    assert "fewer than the 5 folds" in problems(folder)
    assert "smaller than a tile" in problems(folder, smallest_um=50)
    assert "fold -1 to 4, got 5 and 5" in problems(folder, fold=5)


def odd(number, row):
    return ["s03", "C", "P1"] if number == 3 else row


def problems_of(folder, rows):
    write(folder, rows)
    return problems(folder)
