"""One version of ``shared`` in a process."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import shared
from shared.bundle.contents import check_vendored, packaged_files
from shared.errors import DataError

OURS = Path(shared.__file__).parent
ROOT = OURS.parent


@pytest.fixture
def unpacked(tmp_path):
    """A bundle's folder with a copy of shared."""
    shutil.copytree(OURS, tmp_path / "one/shared", ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path / "one"


def test_another_version_is_refused_with_both_places(unpacked):
    with (unpacked / "shared/io.py").open("a") as file:
        file.write("\n# newer\n")
    with pytest.raises(DataError, match=r"another version.*; io.py differs") as raised:
        check_vendored(unpacked)
    assert str(unpacked.resolve() / "shared") in str(raised.value) and str(OURS.resolve()) in str(raised.value)


def test_a_second_copy_of_the_same_version_is_the_same_and_may_bring_more(tmp_path):
    # two bundles, each with the part of the code that it needs, in one process
    for name in ("ircl_mvi", "sscl_crc"):
        for place, source in packaged_files(ROOT / "bundles" / name).items():
            (tmp_path / name / place).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, tmp_path / name / place)
    code = """
    import sys
    sys.path.insert(0, "ircl_mvi")
    from shared.bundle import check_vendored
    used = check_vendored("ircl_mvi")
    try:
        from shared.data import PatchCache
    except ImportError as error:
        print(error)
    assert check_vendored("sscl_crc") == used
    from shared.data import PatchCache
    from shared.explain.patches.explainer import PatchExplainer
    from shared.explain.ircl.patient import PatientExplainer
    print(sys.modules["shared.explain.patches.explainer"].__file__)
    """
    lines = "\n".join(line[4:] for line in code.splitlines())
    ended = subprocess.run(
        [sys.executable, "-I", "-c", lines], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr
    missing, found = ended.stdout.splitlines()
    assert missing.startswith("shared.data.PatchCache is not part of this copy of shared/")
    assert Path(found) == tmp_path / "sscl_crc/shared/explain/patches/explainer.py"


def test_a_package_holds_the_code_of_its_bundle_and_of_its_preparation():
    names = {name: set(packaged_files(ROOT / "bundles" / name)) for name in ("ircl_mvi", "sscl_crc", "glioma_idh")}
    for name, own in (("ircl_mvi", "patients"), ("sscl_crc", "patches"), ("glioma_idh", "glioma")):
        assert f"shared/apps/preparation/{own}.py" in names[name] and "shared/bundle/verify.py" in names[name]
        apps = {Path(file).parts[2] for file in names[name] if file.startswith("shared/apps/")}
        assert apps == {"__init__.py", "preparation"}
    for name, foreign in (
        ("ircl_mvi", "glioma/"),
        ("ircl_mvi", "patches/"),
        ("sscl_crc", "glioma/"),
        ("glioma_idh", "ircl/"),
    ):
        assert not [file for file in names[name] if foreign in file], (name, foreign)
