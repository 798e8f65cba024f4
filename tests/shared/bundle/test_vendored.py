"""One version of ``shared`` in a process."""

import shutil
import sys
from importlib import import_module
from pathlib import Path

import pytest

import shared
from shared.bundle.closure import ModuleGraph
from shared.bundle.contents import check_vendored, find_bundles, packaged_files, shared_digest
from shared.errors import DataError
from shared.lazy import lazy_exports

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


def test_what_only_one_of_two_packages_brings_is_added(unpacked, monkeypatch):
    import shared.losses

    monkeypatch.setattr(shared, "__path__", list(shared.__path__))
    monkeypatch.setattr(shared.losses, "__path__", list(shared.losses.__path__))
    packages = [sys.modules[name] for name in list(sys.modules) if name.partition(".")[0] == "shared"]
    for package in packages:
        if hasattr(package, "__path__"):
            monkeypatch.setattr(package, "__path__", list(package.__path__))
    (unpacked / "shared/losses/only_here.py").write_text("VALUE = 3\n")
    (unpacked / "shared/losses/bilevel.py").unlink()  # a package need not hold all
    assert check_vendored(unpacked) == str(OURS.resolve())
    assert import_module("shared.losses.only_here").VALUE == 3
    assert Path(import_module("shared.losses.bilevel").__file__).parent == OURS / "losses"
    assert check_vendored(unpacked) == str(OURS.resolve())


def test_a_module_that_the_package_lacks_is_named(monkeypatch):
    _, get = lazy_exports("shared", {"Absent": "absent", "numbers": "io"})
    with pytest.raises(ModuleNotFoundError, match=r"shared\.Absent needs the module shared\.absent, which is not in"):
        get("Absent")


def test_a_package_holds_what_its_bundle_needs_and_no_more():
    folders = {bundle.name: bundle for bundle in find_bundles()}
    files = {name: set(packaged_files(folder)) for name, folder in folders.items()}
    assert "shared/apps/preparation/patients.py" in files["ircl_mvi"]
    assert "shared/apps/preparation/glioma.py" in files["glioma_idh"]
    for name in ("patches", "regions", "slides"):
        assert f"shared/apps/preparation/{name}.py" in files["sscl_crc"]
    for name, foreign in (
        ("ircl_mvi", ("glioma", "sscl")),
        ("sscl_crc", ("glioma", "networks/ircl")),
        ("glioma_idh", ("networks/ircl", "networks/sscl")),
    ):
        assert "shared/bundle/verify.py" in files[name] and "shared/lazy.py" in files[name]
        code = [file for file in files[name] if file.startswith("shared/")]
        others = ("apps/fl/", "apps/phantoms/", "apps/experiments/", "apps/baselines/", *foreign)
        assert not [file for file in code if any(other in file for other in others)], name


def test_only_what_runs_counts(tmp_path):
    for name, text in {
        "__init__": "",
        "a": "if TYPE_CHECKING:\n    from shared.b import B\ndef f():\n    from shared.p import Q\n",
        "b": "",
        "p/__init__": "__all__, __getattr__ = lazy_exports(__name__, {'Q': 'q', 'R': 'r'})\n",
        "p/q": "import shared.c\n",
        "p/r": "",
        "c": "",
    }.items():
        (tmp_path / f"{name}.py").parent.mkdir(exist_ok=True)
        (tmp_path / f"{name}.py").write_text(text)
    graph = ModuleGraph(tmp_path)
    assert graph.closure(["shared.a.f"]) == {"shared", "shared.a", "shared.p", "shared.p.q", "shared.c"}
    with pytest.raises(DataError, match=r"defines shared\.p\.S"):
        graph.closure(["shared.p.S"])


def test_a_renamed_module_is_another_version(unpacked):
    (unpacked / "shared/io.py").rename(unpacked / "shared/oi.py")
    assert shared_digest(unpacked / "shared") != shared_digest()
