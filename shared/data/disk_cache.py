"""What was cut or decoded from files, kept on disk by content: no training, fold or evaluation does it again."""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import os
import shutil
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from shared.data.cache_entry import Decoder, Encoder
from shared.data.fingerprint import fingerprint, names_file
from shared.data.pixels import Pixels
from shared.digests import Digests, sha256
from shared.errors import DataError
from shared.io import atomic_path

logger = logging.getLogger(__name__)

FORMAT = 1  # of the entries
ENDING, PIXELS = ".npz", ".pixels"
MEMORY_GB = 2.0
KEPT_FREE = 1 << 30  # bytes of the disk that checkpoints and predictions may need
YOUNG = 1.0  # seconds in which a file can change twice under one time stamp
LEFTOVER = 3600  # seconds after which a temporary file belongs to a process that was killed
LIBRARIES = ("monai", "nibabel", "numpy", "pillow", "scipy", "torch")
# nothing that is cut or decoded depends on these: transforms do not see them, the current datalist's are joined later
OF_THE_DATALIST = ("label", "soft_label", "covariates", "fold", "group", "part", "votes")


class DiskCache:
    """Results of deterministic reading, kept in a folder by the SHA-256 of the files, the settings and the code.

    An entry is NumPy's ``.npz``: arrays and one JSON text, no pickle; checksums find damage, and a damaged entry is
    made anew. The decoded patches of a datalist are a file beside it, which is read patch by patch
    (:class:`shared.data.pixels.Pixels`). An entry is written whole or not at all, so several processes can share the
    folder, and deleting any of it at any time is safe. Warnings that were logged when an entry was made are logged
    again when it is read.

    MONAI's ``PersistentDataset`` goes by the paths of the files, not by their content, has no limit, and fails at a
    truncated entry; ``joblib.Memory`` reads pickles.

    Args:
        folder: where; None or False: nothing is kept. Beside a list of files: beside the list. A folder that cannot be
            written to is only read, and one line says so.
        limit_gb: the entries used longest ago are removed beyond it.
        memory_gb: decoded patches beyond it are never held in memory: without a folder (or without room in it), they
            are in a temporary file (``TMPDIR``).

    Attributes:
        hits: entries read; made: entries computed.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> _ = (folder / "a.txt").write_text("12")
        >>> case = {"image": str(folder / "a.txt"), "fold": 3}
        >>> cache = DiskCache(folder / ".cache")
        >>> [cache(case, "settings", lambda c: {**c, "sum": np.arange(3)})["fold"] for _ in range(2)]
        [3, 3]
        >>> cache.hits, cache.made
        (1, 1)
    """

    def __init__(
        self, folder: str | os.PathLike | bool | None = None, *, limit_gb: float = 10.0, memory_gb: float = MEMORY_GB
    ):
        self.folder = None if folder is None or folder is False else Path(folder)
        if self.folder is not None and self.folder.parent.is_file():
            self.folder = self.folder.parent.parent / self.folder.name
        self.limit, self.memory = int(limit_gb * 1e9), int(memory_gb * 1e9)
        self.hits = self.made = 0
        self.digests = Digests(self.folder)
        self.writable = self.folder is not None
        self._started, self._written, self._lock = time.time(), 0, threading.Lock()
        self._told: set[str] = set()
        self._held: dict[tuple[str, bool, int | None], tuple[str | None, Pixels, int]] = {}

    def __call__(
        self,
        entry: Mapping[str, Any],
        settings: str,
        compute: Callable[[dict[str, Any]], dict[str, Any]],
        constants: Sequence[Any] = (),
    ) -> dict[str, Any]:
        """The result for one entry of a datalist: read, or computed and kept.

        Args:
            entry: of a datalist; every text in it that is a file's path counts by the file's content.
            settings: of the reading, such as :func:`shared.data.fingerprint.fingerprint` gives for transforms.
            compute: makes the result; its argument is the entry without what only the datalist says (label, fold).
            constants: tensors that results share and ``settings`` tell; entries only refer to them.
        """
        if self.folder is None:
            return compute(dict(entry))
        seen = {key: value for key, value in entry.items() if key not in OF_THE_DATALIST}
        joined = {key: value for key, value in entry.items() if key in OF_THE_DATALIST}
        paths = list(dict.fromkeys(_texts(seen)))
        key, files = self._key(seen, paths, settings)
        if key is None:
            result = compute(seen)
            self._discard(result)
            return {**result, **joined}
        path = self.folder / key[:2] / (key + ENDING)
        if (found := self._read(path, paths, constants)) is not None:
            return {**found, **joined}
        with _recorded() as lines:
            result = compute(seen)
        self.made += 1
        self._told.update(line for _, _, line in lines)
        # a file that was exchanged while it was read must not stand under the digest of the one before
        if all(self._digest(file) == digest for file, digest in files.items()):
            self._write(path, result, Encoder(paths, constants), lines)
        self._discard(result)
        return {**result, **joined}

    def hold(self, path: str, pixels: Pixels, number: int, *, mask: bool = False, size: int | None = None) -> None:
        """Remember for the rest of this process where a file's decoded pixels are, as stored or resized to ``size``."""
        self._held[path, mask, size] = (self._digest(path), pixels, number)

    def held(self, path: str, *, mask: bool = False, size: int | None = None) -> tuple[Pixels, int] | None:
        """Where a file's decoded pixels are, unless the file changed."""
        digest, *place = self._held.get((path, mask, size), (None,))
        return (place[0], place[1]) if digest is not None and digest == self._digest(path) else None

    def new_pixels(self, nbytes: int, *, keep: bool = False) -> Pixels:
        """Room for decoded pixels: in this folder, in memory up to the limit, or in a temporary file.

        Args:
            nbytes: how many there will be.
            keep: they become part of an entry, so the folder comes first, else the memory.

        Raises:
            DataError: no room anywhere.
        """
        told = "cache_dir is not set"
        if nbytes <= self.memory and not (keep and self.writable):
            return Pixels()
        if self.writable:
            try:
                path = self._make_room(nbytes) / "new" / f".{uuid.uuid4().hex}{PIXELS}"
                path.parent.mkdir(exist_ok=True)
                pixels = Pixels(file=path.open("x+b"), path=path)
                if not keep:
                    pixels.discard()
                return pixels
            except OSError as error:
                self._give_up(error)
                if nbytes <= self.memory:
                    return Pixels()
        if self.folder is not None:
            told = f"nothing can be kept in {self.folder}, see above"
        place = Path(tempfile.gettempdir())
        free = shutil.disk_usage(place).free
        if free - nbytes < KEPT_FREE:
            raise DataError(
                f"The decoded patches are {nbytes / 1e9:.1f} GB, more than memory_gb ({self.memory / 1e9:g}), and have "
                f"no room on disk: {told}, {place} has {free / 1e9:.1f} GB free. Set cache_dir to a folder with room "
                "(--cache_dir, --cache_gb), or TMPDIR, or a cache_size, or raise memory_gb."
            )
        logger.warning("%s: holds %.1f GB of decoded patches until this process ends (%s).", place, nbytes / 1e9, told)
        return Pixels(file=tempfile.TemporaryFile())

    def _digest(self, path: str) -> str | None:
        try:
            if time.time() - Path(path).stat().st_ctime < YOUNG:
                return sha256(path)
            with self._lock:
                return self.digests(path)
        except OSError:
            return None

    def _key(self, seen: Mapping[str, Any], paths: Sequence[str], settings: str) -> tuple[str | None, dict[str, str]]:
        """The entry's name, and the digest of every file; None where not all of the content can be told."""
        files: dict[str, str] = {}
        for text in paths:
            if names_file(text):
                digest = self._digest(text)
                if digest is None or Path(text).suffix.lower() in (".hdr", ".img"):  # a pair of files is one image
                    return None, {}
                files[text] = digest
        try:
            named = "\n".join([fingerprint(_with_digests(seen, files)), settings, code_version()])
        except TypeError:
            return None, {}
        return hashlib.sha256(named.encode()).hexdigest(), files

    def _read(self, path: Path, paths: Sequence[str], constants: Sequence[Any]) -> dict[str, Any] | None:
        try:
            with np.load(path, allow_pickle=False) as content:
                arrays = {name: content[name] for name in content.files}
            text = json.loads(bytes(arrays.pop("tree")).decode())
            result = Decoder(arrays, paths, constants)(text["tree"])
            for pixels in _pixels(result):
                pixels.open(path.with_suffix(PIXELS))
        except FileNotFoundError:
            return None
        except Exception as error:  # a damaged file can raise nearly anything
            logger.info("%s is damaged (%s) and is made anew.", path, error)
            with suppress(OSError):
                path.unlink()
            return None
        for used in (path, path.with_suffix(PIXELS)):
            with suppress(OSError):
                os.utime(used)
        self.hits += 1
        for name, level, line in text["log"]:
            if line not in self._told:
                logging.getLogger(name).log(level, "%s", line)
            self._told.add(line)
        return result

    def _write(self, path: Path, result: dict[str, Any], encoder: Encoder, lines: list) -> None:
        if not self.writable:
            return
        try:
            tree = json.dumps({"tree": encoder(result), "log": lines})
            size = sum(array.nbytes for array in encoder.arrays.values()) + len(tree)
            self._make_room(size)
            for pixels in _pixels(result):
                if pixels.path is None:
                    raise OSError("decoded patches are in memory")
                pixels.publish(path.with_suffix(PIXELS))  # before the entry, which says that they are there
                size += pixels.nbytes
            with atomic_path(path) as temporary:
                np.savez(temporary, tree=np.frombuffer(tree.encode(), np.uint8), **encoder.arrays)
        except (OSError, TypeError) as error:
            self._give_up(error)
            return
        with self._lock:
            self._written += size
            full = self._written > self.limit / 10
        if full:
            self.tidy()

    def _discard(self, result: Mapping[str, Any]) -> None:
        """Remove the files of pixels that did not become part of an entry."""
        for pixels in _pixels(result):
            if pixels.path is not None and pixels.path.name.startswith("."):
                pixels.discard()

    def _give_up(self, error: Exception) -> None:
        self.writable = False
        logger.warning("%s: nothing more is kept there (%s); files are read again next time.", self.folder, error)

    def _make_room(self, size: int) -> Path:
        """The folder, made if need be, with so many bytes free.

        Raises:
            OSError: they are not, or it cannot be made.
        """
        assert self.folder is not None
        if not self.folder.is_dir():
            self.folder.mkdir(parents=True, exist_ok=True)
            (self.folder / "README").write_text(
                "Cut and decoded images; safe to delete at any time.\n", encoding="utf-8"
            )
        if size > self.limit or shutil.disk_usage(self.folder).free - size < KEPT_FREE:
            raise OSError(f"no room: {size / 1e6:.1f} MB more, the limit (cache_gb) is {self.limit / 1e9:g} GB")
        return self.folder

    def tidy(self) -> None:
        """Keep the limit, remove what killed processes left, and save the digests; called when a dataset is read."""
        if self.folder is None or not self._written:
            return
        with self._lock:
            self._written = 0
            self.digests.save()
            found = []
            for path in [path for ending in (ENDING, PIXELS) for path in self.folder.glob("*/*" + ending)]:
                with suppress(OSError):
                    stat = path.stat()
                    if not path.name.startswith("."):
                        found.append((stat.st_mtime, stat.st_size, path))
                    elif time.time() - stat.st_mtime > LEFTOVER:
                        path.unlink()
            total = sum(size for _, size, _ in found)
            needed = 0
            for used, size, path in sorted(found):
                if total <= self.limit:
                    break
                with suppress(OSError):
                    path.unlink()
                total, needed = total - size, needed + (used >= self._started)
        if needed:
            logger.warning(
                "%s: %d entries of this very run were removed, the limit is %g GB; raise it (--cache_gb).",
                self.folder,
                needed,
                self.limit / 1e9,
            )


@functools.cache
def code_version() -> str:
    """Digests of the code that reads, cuts and decodes (``data``, ``transforms``), and the libraries' versions."""
    root = Path(__file__).parents[1]
    files = sorted([*root.glob("data/**/*.py"), *root.glob("transforms/**/*.py")])
    if not files:
        raise TypeError("the source of the code is not at hand")
    parts = [f"{path.relative_to(root).as_posix()}:{sha256(path)}" for path in files]
    return "\n".join([f"format {FORMAT}", *parts, *(f"{name}=={version(name)}" for name in LIBRARIES)])


def _pixels(result: Mapping[str, Any]) -> Iterator[Pixels]:
    return (value for value in result.values() if isinstance(value, Pixels))


def _texts(value: Any) -> Iterator[str]:
    """All texts in nested values, which may be paths."""
    if isinstance(value, str | os.PathLike):
        yield os.fspath(value)
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _texts(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _texts(item)


def _with_digests(value: Any, files: Mapping[str, str]) -> Any:
    if isinstance(value, str | os.PathLike):
        text = os.fspath(value)
        # the ending says how a file is read
        return {"file": files[text], "ending": "".join(Path(text).suffixes[-2:])} if text in files else text
    if isinstance(value, Mapping):
        return {key: _with_digests(item, files) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_with_digests(item, files) for item in value]
    return value


@contextmanager
def _recorded() -> Iterator[list]:
    """Warnings that this thread logs in the meantime: logger, level and text."""
    lines: list = []
    thread = threading.get_ident()

    class Recorder(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.thread == thread:
                lines.append([record.name, record.levelno, record.getMessage()])

    recorder = Recorder(logging.WARNING)
    logging.getLogger("shared").addHandler(recorder)
    try:
        yield lines
    finally:
        logging.getLogger("shared").removeHandler(recorder)
