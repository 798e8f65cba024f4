"""Keys of pseudonyms: stable, unlike the names, readable by their owner alone."""

import os
import re

import pytest

from shared.data.dicom.pseudonyms import Pseudonyms, owner_only
from shared.errors import DataError


def test_names_stay_and_are_new(tmp_path):
    key = Pseudonyms(tmp_path / "a" / "key.csv")
    first = [key(name) for name in ("HOSP-1", "HOSP-2")]
    key.save()
    again = Pseudonyms(tmp_path / "a" / "key.csv")
    assert [again(name) for name in ("HOSP-1", "HOSP-2")] == first and again("HOSP-3") not in first
    assert all(re.fullmatch(r"P\d{8}", name) for name in first) and len({*first}) == 2
    assert (tmp_path / "a" / "key.csv").stat().st_mode & 0o777 == 0o600
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["key.csv"]


def test_a_key_that_others_read_or_another_file_is_refused(tmp_path):
    path = tmp_path / "key.csv"
    path.write_text("pseudonym,patient_id\nP1,a\nP1,b\n")
    if os.name == "posix":
        path.chmod(0o644)
        with pytest.raises(DataError, match="chmod 600"):
            Pseudonyms(path)
    path.chmod(0o600)
    with pytest.raises(DataError, match="two patients one pseudonym"):
        Pseudonyms(path)
    path.write_text("a,b\n")
    with pytest.raises(DataError, match="no key file"):
        Pseudonyms(path)


def test_nothing_is_left_of_a_file_that_fails(tmp_path):
    with pytest.raises(ZeroDivisionError), owner_only(tmp_path / "k"):
        raise ZeroDivisionError
    assert not [*tmp_path.iterdir()]
