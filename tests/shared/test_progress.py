import sys

import pytest
from tqdm import tqdm

from shared import progress


@pytest.fixture
def clock(monkeypatch):
    """Standard error is no terminal, and the time stands at ``clock[0]``."""
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(tqdm, "__init__", getattr(tqdm.__init__, "__wrapped__", tqdm.__init__))
    monkeypatch.setattr(sys.stderr, "isatty", lambda: False, raising=False)
    progress.bars_as_lines()
    progress.bars_as_lines()  # twice is once
    return now


def _run(clock, seconds, **options):
    """A bar of ten steps, which take ``seconds`` each."""
    with tqdm(range(10), desc="stage", mininterval=0, miniters=1, **options) as bar:
        for step in bar:
            clock[0] += seconds
            bar.set_postfix(step=step)


def _lines(capsys):
    text = capsys.readouterr().err
    assert "\r" not in text and text.endswith("\n") and "\n\n" not in text
    return text.splitlines()


def test_a_short_bar_is_its_last_line(clock, capsys):
    _run(clock, 1)
    (line,) = _lines(capsys)
    assert line.startswith("stage: 100%") and "10/10" in line and "step=9" in line


def test_a_long_bar_writes_a_line_a_minute(clock, capsys):
    _run(clock, 30)
    lines = _lines(capsys)
    assert 5 <= len(lines) <= 6 and "10/10" in lines[-1]


def test_a_bar_within_a_bar_writes_the_outer_alone(clock, capsys):
    for _ in tqdm(range(2), desc="outer"):
        _run(clock, 1, leave=False)
    (line,) = _lines(capsys)
    assert line.startswith("outer: 100%")


def test_a_short_bar_that_does_not_stay_writes_nothing(clock, capsys):
    _run(clock, 1, leave=False)
    assert not capsys.readouterr().err


def test_a_terminal_keeps_its_bar(monkeypatch):
    monkeypatch.setattr(tqdm, "__init__", getattr(tqdm.__init__, "__wrapped__", tqdm.__init__))
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    progress.bars_as_lines()
    assert not hasattr(tqdm.__init__, "writes_lines")


def test_another_file_keeps_the_bar(clock, capsys, tmp_path):
    with (tmp_path / "log").open("w") as file:
        _run(clock, 1, file=file)
    assert not capsys.readouterr().err and b"\r" in (tmp_path / "log").read_bytes()
