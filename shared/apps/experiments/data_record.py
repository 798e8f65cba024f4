"""What an experiment's results depend on beside its settings: the content of its files."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from shared.apps.experiments.folder import read_experiment
from shared.bundle.record import cache_folder
from shared.digests import Digests
from shared.errors import DataError

FILES = ("image", "mask", "fa", "mni_places", "planted")  # of a case
ATLAS = "atlas.npz"  # beside the datalist, where a bundle has one
MISSING = "missing"  # in place of a digest: the bundle's own check says more


def data_record(
    cases: Iterable[Mapping[str, Any]],
    dataset_dir: str | os.PathLike,
    output: str | os.PathLike,
    *,
    files: Mapping[str, str | os.PathLike] | None = None,
) -> dict[str, str]:
    """By patient one digest of the content of all of the patient's files; beside them the atlas and further files.

    A file is read again only when its size, time stamps or inode changed (:class:`shared.digests.Digests`).

    Args:
        cases: of a datalist.
        dataset_dir: the prepared folder; the cache of digests is kept there, in ``output`` where it is read-only.
        output: the experiment's folder.
        files: further files by a name of their own, such as weights that a setting names.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> _ = (folder / "a.png").write_bytes(b"1")
        >>> case = {"patient": "P1", "image": "a.png"}
        >>> before = data_record([case], folder, folder)
        >>> _ = (folder / "a.png").write_bytes(b"2")
        >>> sorted(before), before == data_record([case], folder, folder)
        (['P1'], False)
    """
    root = Path(dataset_dir)
    digests = Digests(cache_folder(root) or output)

    def content(path: Path) -> str:
        try:
            return digests(path)
        except FileNotFoundError:
            return MISSING

    found: dict[str, Any] = {}
    for case in cases:
        own = found.setdefault(str(case.get("patient")), hashlib.sha256())
        for key in FILES:
            paths = case.get(key) or []
            for path in [paths] if isinstance(paths, str) else paths:
                own.update(f"{key} {content(root / path)}\n".encode())
    record = {patient: own.hexdigest()[:16] for patient, own in sorted(found.items())}
    others = {ATLAS: root / ATLAS, **(files or {})}
    record |= {name: content(Path(path))[:16] for name, path in others.items() if Path(path).is_file()}
    digests.save()
    return record


def check_same_data(experiment: str | os.PathLike, record: Mapping[str, str]) -> None:
    """Refuse to go on from an experiment that was run on other images of these patients.

    Args:
        experiment: its folder.
        record: the :func:`data_record` now.

    Raises:
        DataError: naming the patients and files that differ; an experiment without a record.
    """
    before = read_experiment(experiment)["settings"].get("data")
    if before is None:
        raise DataError(f"{experiment} does not say on which data it was run: run it again")
    if changed := [name for name, digest in record.items() if before.get(name, digest) != digest]:
        raise DataError(
            f"{experiment} was run on other files ({', '.join(changed[:5])}{', ...' if changed[5:] else ''}): "
            "run it again on these"
        )


def named_files(settings: Mapping[str, Any], folder: Path) -> dict[str, Path]:
    """Files that settings name, such as weights, by key; relative ones lie in ``folder``."""
    paths = {key: folder / value for key, value in settings.items() if value}
    return {key: path for key, path in paths.items() if path.is_file()}
