"""Packages: the same bytes for the same input, refused where they are not what was published."""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from shared.bundle import archive
from shared.bundle.contents import LARGEST
from shared.digests import sha256
from shared.errors import DataError

ROOT = Path(__file__).parents[3]


@pytest.fixture
def bundle(tmp_path):
    folder = tmp_path / "sscl_crc"
    shutil.copytree(ROOT / "bundles/sscl_crc", folder, ignore=shutil.ignore_patterns("models", "eval", "data"))
    return folder


@pytest.fixture
def packed(bundle, tmp_path):
    return archive.package_bundle(bundle, tmp_path / "dist")


def test_the_same_input_gives_the_same_bytes(bundle, packed, tmp_path):
    before = packed.read_bytes()
    for path in bundle.rglob("*"):
        os.utime(path, (1, 1))
    (bundle / "LICENSE").chmod(0o700)
    (bundle / "eval").mkdir()
    (bundle / "eval/predictions.csv").write_text("not for others")
    assert archive.package_bundle(bundle, tmp_path / "again").read_bytes() == before
    (bundle / "docs/README.md").write_text("another page")
    assert archive.package_bundle(bundle, tmp_path / "other").read_bytes() != before


def test_name_checksum_size_and_version_are_written_in_monais_form(packed):
    info = json.loads((packed.parent / "model_info.json").read_text())
    assert list(info) == ["sscl_crc_v0.2.0"] and packed.name == "sscl_crc_v0.2.0.zip"
    entry = info["sscl_crc_v0.2.0"]
    assert entry["checksum"] == sha256(packed) and entry["size"] == packed.stat().st_size
    assert entry["version"] == "0.2.0" and entry["source"] == "sscl_crc_v0.2.0.zip"
    subprocess.run(["sha256sum", "-c", f"{packed.name}.sha256"], cwd=packed.parent, check=True, capture_output=True)


def test_the_code_and_requirements_go_along(packed):
    with zipfile.ZipFile(packed) as file:
        names = file.namelist()
        assert file.read("sscl_crc/shared/io.py") == (ROOT / "shared/io.py").read_bytes()
        assert b"monai==1.6.1" in file.read("sscl_crc/requirements.txt")
    assert names == sorted(names) and not [name for name in names if not name.startswith("sscl_crc/")]


def test_a_zip_is_accepted_by_the_checksum_beside_it_or_given(packed):
    found = archive.check_package(packed)
    assert (found["name"], found["version"]) == ("sscl_crc", "0.2.0")
    assert archive.check_package(packed, sha256=found["sha256"].upper()) == found
    (packed.parent / f"{packed.name}.sha256").unlink()
    assert archive.check_package(packed) == found
    (packed.parent / "model_info.json").unlink()
    with pytest.raises(DataError, match="give --sha256"):
        archive.check_package(packed)


def test_a_corrupted_or_tampered_zip_is_refused(packed):
    right = sha256(packed)
    content = bytearray(packed.read_bytes())
    content[len(content) // 2] ^= 1
    packed.write_bytes(content)
    with pytest.raises(DataError, match="Do not unpack it"):
        archive.check_package(packed)
    with pytest.raises(DataError, match="damaged or not what was published"):
        archive.check_package(packed, sha256=right)
    # a checksum made anew for it does not help a damaged one
    with pytest.raises(DataError, match=r"damaged: sscl_crc/|no bundle's zip"):
        archive.check_package(packed, sha256=sha256(packed))


def test_a_zip_that_reaches_outside_is_refused(packed):
    with zipfile.ZipFile(packed, "a") as file:
        file.writestr("sscl_crc/../../startup.py", "")
    with pytest.raises(DataError, match=r"outside of it: sscl_crc/\.\./\.\./startup\.py"):
        archive.check_package(packed, sha256=sha256(packed))


def test_a_large_model_lies_beside_the_zip_as_monai_fetches_it(bundle, tmp_path, monkeypatch):
    (bundle / "models").mkdir()
    with (bundle / "models/model.pt").open("wb") as file:
        file.truncate(LARGEST + 1)
    with pytest.raises(DataError, match="--url"):
        archive.package_bundle(bundle, tmp_path / "dist")
    output = tmp_path / "dist"
    packed = archive.package_bundle(bundle, output, url=f"{output.as_uri()}/{{file}}")
    assert packed.stat().st_size < LARGEST
    with zipfile.ZipFile(packed) as file:
        assert "sscl_crc/models/model.pt" not in file.namelist()
        file.extractall(tmp_path / "unpacked")
    pytest.importorskip("yaml")
    from monai.bundle import download_large_files

    # MONAI checks the sha256 of the entry as it fetches
    download_large_files(str(tmp_path / "unpacked/sscl_crc"))
    assert (tmp_path / "unpacked/sscl_crc/models/model.pt").stat().st_size == LARGEST + 1


def test_a_bundle_that_fails_a_check_is_not_packed(bundle, tmp_path):
    path = bundle / "configs/metadata.json"
    path.write_text(path.read_text().replace('"0.2.0":', '"0.0.9":'))
    command = [sys.executable, ROOT / "scripts/package_bundle.py", bundle, "--output", tmp_path / "dist"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode and "the changelog says nothing of version 0.2.0" in done.stderr
    assert not (tmp_path / "dist").exists()
