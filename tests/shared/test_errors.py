import sys

import pytest

from shared.errors import CheckpointError, DataError, plain_errors


@pytest.fixture
def hook(monkeypatch):
    monkeypatch.setattr(sys, "excepthook", sys.__excepthook__)
    plain_errors()
    return lambda error: sys.excepthook(type(error), error, error.__traceback__)


def test_several_problems_are_listed_and_one_is_itself():
    assert str(DataError(["P1: mask is empty", "P2: label is missing"])).splitlines() == [
        "2 problems:",
        "- P1: mask is empty",
        "- P2: label is missing",
    ]
    assert str(DataError(["P1: mask is empty"])) == str(DataError("P1: mask is empty")) == "P1: mask is empty"
    assert DataError("P1: mask is empty").problems == ["P1: mask is empty"]


@pytest.mark.parametrize("kind", [DataError, CheckpointError])
def test_a_users_error_is_shown_without_what_monai_wraps_around_it(hook, kind, capsys):
    try:
        try:
            try:
                raise kind("P1: mask is empty")
            except Exception as error:
                raise RuntimeError("Failed to instantiate 'train#dataset'") from error
        except Exception as error:
            raise RuntimeError("Failed to instantiate 'trainer'") from error
    except Exception as error:
        hook(error)
    assert capsys.readouterr().err == "\nError: P1: mask is empty\n"


def test_any_other_error_keeps_its_traceback(hook, capsys):
    try:
        raise ZeroDivisionError("in the program")
    except ZeroDivisionError as error:
        hook(error)
    shown = capsys.readouterr().err
    assert "Traceback" in shown and "ZeroDivisionError: in the program" in shown
