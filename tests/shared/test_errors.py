import subprocess
import sys
from pathlib import Path

import pytest
from monai.bundle import ConfigParser

from shared.apps.experiments.processes import resumable
from shared.apps.preparation.files import run_script
from shared.errors import CheckpointError, DataError, plain_errors, run_main

ROOM = "free some space, or choose another folder"
RIGHTS = "you may not use it: change its permissions, or choose another"
PLACE = "a file stands where a folder is needed: choose another folder, or move the file away"


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


@pytest.mark.parametrize(
    ("cause", "message"),
    [
        (OSError(28, "No space left on device"), f"No space left on device; {ROOM}"),
        (NotADirectoryError(20, "Not a directory", "eval/x"), f"eval/x: Not a directory; {PLACE}"),
        (PermissionError(13, "Permission denied", "x"), f"x: Permission denied; {RIGHTS}"),
    ],
)
def test_a_full_disk_or_a_file_that_cannot_be_used_is_a_line(hook, cause, message, capsys):
    wrapped = RuntimeError("Failed to evaluate 'evaluator.run()'")
    wrapped.__cause__ = cause
    hook(wrapped)
    assert capsys.readouterr().err == f"\nError: {message}\n"
    hook(OSError("of a library, with no number"))
    assert "OSError: of a library" in capsys.readouterr().err and cause.strerror


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


def test_a_setting_that_an_expression_hands_on_is_refused_by_the_modules_name(hook, capsys):
    made = {"_target_": "shared.data.MixupTable", "_mode_": "callable"}
    shown = []
    for ratio in ("-1", "'a'", "float('a')"):
        parser = ConfigParser({"made": made, "part": f"$@made(4, ratio={ratio})"})
        with pytest.raises(RuntimeError) as caught:
            parser.get_parsed_content("part")
        hook(caught.value)
        shown.append(capsys.readouterr().err)
    assert shown[0] == "\nError: shared.data.mixup: The mixup ratio must be 0 (none) or more, got -1.\n"
    # what fails without being refused keeps its traceback
    assert "Traceback" in shown[1] and "Traceback" in shown[2]


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


SCRIPT = """
from shared.apps.preparation.files import run_script
from shared.errors import run_main
from shared.apps.experiments.processes import resumable

def few():
    print("a line that is still in the buffer at the end")

def many():
    for number in range(10**5):
        print(number)

def prepared():
    return run_script(many)

def resumed():
    with resumable("name"):
        many()

run_main({})
"""


@pytest.mark.parametrize("main", ["few", "many", "prepared", "resumed"])
def test_a_script_whose_reader_went_away_ends_without_a_word(main):
    command = [sys.executable, "-c", SCRIPT.format(main)]
    running = subprocess.Popen(
        command, cwd=Path(__file__).parents[2], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    running.stdout.close()  # as `| head -0` does
    assert (running.stderr.read(), running.wait()) == (b"", 141)


def raising(error):
    def main():
        raise error

    return main


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (
            FileNotFoundError(2, "No such file or directory", "labels.csv"),
            "error: labels.csv: No such file or directory",
        ),
        (DataError("P1: mask is empty"), "error: P1: mask is empty"),
        (CheckpointError("model.pt is no checkpoint"), "error: model.pt is no checkpoint"),
        (SystemExit("name: P1"), "name: P1"),
        (SystemExit(2), 2),
        (KeyboardInterrupt(), 130),
    ],
)
def test_what_a_user_caused_ends_a_script_with_a_line(error, status):
    with pytest.raises(SystemExit) as end:
        run_main(raising(error))
    assert end.value.code == status
    with pytest.raises(SystemExit) as end:
        run_main(lambda: 3)
    assert end.value.code == 3
    with pytest.raises(ZeroDivisionError):  # what nobody caused but the code keeps its traceback
        run_main(lambda: 1 // 0)


def test_a_file_that_may_not_be_read_is_a_line_in_either_kind_of_script(capsys):
    error = PermissionError(13, "Permission denied", "labels.csv")
    message = f"labels.csv: Permission denied; {RIGHTS}"
    assert run_script(raising(error)) == 2 and capsys.readouterr().err == f"error: {message}\n"
    with pytest.raises(SystemExit, match=rf"^name: {message}$"), resumable("name"):
        raise error


@pytest.mark.parametrize("script", sorted(Path(__file__).parents[2].glob("scripts/[a-z]*.py")), ids=lambda p: p.stem)
def test_every_script_ends_so(script):
    assert script.read_text().endswith("    run_main(main)\n")
