"""Errors a user can act on: each message gives the rule, what arrived, whom it concerns and the remedy."""

from __future__ import annotations

import errno
import os
import re
import sys
from collections.abc import Callable
from linecache import getline
from traceback import walk_tb
from types import TracebackType
from typing import Any, NoReturn

from shared.progress import bars_as_lines

_ROOM = "free some space, or choose another folder"
_PLACE = "a file stands where a folder is needed: choose another folder, or move the file away"
_RIGHTS = "you may not use it: change its permissions, or choose another"
_REMEDIES = {
    errno.ENOSPC: _ROOM,
    errno.EDQUOT: _ROOM,
    errno.EROFS: "choose another folder",
    errno.EEXIST: _PLACE,
    errno.ENOTDIR: _PLACE,
    errno.EACCES: _RIGHTS,
    errno.EPERM: _RIGHTS,
}


class DataError(ValueError):
    """A case, datalist or setting breaks a rule of the data contract.

    Args:
        problems: one message, or all the problems found (reported together, one a line).

    Example:
        >>> print(DataError(["P001: mask is empty", "P002: label is missing"]))
        2 problems:
        - P001: mask is empty
        - P002: label is missing
    """

    def __init__(self, problems: str | list[str]):
        self.problems = [problems] if isinstance(problems, str) else list(problems)
        lines = "\n".join(f"- {problem}" for problem in self.problems)
        super().__init__(self.problems[0] if len(self.problems) == 1 else f"{len(self.problems)} problems:\n{lines}")


class CheckpointError(RuntimeError):
    """A checkpoint cannot be read, or does not fit the network it is loaded into."""


def describe(error: BaseException) -> str:
    """An error as one line for who runs a script: of a file that cannot be used, the file first, then what to do.

    Example:
        >>> describe(OSError(28, "No space left on device", "metrics.json"))
        'metrics.json: No space left on device; free some space, or choose another folder'
    """
    if not isinstance(error, OSError) or not error.strerror:
        return str(error)
    remedy = _REMEDIES.get(error.errno or 0)
    where = "" if error.filename is None else f"{error.filename}: "
    return f"{where}{error.strerror}" + (f"; {remedy}" if remedy else "")


def run_main(main: Callable[[], Any]) -> NoReturn:
    """Run a script's ``main`` and exit with what it returns; what a user or a file caused ends it with a line.

    Where nobody reads the output any more (``| head``) it ends with 141 and no word, as a shell's own commands do.
    """
    bars_as_lines()
    try:
        try:
            status = main()
        except SystemExit as end:
            status = end.code
        except KeyboardInterrupt:
            status = 130
        except BrokenPipeError:
            raise
        except (DataError, CheckpointError, OSError) as error:
            status = f"error: {describe(error)}"
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes it once more
        status = 141
    sys.exit(status)


def plain_errors() -> None:
    """From here on, an error of this module ends the program with its message alone.

    So do a file that cannot be used, a full disk, and a setting that this repository's code refuses (a ``ValueError``
    that it raises), named with component or module.
    MONAI wraps what a config's component raises into several errors of its own, whose tracebacks bury the message.
    Ctrl-C ends it with a line, too.
    """

    def hook(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
        cause: BaseException | None = error
        component = ""
        if isinstance(error, KeyboardInterrupt):
            print("\nStopped. A training goes on after its last saved epoch with --resume true.", file=sys.stderr)
            return
        while cause is not None:
            if isinstance(cause, (DataError, CheckpointError)) or (isinstance(cause, OSError) and cause.strerror):
                print(f"\nError: {describe(cause)}", file=sys.stderr)
                return
            where = component or _refused_in(cause.__traceback__)
            if type(cause) is ValueError and where.startswith("shared."):
                print(f"\nError: {where}: {cause}", file=sys.stderr)
                return
            found = re.match(r"Failed to instantiate component '(shared\.[\w.]+)'", str(cause))
            component = found[1] if found else ""
            cause = cause.__cause__
        sys.__excepthook__(kind, error, traceback)

    sys.excepthook = hook


def _refused_in(traceback: TracebackType | None) -> str:
    """Name of the module whose ``raise`` it was; empty where something else failed in it."""
    name, line = "", ""
    for frame, number in walk_tb(traceback):
        name, line = frame.f_globals.get("__name__", ""), getline(frame.f_code.co_filename, number)
    return name if line.lstrip().startswith("raise ") else ""
