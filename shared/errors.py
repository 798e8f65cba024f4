"""Errors a user can act on: each message gives the rule, what arrived, whom it concerns and the remedy."""

from __future__ import annotations

import sys
from types import TracebackType


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


def plain_errors() -> None:
    """From here on, an error of this module ends the program with its message alone.

    MONAI wraps what a config's component raises into several errors of its own, whose tracebacks bury the message.
    """

    def hook(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
        cause: BaseException | None = error
        while cause is not None:
            if isinstance(cause, (DataError, CheckpointError)):
                print(f"\nError: {cause}", file=sys.stderr)
                return
            cause = cause.__cause__
        sys.__excepthook__(kind, error, traceback)

    sys.excepthook = hook
