"""scripts/bundle_offline.sh with a wheel of one line: what it packs, installs without an index, and refuses."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = """
import sys, zipfile
from pathlib import Path
folder = Path(sys.argv[sys.argv.index("--output") + 1])
with zipfile.ZipFile(folder / f"{sys.argv[1]}_v1.0.zip", "w") as archive:
    archive.writestr(f"{sys.argv[1]}/requirements.txt", "tiny_thing==1.0\\n")
    archive.writestr(f"{sys.argv[1]}/configs/metadata.json", "{}")
"""


def write_wheel(folder, name):
    folder.mkdir(exist_ok=True)
    info = f"{name}-1.0.dist-info"
    with zipfile.ZipFile(folder / f"{name}-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr(f"{name}.py", "ANSWER = 42\n")
        wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", f"{name}.py,,\n{info}/METADATA,,\n{info}/WHEEL,,\n{info}/RECORD,,\n")


def bash(script, *arguments, **environment):
    """The script, pip without any index but ``PIP_FIND_LINKS``."""
    own = {key: value for key, value in os.environ.items() if not key.startswith("PIP_")}
    own |= {"PIP_NO_INDEX": "1", "PIP_CONFIG_FILE": os.devnull, "PYTHON": sys.executable} | environment
    command = ["bash", str(script), *map(str, arguments)]
    return subprocess.run(command, env=own, capture_output=True, text=True, timeout=300, check=False)


@pytest.fixture(scope="module")
def house(tmp_path_factory):
    """A repository of the script alone, with a blank in its name."""
    folder = tmp_path_factory.mktemp("offline") / "a house"
    (folder / "scripts").mkdir(parents=True)
    shutil.copy(ROOT / "scripts/bundle_offline.sh", folder / "scripts")
    (folder / "scripts/package_bundle.py").write_text(PACKAGE)
    (folder / "requirements-slides.txt").write_text("other_thing==1.0\n")
    for name in ("tiny_thing", "other_thing"):
        write_wheel(folder / "index", name)
    return folder


@pytest.fixture(scope="module")
def packed(house):
    """What ``pack`` leaves."""
    folder = house / "for the clinic"
    index = {"PIP_FIND_LINKS": (house / "index").as_uri()}
    ended = bash(house / "scripts/bundle_offline.sh", "pack", "some_bundle", folder, "slides", **index)
    assert ended.returncode == 0, ended.stderr
    return folder


def test_packs_wheels_zip_and_checksums_and_installs_without_an_index(packed, tmp_path):
    names = sorted(path.relative_to(packed).as_posix() for path in packed.rglob("*") if path.is_file())
    assert names == [
        *("SHA256SUMS", "bundle_offline.sh", "python.txt", "requirements-slides.txt", "requirements.txt"),
        *("some_bundle_v1.0.zip", "wheels/other_thing-1.0-py3-none-any.whl", "wheels/tiny_thing-1.0-py3-none-any.whl"),
    ]
    assert len((packed / "SHA256SUMS").read_text().splitlines()) == len(names) - 1
    target = tmp_path / "the target"
    ended = bash(packed / "bundle_offline.sh", "install", packed, target)
    assert ended.returncode == 0, ended.stderr
    code = "import tiny_thing, other_thing; print(tiny_thing.ANSWER)"
    found = subprocess.run([target / ".venv/bin/python", "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout == "42\n" and (target / "some_bundle/configs/metadata.json").is_file()
    again = bash(packed / "bundle_offline.sh", "install", packed, target)
    assert again.returncode == 1 and "is not empty" in again.stderr


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        ("wheels/tiny_thing-1.0-py3-none-any.whl", b"other", "is damaged: copy it again"),
        ("wheels/more.whl", b"added", "wheels/more.whl is not in SHA256SUMS"),
    ],
)
def test_a_folder_that_was_changed_is_not_installed(packed, tmp_path, file, content, words):
    folder = tmp_path / "copy"
    shutil.copytree(packed, folder)
    (folder / file).write_bytes(content)
    ended = bash(folder / "bundle_offline.sh", "install", folder, tmp_path / "target")
    assert ended.returncode == 1 and words in ended.stderr and not (tmp_path / "target").exists()


def test_another_python_is_refused(packed, tmp_path):
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho Python 3.99 Linux x86_64\n")
    python.chmod(0o755)
    ended = bash(packed / "bundle_offline.sh", "install", packed, tmp_path / "target", PYTHON=str(python))
    assert ended.returncode == 1 and ended.stderr.count("\n") == 1
    assert f"the wheels are for Python {sys.version_info[0]}.{sys.version_info[1]}" in ended.stderr
    assert "this is Python 3.99" in ended.stderr


def test_what_is_wrong_with_the_command_is_one_line(house, packed, tmp_path):
    script = house / "scripts/bundle_offline.sh"
    for arguments, words in (
        ((), "pack BUNDLE FOLDER [EXTRA...], or install FOLDER TARGET"),
        (("pack", "some_bundle"), "pack BUNDLE FOLDER [EXTRA...]"),
        (("pack", "some_bundle", packed), "is not empty: give a new folder"),
        (("pack", "some_bundle", tmp_path / "new", "nothing"), "no extra 'nothing'"),
        (("install", tmp_path, tmp_path / "target"), "it has no SHA256SUMS"),
    ):
        ended = bash(script, *arguments)
        assert ended.returncode == 1 and ended.stderr.count("\n") == 1 and words in ended.stderr, ended.stderr
    assert not (tmp_path / "new").exists()
