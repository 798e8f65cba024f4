"""Progress bars in a log file: a line a minute instead of a bar that is drawn anew."""

from __future__ import annotations

import functools
import sys
import time
from typing import Any

SECONDS = 60.0


class LogLines:
    """The file of a tqdm bar that turns its redrawings into lines on standard error.

    A line is written when one minute has passed since the last, and once more at the end of a bar that stays
    (``leave``) or has written a line before.

    Args:
        leave: whether the end of a short bar is worth a line.
    """

    def __init__(self, leave: bool):
        self.leave, self.text, self.time = leave, "", time.monotonic()

    def write(self, text: str) -> None:
        """Take what tqdm draws: the bar, or at its end white space alone."""
        if drawn := text.strip():
            self.text = drawn
        ended = text.isspace() and self.leave
        if self.text and (ended or time.monotonic() - self.time >= SECONDS):
            print(self.text, file=sys.stderr, flush=True)
            self.text, self.time, self.leave = "", time.monotonic(), True

    def flush(self) -> None:
        """Nothing is held back that should not be."""


def bars_as_lines() -> None:
    """From here on, where standard error is no terminal, tqdm's bars write :class:`LogLines`."""
    from tqdm import tqdm

    if sys.stderr.isatty() or getattr(tqdm.__init__, "writes_lines", False):
        return
    draw = tqdm.__init__

    @functools.wraps(draw)
    def write_lines(self: tqdm, *args: Any, file: Any = None, leave: bool | None = True, **keywords: Any) -> None:
        if file is None:  # a bar within a bar moves no cursor
            file, keywords = LogLines(leave is not False), {**keywords, "position": 0}
        draw(self, *args, file=file, leave=leave, **keywords)

    write_lines.writes_lines = True  # type: ignore[attr-defined]
    tqdm.__init__ = write_lines
