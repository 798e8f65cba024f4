"""Plant small errors one by one in a copy of the repository, and see whether the tests that mirror the file fail.

    bash scripts/test.sh --mutants                  # all of tests/mutants/*.toml
    bash scripts/test.sh --mutants losses configs   # those of these areas (files), or of these names
    bash scripts/test.sh --mutants --jobs 2

An error is an entry of a TOML file: ``[name]``, ``file``, ``old`` (text that occurs in it exactly once), ``new``,
``why`` and, where the mirrored tests are not the ones that should notice, ``tests``. The exit status is 1 if fewer than
95 % are noticed or an entry does not apply.
"""

from __future__ import annotations

import argparse
import ast
import importlib
import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import wait
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FOLDER = Path(__file__).resolve().parent
LEAST = 0.95
LIMIT = 900.0  # seconds for the tests of one error: those that never end have noticed it, too
# what most tests import; a process that is forked with these loaded starts at once
WARM = (
    "torch",
    "monai.bundle",
    "monai.engines",
    "ignite.engine",
    "sklearn.linear_model",
    "matplotlib.pyplot",
    "pytest",
)
NO_TESTS = (4, 5)  # exit status of pytest: wrong usage, no test found


@dataclass(frozen=True)
class Mutant:
    """One small error: ``old`` becomes ``new`` in ``file``."""

    name: str
    area: str
    file: str
    old: str
    new: str
    why: str
    tests: tuple[str, ...]

    def mutated(self, root: Path) -> str:
        """The file's text with the error in it; ValueError where it does not apply or is no longer Python or JSON."""
        path = root / self.file
        text = path.read_text(encoding="utf-8") if path.is_file() else ""
        if (found := text.count(self.old)) != 1:
            raise ValueError(f"{self.file} has its `old` {found} times, once is needed: {self.old!r}")
        changed = text.replace(self.old, self.new)
        try:
            _parse(changed, path.suffix)
        except ValueError as error:  # SyntaxError and JSONDecodeError are such
            raise ValueError(f"{self.file} cannot be parsed with it: {error}") from error
        return changed


def _parse(text: str, suffix: str) -> None:
    if suffix == ".json":
        json.loads(text)
        return
    try:
        ast.parse(text)
    except SyntaxError as error:
        raise ValueError(str(error)) from error


def mirrored(file: str, root: Path = ROOT) -> tuple[str, ...]:
    """Tests of a file: those of its own module, or of its folder; of a config those of configs and of its bundle."""
    path = Path(file)
    if path.parts[0] == "bundles":
        bundle = path.parts[1]
        left_out = f"test_left_out.py::test_every_checkpoint_of_every_stage_is_bitwise_the_same[{bundle}]"
        own = ("test_papers_numbers.py", f"test_parts_{bundle}.py", left_out, f"test_{bundle}.py")
        return tuple(f"tests/bundles/{test}" for test in own)
    folder = Path("tests") / path.parent
    own = folder / f"test_{path.stem}.py"
    return (str(own if (root / own).is_file() else folder),)


def read_mutants(names: Sequence[str] = (), root: Path = ROOT) -> list[Mutant]:
    """Entries of all TOML files, or those whose name or area is asked for."""
    found: list[Mutant] = []
    for path in sorted(FOLDER.glob("*.toml")):
        for name, entry in tomllib.loads(path.read_text(encoding="utf-8")).items():
            tests = entry.pop("tests", None) or mirrored(entry["file"], root)
            found.append(Mutant(name, path.stem, **entry, tests=tuple(tests)))
    unknown = [name for name in names if not any(name in (mutant.name, mutant.area) for mutant in found)]
    if unknown:
        raise SystemExit(f"mutants: there is no area or error {', '.join(unknown)}")
    return [mutant for mutant in found if not names or {mutant.name, mutant.area} & set(names)]


def copy_repository(target: Path) -> Path:
    """The working tree without what git ignores, and a link to the environment."""
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    for name in subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0"):
        source = ROOT / name
        if name and source.is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target / name)
    (target / ".venv").unlink(missing_ok=True)
    (target / ".venv").symlink_to(Path(sys.prefix))
    return target


def run_tests(copy: Path, tests: tuple[str, ...], log: Path) -> None:
    """The body of a forked process: pytest in the copy, its exit status as the process's."""
    os.chdir(copy)
    os.setsid()
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(output, 1), os.dup2(output, 2)
    import pytest

    options = ["-x", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "--no-header", "-c", "pyproject.toml"]
    there = [test for test in tests if (copy / test.split("::")[0]).exists()]
    status = pytest.main([*options, *there]) if there else NO_TESTS[0]
    sys.stdout.flush(), sys.stderr.flush()
    os._exit(int(status))


class Trial:
    """The tests of one error, running in a process of their own."""

    def __init__(self, mutant: Mutant | None, tests: tuple[str, ...], copy: Path):
        self.mutant, self.copy, self.begun = mutant, copy, time.monotonic()
        self.log = copy.with_suffix(".log")
        if mutant is not None:
            self.path = copy / mutant.file
            self.kept = self.path.read_bytes()
            self.path.write_text(mutant.mutated(copy), encoding="utf-8")
        self.process = multiprocessing.get_context("fork").Process(target=run_tests, args=(copy, tests, self.log))
        self.process.start()

    def ended(self) -> int | None:
        """pytest's exit status, 1 where the time is over; None while the tests run. The file is as it was then."""
        late = time.monotonic() - self.begun > LIMIT
        if self.process.is_alive() and not late:
            return None
        if self.process.is_alive():
            os.killpg(self.process.pid, 9)
        self.process.join()
        if self.mutant is not None:
            self.path.write_bytes(self.kept)
        return 1 if late else self.process.exitcode


def main() -> int:
    """Plant what is asked for and print which errors the tests have noticed."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("names", nargs="*", help="areas (files of tests/mutants) or single errors; default: all")
    parser.add_argument("--jobs", type=int, default=1, help="how many at a time (1)")
    parser.add_argument("--no-check", action="store_true", help="do not run the tests without an error first")
    parser.add_argument("--show", action="store_true", help="print the end of what the tests say")
    options = parser.parse_args()
    mutants = read_mutants(options.names)
    unfit = []
    for mutant in mutants:
        try:
            mutant.mutated(ROOT)
        except ValueError as error:
            unfit.append(mutant)
            print(f"does not apply: {mutant.area}/{mutant.name}: {error}")
    waiting = [mutant for mutant in mutants if mutant not in unfit]

    # compiled files are told apart by size and second only: an error may have both of what it stands for
    os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
    sys.dont_write_bytecode = True
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("MPLBACKEND", "Agg")
    for name in WARM:
        importlib.import_module(name)
    with tempfile.TemporaryDirectory(prefix="mutants_") as folder:
        copies = [copy_repository(Path(folder, f"copy{number}")) for number in range(options.jobs)]
        # first the tests without an error: they must pass
        killed, survived = _try([None] * (not options.no_check) + waiting, copies, options.show)
    print(f"{len(killed)} of {len(mutants)} errors noticed, {len(survived)} not, {len(unfit)} do not apply")
    for mutant in survived:
        print(f"  survived: {mutant.area}/{mutant.name}: {mutant.why} ({mutant.file}; {' '.join(mutant.tests)})")
    return int(bool(unfit) or len(killed) < LEAST * len(mutants))


def _try(todo: list[Mutant | None], copies: list[Path], show: bool) -> tuple[list[Mutant], list[Mutant]]:
    from tqdm import tqdm

    mutants = [mutant for mutant in todo if mutant is not None]
    every = tuple(dict.fromkeys(test for mutant in mutants for test in mutant.tests))
    killed, survived, running = [], [], []
    with tqdm(total=len(mutants), unit="error", dynamic_ncols=True) as bar:
        while todo or running:
            sound = not any(trial.mutant is None for trial in running)
            while todo and copies and sound:
                mutant = todo.pop(0)
                running.append(Trial(mutant, every if mutant is None else mutant.tests, copies.pop()))
                sound = mutant is not None
            wait([trial.process.sentinel for trial in running], timeout=1.0)
            for trial in list(running):
                if (status := trial.ended()) is None:
                    continue
                running.remove(trial)
                copies.append(trial.copy)
                tail = "\n".join(trial.log.read_text(encoding="utf-8", errors="replace").splitlines()[-25:])
                if trial.mutant is None and status != 0:
                    raise SystemExit(f"mutants: the tests do not pass without an error:\n{tail}")
                if trial.mutant is None:
                    continue
                noticed = status not in (0, *NO_TESTS)
                (killed if noticed else survived).append(trial.mutant)
                word = "killed" if noticed else "SURVIVED"
                seconds = time.monotonic() - trial.begun
                bar.write(f"{word:8} {trial.mutant.area}/{trial.mutant.name} ({seconds:.0f} s)")
                if show:
                    bar.write(tail)
                bar.update()
    return killed, survived


if __name__ == "__main__":
    sys.exit(main())
