import csv
import json
import math

import pytest

from shared.io import atomic_path, write_csv, write_json


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_file_appears_whole_with_its_folder(tmp_path):
    target = tmp_path / "a" / "b" / "table.nii.gz"
    with atomic_path(target) as temporary:
        assert temporary.parent == target.parent and temporary.name.endswith(".nii.gz") and not target.exists()
        temporary.write_text("whole")
        assert not target.exists()
    assert target.read_text() == "whole" and names(target.parent) == ["table.nii.gz"]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_failure_leaves_the_older_file_and_no_temporary(tmp_path, error):
    target = tmp_path / "table.txt"
    target.write_text("older")
    with pytest.raises(type(error)), atomic_path(target) as temporary:
        temporary.write_text("half")
        raise error
    assert target.read_text() == "older" and names(tmp_path) == ["table.txt"]


def test_two_writers_of_one_file_do_not_share_a_temporary(tmp_path):
    with atomic_path(tmp_path / "t.txt") as first, atomic_path(tmp_path / "t.txt") as second:
        assert first != second
        first.write_text("first")
        second.write_text("second")
    assert (tmp_path / "t.txt").read_text() == "first" and names(tmp_path) == ["t.txt"]


def test_json_is_readable_and_refuses_nan(tmp_path):
    write_json(tmp_path / "a.json", {"AUC": 0.5, "classes": ["Ü"]})
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == {"AUC": 0.5, "classes": ["Ü"]}
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "a.json", {"AUC": math.nan})
    assert json.loads((tmp_path / "a.json").read_text())["AUC"] == 0.5


def test_csv_has_the_columns_asked_for(tmp_path):
    rows = [{"patient": "Doe, J.", "label": 1}, {"patient": "P2", "label": ""}]
    write_csv(tmp_path / "a.csv", rows)
    with (tmp_path / "a.csv").open(newline="", encoding="utf-8") as file:
        assert list(csv.DictReader(file)) == [{"patient": "Doe, J.", "label": "1"}, {"patient": "P2", "label": ""}]
    write_csv(tmp_path / "a.csv", rows, ["label", "patient"])
    assert (tmp_path / "a.csv").read_text().splitlines()[0] == "label,patient"
    with pytest.raises(ValueError, match="fields not in fieldnames"):
        write_csv(tmp_path / "a.csv", [*rows, {"patient": "P3", "probability": 0.1}])
    assert (tmp_path / "a.csv").read_text().splitlines()[0] == "label,patient" and names(tmp_path) == ["a.csv"]
    write_csv(tmp_path / "none.csv", [], ["patient"])
    assert (tmp_path / "none.csv").read_text().split() == ["patient"]
