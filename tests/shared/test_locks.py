import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

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
