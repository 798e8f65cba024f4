"""Runs the commands of many folds or other runs, some at a time, under one progress bar; leaves no process behind."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol

from shared.apps import ROOT
from shared.errors import CheckpointError, DataError, describe

RUN_BUNDLE = (sys.executable, "-m", "monai.bundle", "run")
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
_LOG_TAIL = 15
SECONDS = re.compile(r"^# ended after ([\d.]+) s\n\Z", re.MULTILINE)
"""The last line of the log of a command that ended well."""
_CHAINED = "\nThe above exception was the direct cause of the following exception:\n"


class Job(Protocol):
    """What is run: a fold, or one training among others."""

    name: str
    folder: Path

    def rows(self) -> list[dict]:
        """What it leaves; a :class:`DataError` while that is not complete."""


def bundle_arguments(
    configs: Sequence[Path], values: Mapping[str, Any], *, cwd: Path, run_id: str = "run"
) -> list[str]:
    """Arguments of ``python -m monai.bundle run``: these configs merged, these keys overridden.

    Example:
        >>> bundle_arguments([Path("/b/configs/train.json")], {"fold": -1}, cwd=Path("/b"), run_id="train_run")
        ['--run_id', 'train_run', '--config_file', "['configs/train.json']", '--fold=-1']
    """
    files = [str(path.relative_to(cwd) if path.is_relative_to(cwd) else path) for path in configs]
    options = [f"--{key}={value}" for key, value in values.items()]  # with "=": Fire reads a lone -1 as an option
    return [*([] if run_id == "run" else ["--run_id", run_id]), "--config_file", repr(files), *options]


def working_folder(bundle: Path) -> Path:
    """Where a bundle's commands find ``shared``: the root, or the folder of an unpacked bundle."""
    return ROOT if bundle.is_relative_to(ROOT / "bundles") else bundle


def is_complete(job: Job) -> bool:
    """Whether a job need not run: its rows are there."""
    try:
        return bool(job.rows())
    except DataError:
        return False


def run_environment(threads: int) -> dict[str, str]:
    """The environment of a run that may use so many CPU threads."""
    own = {"PYTHONUNBUFFERED": "1", **dict.fromkeys(_THREADS, str(threads))}
    return {"OMP_WAIT_POLICY": "PASSIVE", **os.environ, **own}


class FoldError(RuntimeError):
    """A command of a fold failed; the message ends with the end of its log."""


@contextmanager
def resumable(name: str) -> Iterator[None]:
    """An experiment that Ctrl-C or SIGTERM ends with status 130, and wrong data, files or runs with their message.

    Args:
        name: of the script, before the message.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        # also where a shell started this in the background, which leaves SIGINT ignored
        signal.signal(number, signal.default_int_handler)
    try:
        yield
    except KeyboardInterrupt:
        print("\nStopped. The same command goes on where this one ended.", file=sys.stderr)
        raise SystemExit(130) from None
    except BrokenPipeError:
        raise  # nobody reads any more: run_main ends the script
    except (DataError, CheckpointError, FoldError, OSError) as error:
        raise SystemExit(f"{name}: {describe(error)}") from None


class FoldRun:
    """The commands of one fold, one after the other, each in a process group of its own with its own log.

    Args:
        fold: the fold; an incomplete predictions.csv in it is removed.
        commands: name and arguments of each, in order; after the last the fold's rows are complete.
        cwd: where they run.
        environment: their environment.
        ready: asked before the first command until it returns true; it may prepare what the commands need.
    """

    def __init__(
        self,
        fold: Job,
        commands: Iterable[tuple[str, Sequence[str]]],
        *,
        cwd: Path,
        environment: Mapping[str, str] | None = None,
        ready: Callable[[], bool] = lambda: True,
    ):
        self.fold, self.cwd, self.environment, self.ready = fold, cwd, environment, ready
        self.waiting = deque(commands)
        self.step, self.gpu = "", ""
        self.process: subprocess.Popen | None = None

    def poll(self) -> bool:
        """Start the next command when one has ended; True when all have and the fold's rows are complete."""
        if self.process is None and not self.ready():
            return False
        code = 0 if self.process is None else self.process.poll()
        if code is None:
            return False
        if code != 0:
            raise FoldError(self._message(f"ended with exit status {code}"))
        if self.process is not None:
            with self._log.open("a", encoding="utf-8") as log:
                log.write(f"\n# ended after {time.monotonic() - self._started:.1f} s\n")
        if self.waiting:
            self._start()
            return False
        try:
            self.fold.rows()
        except DataError as error:
            raise FoldError(self._message(f"ended well, but {error}")) from error
        return True

    def take_gpu(self, gpus: Sequence[str], others: Sequence[FoldRun]) -> None:
        """Let its commands see one GPU alone: the one that the fewest of the others use."""
        if gpus:
            used = [run.gpu for run in others]
            self.gpu = min(gpus, key=used.count)
            self.environment = {**(self.environment or os.environ), "CUDA_VISIBLE_DEVICES": self.gpu}

    def running(self) -> bool:
        """Say whether a command of it runs now."""
        return self.process is not None and self.process.poll() is None

    def signal(self, number: int) -> None:
        """Send a signal to the running command and all it started."""
        if self.running():
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, number)

    def _start(self) -> None:
        if self.process is None:
            (self.fold.folder / "predictions.csv").unlink(missing_ok=True)
        self.step, command = self.waiting.popleft()
        self._log, self._started = self.fold.folder / f"{self.step}.log", time.monotonic()
        with self._log.open("w", encoding="utf-8") as log:
            log.write(f"$ {shlex.join(command)}\n")
            log.flush()
            self.process = subprocess.Popen(
                list(command),
                cwd=self.cwd,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C reaches this script alone, which then ends its children in order
            )

    def _message(self, what: str) -> str:
        # a progress bar rewrites its line: its last state is enough
        text = self._log.read_text(encoding="utf-8", errors="replace").replace("\r", "\n")
        text = text.split(_CHAINED)[0]  # MONAI wraps the cause in pages of its own
        tail = [f"    {line}" for line in text.splitlines() if line.strip()][-_LOG_TAIL:]
        return "\n".join([f"{self.fold.name}: {self.step} {what}; the end of {self._log}:", *tail])


def run_folds(
    runs: Iterator[FoldRun],
    *,
    total: int,
    done: int = 0,
    jobs: int = 1,
    gpus: Sequence[str] = (),
    name: str = "",
    unit: str = "fold",
) -> None:
    """Run folds, ``jobs`` at a time; a failure or Ctrl-C ends every child, then goes on up.

    Args:
        runs: the folds that are not done, made as they are needed.
        total: folds in all, for the bar.
        done: folds that were done before.
        jobs: how many at a time.
        gpus: numbers, of which each run sees the one with the fewest runs; none: as the environment says.
        name: what stands before the bar.
        unit: what the bar counts.

    Raises:
        FoldError: the first command that failed.
    """
    from tqdm import tqdm

    active: list[FoldRun] = []
    terminal = sys.stderr.isatty()
    with tqdm(total=total, initial=done, desc=name, unit=unit, dynamic_ncols=True) as bar:
        try:
            exhausted, shown = False, 0.0
            while active or not exhausted:
                while len(active) < jobs and not exhausted:
                    run = next(runs, None)
                    exhausted = run is None
                    if run is not None:
                        run.take_gpu(gpus, active)
                        active.append(run)
                finished = [run for run in active if run.poll()]
                active = [run for run in active if run not in finished]
                if finished:
                    bar.update(len(finished))
                if terminal and time.monotonic() - shown > 1:  # the clock goes on between folds
                    bar.set_postfix_str(", ".join(f"{run.fold.name} {run.step}" for run in active))
                    shown = time.monotonic()
                time.sleep(0.05)
        finally:
            stop(active)


def stop(runs: Sequence[FoldRun], *, patience: float = 10.0) -> None:
    """End what runs: first as Ctrl-C does, so that files are left whole, then harder."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
        for run in runs:
            run.signal(number)
        end = time.monotonic() + patience
        # asked for a second time: no more patience
        with suppress(KeyboardInterrupt):
            while any(run.running() for run in runs) and time.monotonic() < end:
                time.sleep(0.05)
        if not any(run.running() for run in runs):
            return
