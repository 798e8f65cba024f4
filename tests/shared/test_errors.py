import sys

import pytest
from monai.bundle import ConfigParser

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


def shown_by(hook, settings, capsys):
    """What a user sees of a config whose component refuses its settings."""
    parser = ConfigParser({"part": settings})
    with pytest.raises(RuntimeError) as caught:
        parser.get_parsed_content("part")
    hook(caught.value)
    return capsys.readouterr().err


def test_a_setting_that_is_refused_is_named_with_its_component(hook, capsys):
    views = {"_target_": "shared.engines.DihedralInferer", "views": 9}
    message = "A square has 8 flips and right-angle rotations: views must be 1 to 8, got 9."
    assert shown_by(hook, views, capsys) == f"\nError: shared.engines.DihedralInferer: {message}\n"
    # what others refuse, and what a component stumbles over, keeps its traceback
    other = {"_target_": "torch.nn.Dropout", "p": 2.0}
    assert "Traceback" in shown_by(hook, other, capsys)
    assert "TypeError" in shown_by(hook, {**views, "view": 1}, capsys)


def test_any_other_error_keeps_its_traceback(hook, capsys):
    try:
        raise ZeroDivisionError("in the program")
    except ZeroDivisionError as error:
        hook(error)
    shown = capsys.readouterr().err
    assert "Traceback" in shown and "ZeroDivisionError: in the program" in shown


def test_ctrl_c_ends_with_what_goes_on(hook, capsys):
    hook(KeyboardInterrupt())
    shown = capsys.readouterr().err
    assert "--resume true" in shown and "Traceback" not in shown
