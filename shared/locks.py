"""One process at a time in a folder, by a lock that ends with its process, however that ends."""

from __future__ import annotations

import atexit
import logging
import os
import socket
from contextlib import suppress
from pathlib import Path
from typing import IO

from shared.errors import CheckpointError
from shared.io import check_folder

LOCK_FILE = ".lock"

logger = logging.getLogger(__name__)
_held: dict[Path, IO[str]] = {}


def lock_folder(folder: str | os.PathLike) -> None:
    """Keep other processes from training in ``folder`` until this one gives it back or ends; twice does nothing.

    The file names the process that holds it. Of a process that was killed the name stays, the lock does not: the next
    training takes the folder over and says so. On a file system without locks nothing is kept, and a line says so.

    Raises:
        CheckpointError: another process holds it, with its id and host.
        DataError: it cannot be written to.
    """
    path = Path(folder).resolve() / LOCK_FILE
    if path in _held:
        return
    check_folder(folder)
    path.parent.mkdir(parents=True, exist_ok=True)
    file = _locked(path, folder)
    file.seek(0)
    if before := file.read().strip():
        logger.warning("%s: taken over from a training that was cut off (%s).", path, before)
    file.truncate(0)
    file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
    file.flush()
    _held[path] = file
    atexit.register(release_folder, folder)


def _locked(path: Path, folder: str | os.PathLike) -> IO[str]:
    """The lock's file, locked."""
    import fcntl

    while True:
        file = path.open("a+", encoding="utf-8")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            holder = file.read().strip() or "an unknown process"
            file.close()
            raise CheckpointError(
                f"Another training writes to {folder} now ({holder}): wait until it ends, stop it, or choose another "
                "--ckpt_dir."
            ) from error
        except OSError as error:
            logger.warning("%s cannot be locked (%s): do not train twice into it at the same time.", folder, error)
            return file
        with suppress(FileNotFoundError):
            if os.fstat(file.fileno()).st_ino == path.stat().st_ino:
                return file
        file.close()  # it was removed by whoever held it, between opening and locking


def release_folder(folder: str | os.PathLike) -> None:
    """Give the lock back; a folder that is not held is left as it is."""
    path = Path(folder).resolve() / LOCK_FILE
    if (file := _held.pop(path, None)) is not None:
        file.truncate(0)
        path.unlink(missing_ok=True)
        file.close()
