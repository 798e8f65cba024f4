"""Rules of the whole repository: what may lie in it, what is pinned, what starts fast, what the shell scripts say."""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from shared.apps.requirement_files import requirement_files

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
SCRIPTS = sorted([*ROOT.glob("scripts/*.py"), *ROOT.glob("benchmarks/*.py")])
STARTED = [path for path in SCRIPTS if not path.name.startswith("_")]  # the others are parts of these
SHELL_SCRIPTS = [*sorted(ROOT.glob("scripts/*.sh")), ROOT / ".ci" / "run"]
# Written in two halves, so that this file does not hold them.
PERSONAL = re.compile(
    "|".join(rf"(?<![\w.])/{folder}/" r"\w" for folder in ("ho" + "me", "Us" + "ers", "ro" + "ot", "wo" + "rk"))
)
OFFLINE = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": "", "PIP_EXTRA_INDEX_URL": "", "PIP_CONFIG_FILE": os.devnull}


def repository_files():
    """What git would take; all but the ignored folders where there is no git."""
    try:
        command = ["git", "ls-files", "-co", "--exclude-standard", "-z"]
        listed = subprocess.run(command, cwd=ROOT, capture_output=True, check=True, text=True).stdout
        paths = [ROOT / name for name in listed.split("\0") if name]
    except (OSError, subprocess.CalledProcessError):
        skip = {".git", ".venv", "__pycache__", ".pytest_cache", ".ruff_cache", "data", "dist", "models", "eval"}
        paths = [path for path in ROOT.rglob("*") if not skip & set(path.relative_to(ROOT).parts[:-1])]
    return [path for path in paths if path.is_file()]


def requirements(name):
    lines = [line.split("#")[0].strip() for line in (ROOT / name).read_text().splitlines()]
    return [Requirement(line) for line in lines if line]


def test_no_large_files_and_nobodys_paths():
    large, personal = [], []
    for path in repository_files():
        if path.stat().st_size > 25e6:
            large.append(str(path))
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except UnicodeDecodeError:
            continue
        personal += [f"{path}:{number}: {line}" for number, line in enumerate(lines, 1) if PERSONAL.search(line)]
    assert not large and not personal


def test_requirement_files_are_those_of_pyproject():
    wanted = requirement_files(ROOT / "pyproject.toml")
    there = {path.name: path.read_text() for path in ROOT.glob("requirements*.txt")}
    assert there.pop("requirements-monailabel.txt")  # of an environment of its own
    assert there == wanted, "run: python scripts/write_requirements.py"


@pytest.mark.parametrize("name", sorted(path.name for path in ROOT.glob("requirements*.txt")))
def test_requirements_are_pinned_exactly(name):
    loose = [
        str(r) for r in requirements(name) if [s.operator for s in r.specifier] != ["=="] or "*" in str(r.specifier)
    ]
    assert requirements(name) and not loose


def test_the_pins_are_what_is_installed():
    wrong = [
        f"{r} but {metadata.version(r.name)}"
        for r in requirements("requirements.txt")
        if not r.specifier.contains(metadata.version(r.name))
    ]
    assert not wrong


def test_what_is_imported_is_pinned():
    pinned = {r.name.lower() for r in requirements("requirements.txt")}
    distributions, unknown = metadata.packages_distributions(), set()
    for path in [*ROOT.glob("shared/**/*.py"), *SCRIPTS]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            modules += [node.module] if isinstance(node, ast.ImportFrom) and node.level == 0 else []
            beside = {neighbour.stem for neighbour in path.parent.glob("_*.py")}
            own = {"shared", *beside, *sys.stdlib_module_names}
            for top in {module.split(".")[0] for module in modules} - own:
                if not pinned & {name.lower() for name in distributions.get(top, [])}:
                    unknown.add(f"{path.relative_to(ROOT)}: {top}")
    assert not unknown


def test_the_oldest_python_the_scripts_take_is_one_the_pins_take():
    text = (ROOT / "scripts" / "_bootstrap.sh").read_text()
    oldest = ".".join(re.search(r"sys\.version_info < \((\d+), (\d+)\)", text).groups())
    refuse = [
        r.name
        for r in requirements("requirements.txt")
        if oldest not in SpecifierSet(metadata.metadata(r.name)["Requires-Python"])
    ]
    assert not refuse and f"Python {oldest} or newer" in text


HELP = """
import contextlib, io, json, runpy, sys, time
sys.modules.update(dict.fromkeys(("torch", "monai")))
found = {}
for script in sys.argv[1:]:
    sys.argv, out, start, code = [script, "--help"], io.StringIO(), time.process_time(), None
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        try:
            runpy.run_path(script, run_name="__main__")
        except SystemExit as end:
            code = end.code
        except BaseException as error:
            code = repr(error)
    found[script] = [code, out.getvalue(), time.process_time() - start]
print(json.dumps(found))
"""


def test_help_is_there_at_once_and_without_torch(tmp_path):
    command = [sys.executable, "-c", HELP, *STARTED]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=True)
    for script, (code, text, seconds) in json.loads(ended.stdout).items():
        assert code in (0, None) and "usage:" in text, f"{script}: {code} {text}"
        assert seconds < 2, script  # processor time: a busy machine is no fault of the script


def test_scripts_are_one_call():
    for path in ROOT.glob("scripts/*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        assert not [node for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.ClassDef))], path


# ground first; a room may import those before it
ROOMS = (
    *("progress", "errors", "lazy", "io", "locks", "digests", "checkpoint", "metrics", "distributed", "data", "bundle"),
    *(
        "losses",
        "biomarkers",
        "visualize",
        "transforms",
        "networks",
        "reports",
        "explain",
        "handlers",
        "engines",
        "apps",
    ),
)


def _runtime_imports(path):
    """Modules of ``shared`` that a file imports, also in its functions; not what only annotations need."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    checked = [node for node in ast.walk(tree) if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)]
    left_out = {id(node) for block in checked for node in ast.walk(block)}
    for node in ast.walk(tree):
        if id(node) not in left_out and isinstance(node, ast.ImportFrom) and node.module:
            yield from [node.module] if node.module != "shared" else [f"shared.{alias.name}" for alias in node.names]
        elif id(node) not in left_out and isinstance(node, ast.Import):
            yield from [alias.name for alias in node.names]


def test_no_import_runs_from_a_lower_room_to_a_higher_one():
    rising, seen = [], set()
    for path in ROOT.glob("shared/**/*.py"):
        room = path.relative_to(ROOT / "shared").parts[0].removesuffix(".py")
        for module in _runtime_imports(path) if room != "__init__" else ():
            if module.startswith("shared."):
                seen |= {room, module.split(".")[1]}
                if ROOMS.index(module.split(".")[1]) > ROOMS.index(room):
                    rising.append(f"{path.relative_to(ROOT)} imports {module}")
    assert seen == set(ROOMS) and not rising


def test_shared_imports_without_what_only_one_bundle_needs():
    packages = sorted(".".join(path.parent.relative_to(ROOT).parts) for path in ROOT.glob("shared/**/__init__.py"))
    hidden = ("torch_geometric", "shap", "fire", "simplejpeg")
    code = f"import sys; sys.modules.update(dict.fromkeys({hidden}))\n"
    code += "\n".join(f"import {name}" for name in packages)
    code += "\nfrom shared.data import collate_patches"  # which bundles without patches use, too
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert packages and ended.returncode == 0, ended.stderr


def test_cross_validation_is_torch_free():
    code = "import sys; sys.modules.update(dict.fromkeys(('torch', 'monai')))\n"
    code += "import shared.data.splits, shared.apps.experiments.processes, shared.apps.experiments.folder\n"
    code += "import shared.visualize\n"
    code += "shared.visualize.roc_curve_figure, shared.visualize.calibration_figure"
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md"])
def test_paths_in_the_pages_exist(page):
    text = re.sub(r"<!--.*?-->", "", (ROOT / page).read_text(encoding="utf-8"), flags=re.DOTALL)
    links = [link.split("#")[0] for link in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in link]
    named = re.findall(r"(?<![\w/])((?:scripts|shared|tests|bundles|benchmarks)/[\w/.-]*\w)", text)
    made_later = re.compile(r"bundles/\w+/(models|eval)\b")
    wanted = {path for path in [*links, *named] if path and not made_later.match(path)}
    missing = sorted(path for path in wanted if not (ROOT / path).exists())
    assert not missing


@pytest.mark.parametrize("script", SHELL_SCRIPTS, ids=lambda path: path.name)
def test_shell_scripts_parse(script):
    subprocess.run(["bash", "-n", script], check=True)


def test_ci_runs_the_tests():
    run, workflow = ROOT / ".ci" / "run", (ROOT / ".github/workflows/tests.yml").read_text()
    assert os.access(run, os.X_OK) and "bash scripts/test.sh" in run.read_text()
    job = yaml.safe_load(workflow)["jobs"]["pinned"]
    supported = [name.split(" :: ")[-1] for name in PROJECT["classifiers"] if "Python :: " in name]
    assert job["strategy"]["matrix"]["python"] == supported and job["steps"][-1]["run"] == "bash scripts/test.sh"
    deselected = re.search(r"--deselect tests/test_repository.py::(\w+)", workflow).group(1)
    assert deselected in globals()


def test_versions_are_one():
    version = PROJECT["version"]
    of_bundles = [json.loads(path.read_text())["version"] for path in ROOT.glob("bundles/*/configs/metadata.json")]
    assert of_bundles == [version] * 3
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == version
    assert re.search(rf"^## \[?{version}\]? - \d{{4}}-\d\d-\d\d$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)


@pytest.fixture
def house(tmp_path):
    """A copy of the shell scripts with requirements that need nothing, in a folder with a blank in its name."""
    folder = tmp_path / "a house"
    (folder / "bundles" / "ircl_mvi" / "configs").mkdir(parents=True)
    (folder / "bundles" / "ircl_mvi" / "configs" / "train.json").write_text("{}")
    shutil.copytree(ROOT / "scripts", folder / "scripts", ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    for name in (path.name for path in ROOT.glob("requirements*.txt")):
        (folder / name).write_text("# nothing\n")
    return folder


def bash(script, *arguments, cwd, **environment):
    command = ["bash", script, *arguments]
    environment = {**os.environ, **OFFLINE, "PYTHON": sys.executable, **environment}
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        ('case "$2" in *print*) echo 3.9 ;; *) exit 1 ;; esac', "Python 3.11 or newer is needed, PYTHON is 3.9"),
        ('case "$2" in *print*) echo 3.99 ;; *ensurepip*) exit 1 ;; esac', "PYTHON lacks the venv module"),
        ('case "$1$2" in *print*) echo 3.99 ;; -mvenv) exit 1 ;; esac', "PYTHON -m venv cannot make"),
        ("exit 127", "PYTHON does not run"),
        (None, "no PYTHON: install Python 3.11"),
    ],
)
@pytest.mark.parametrize("script", ["test.sh", "demo.sh"])
def test_an_unfit_python_is_one_clear_line(house, tmp_path, answers, message, script):
    python = tmp_path / "python"
    if answers:
        python.write_text(f"#!/bin/sh\n{answers}\n")
        python.chmod(0o755)
    ended = bash(house / "scripts" / script, cwd=tmp_path, PYTHON=str(python))
    assert ended.returncode == 1 and ended.stderr.count("\n") == 1, ended.stderr
    assert ended.stderr.startswith(f"{script}: ") and message.replace("PYTHON", str(python)) in ended.stderr


def test_installs_once_and_says_in_one_line_when_pip_cannot(house, tmp_path):
    (house / "scripts" / "probe.sh").write_text(
        'source "${BASH_SOURCE[0]%/*}/_bootstrap.sh"\ninstall requirements.txt\npwd\n'
    )
    first, log = bash(house / "scripts" / "probe.sh", cwd=tmp_path), house / ".venv" / "install.log"
    assert first.returncode == 0 and first.stdout.splitlines()[-1] == str(house), first.stderr
    written = log.stat().st_mtime_ns
    again = bash(house / "scripts" / "probe.sh", cwd=tmp_path)
    assert again.returncode == 0 and again.stdout == f"{house}\n" and log.stat().st_mtime_ns == written

    (house / "requirements.txt").write_text("no-such-thing==1.0\n")
    for _ in range(2):  # a failed installation does not count as done
        failed = bash(house / "scripts" / "probe.sh", cwd=tmp_path)
        assert failed.returncode == 1 and failed.stderr.count("\n") == 1, failed.stderr
        assert (
            "pip cannot install requirements.txt: ERROR: No matching distribution found for no-such-thing"
            in failed.stderr
        )


@pytest.mark.parametrize(
    ("arguments", "passed"),
    [
        ((), "-m not slow"),
        (("tests/shared", "-x"), "-m not slow tests/shared -x"),
        (("--all",), "-m "),
        (("--all", "--coverage", "-x"), "-m  --cov -x"),
        (("--coverage",), "-m not slow --cov"),
    ],
)
def test_slow_tests_and_coverage_are_asked_for(house, tmp_path, arguments, passed):
    python = house / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text('#!/bin/sh\ncase "$*" in *version_info*) echo 3.11 ;; *) echo "$@" ;; esac\n')
    python.chmod(0o755)
    for path in house.glob("requirements*.txt"):
        shutil.copy(path, house / ".venv" / f".installed-{path.name}")
    ended = bash(house / "scripts" / "test.sh", *arguments, cwd=tmp_path, PYTHON=str(python))
    *checks, last = [line for line in ended.stdout.splitlines() if line.startswith("-m ")]
    assert ended.returncode == 0 and last == f"-m pytest -n 2 --dist loadfile {passed}", ended.stderr
    assert checks == [
        f"-m {check}" for check in ("ruff check .", "ruff format --check .", "mypy", "mkdocs build --strict --quiet")
    ]


def test_demo_names_the_bundles_there_are(house, tmp_path):
    ended = bash(house / "scripts" / "demo.sh", "nothing", cwd=tmp_path)
    assert ended.returncode == 1 and ended.stderr == "demo.sh: no bundle 'nothing'; there is: ircl_mvi\n"
