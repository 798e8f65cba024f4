import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from shared import locks
from shared.errors import CheckpointError
from shared.locks import LOCK_FILE, lock_folder, release_folder

ROOT = Path(__file__).parents[2]
HOLD = "import sys; from shared.locks import lock_folder; lock_folder(sys.argv[1]); print('held', flush=True); input()"


@pytest.fixture
def holder(tmp_path):
    """Another process that trains in the folder."""
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    process = subprocess.Popen(command, cwd=ROOT, **pipes)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def test_a_second_training_is_refused_by_the_firsts_process_id(holder, tmp_path):
    for _ in range(2):  # being refused does not spoil the lock
        with pytest.raises(CheckpointError, match=rf"process {holder.pid} on .*choose another --ckpt_dir"):
            lock_folder(tmp_path)


def test_a_lock_of_a_killed_process_is_taken_over_with_a_line(holder, tmp_path, caplog):
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    lock_folder(tmp_path)
    assert f"taken over from a training that was cut off (process {holder.pid} on" in caplog.text
    assert (tmp_path / LOCK_FILE).read_text().startswith(f"process {os.getpid()} on ")
    lock_folder(tmp_path)  # the same process may go on to its next stage
    release_folder(tmp_path)
    assert not (tmp_path / LOCK_FILE).exists()


def test_a_process_that_ends_leaves_no_file(holder, tmp_path, caplog):
    holder.communicate("\n")
    assert not (tmp_path / LOCK_FILE).exists()
    lock_folder(tmp_path)
    release_folder(tmp_path)
    assert "taken over" not in caplog.text


def test_a_file_system_without_locks_lets_train_and_says_so(tmp_path, caplog, monkeypatch):
    def nothing(*_):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr("fcntl.flock", nothing)
    lock_folder(tmp_path)
    release_folder(tmp_path)
    assert "cannot be locked" in caplog.text


def test_a_file_that_its_holder_removed_meanwhile_is_no_lock(tmp_path, monkeypatch):
    import fcntl

    flock, calls = fcntl.flock, []

    def removed_once(file, how):
        flock(file, how)
        calls.append(how)
        if len(calls) == 1:
            (tmp_path / LOCK_FILE).unlink()

    monkeypatch.setattr("fcntl.flock", removed_once)
    lock_folder(tmp_path)
    assert len(calls) == 2 and (tmp_path / LOCK_FILE).read_text().startswith(f"process {os.getpid()}")
    release_folder(tmp_path)
    assert tmp_path.resolve() / LOCK_FILE not in locks._held
