"""One version of ``shared`` in a process."""

import shutil
from pathlib import Path

import pytest

import shared
from shared.bundle.contents import check_vendored, shared_digest
from shared.errors import DataError

OURS = Path(shared.__file__).parent


@pytest.fixture
def unpacked(tmp_path):
    """A bundle's folder with a copy of shared."""
    shutil.copytree(OURS, tmp_path / "one/shared", ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path / "one"


def test_a_second_copy_of_the_same_version_is_the_same(unpacked):
    assert shared_digest(unpacked / "shared") == shared_digest()
    assert check_vendored(unpacked) == str(OURS.resolve())


def test_another_version_is_refused_with_both_places(unpacked):
    with (unpacked / "shared/io.py").open("a") as file:
        file.write("\n# newer\n")
    with pytest.raises(DataError, match="another version") as raised:
        check_vendored(unpacked)
    assert str(unpacked.resolve() / "shared") in str(raised.value) and str(OURS.resolve()) in str(raised.value)


def test_a_renamed_module_is_another_version(unpacked):
    (unpacked / "shared/io.py").rename(unpacked / "shared/oi.py")
    assert shared_digest(unpacked / "shared") != shared_digest()
