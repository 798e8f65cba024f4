"""What the preparation scripts share: command line, label tables, NIfTI files, copies, datalists and manifests."""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import os
import platform
import shlex
import shutil
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from shared.data.clutter import is_clutter
from shared.digests import Digests, sha256
from shared.errors import CheckpointError, DataError, describe
from shared.io import DATALIST, MANIFEST, atomic_path, check_folder, write_json


def script_parser(doc: str) -> argparse.ArgumentParser:
    """Parser whose ``--help`` shows a script's docstring: the first paragraph above its options, the rest below."""
    first, _, rest = doc.partition("\n\n")
    return argparse.ArgumentParser(description=first, epilog=rest, formatter_class=argparse.RawDescriptionHelpFormatter)


def positive_int(text: str) -> int:
    """Type of an option that is at least 1."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {value}")
    return value


def run_script(action: Callable[[], Any]) -> int:
    """Exit status of ``action``: 2, with the message alone, where the data or a file is at fault.

    Example:
        >>> run_script(lambda: None)
        0
    """
    try:
        action()
    except BrokenPipeError:
        raise  # nobody reads any more: run_main ends the script
    except (DataError, CheckpointError, OSError) as error:
        print(f"error: {describe(error)}", file=sys.stderr)
        return 2
    return 0


def place_file(source: Path, target: Path, *, link: bool = False, digests: Digests | None = None) -> None:
    """Copy or link one file; what an earlier run left is kept where it has the same content.

    Args:
        source: the file.
        target: where it goes.
        link: link to it instead.
        digests: SHA-256 of files seen before, so that a second run reads none of them; None: both are read.
    """
    if link:
        if target.is_symlink() and target.resolve() == source.resolve():
            return
        with atomic_path(target) as temporary:
            temporary.symlink_to(source.resolve())
        return
    digest = Digests() if digests is None else digests
    there = target.is_file() and not target.is_symlink()
    if there and target.stat().st_size == source.stat().st_size and digest(target) == digest(source):
        return
    with atomic_path(target) as temporary:
        shutil.copy2(source, temporary)
    if digests is not None:
        digests(target)  # remembered now, while its bytes are in memory


def save_nifti(
    path: str | os.PathLike,
    array: Any,
    affine: Any,
    *,
    description: str = "",
    compresslevel: int = 6,
    slope: float | None = None,
) -> None:
    """Write a NIfTI-1 file atomically; the same array gives the same bytes (no time stamp in the gzip header).

    Args:
        path: file to write; compressed when it ends in ``.gz``.
        array: voxels, stored in their own dtype.
        affine: voxel to world (RAS, mm), ``[4, 4]``.
        description: the header's ``descrip`` field, at most 79 ASCII characters.
        compresslevel: of gzip.
        slope: what a reader multiplies whole numbers by.
    """
    import nibabel as nib

    image = nib.Nifti1Image(array, affine, dtype=array.dtype)
    image.header.set_xyzt_units("mm")
    image.header["descrip"] = description.encode("ascii")[:79]
    if slope is not None:
        image.header.set_slope_inter(slope, 0.0)
    content = image.to_bytes()
    if str(path).endswith(".gz"):
        content = gzip.compress(content, compresslevel, mtime=0)
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)


def software_versions(packages: Iterable[str] = ("numpy", "nibabel", "scikit-learn")) -> dict[str, str]:
    """Versions of Python and of ``packages``, for a manifest."""
    versions = {"python": platform.python_version()}
    for package in packages:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "not installed"
    return versions


def write_datalist(
    output: str | os.PathLike,
    *,
    name: str,
    modalities: Sequence[str] | None = None,
    classes: Sequence[str] = (),
    training: Sequence[Mapping[str, Any]],
    testing: Sequence[Mapping[str, Any]] = (),
    file: str = DATALIST,
    **more: Any,
) -> Path:
    """Write the datalist of the data contract into ``output``; the last file a preparation script writes.

    Args:
        output: the prepared folder.
        name: of the cohort.
        modalities: names of the modalities, in the order of a case's images; None for patches.
        classes: names of the classes; none: no case has a label, and the model names them.
        training: labelled cases.
        testing: cases kept apart.
        file: its name.
        more: further JSON values.
    """
    path = Path(output) / file
    content = {
        "name": name,
        **({} if modalities is None else {"modalities": list(modalities)}),
        **({"classes": list(classes)} if classes else {}),
        "training": list(training),
        "testing": list(testing),
        **more,
    }
    write_json(path, content)
    return path


def write_manifest(
    output: str | os.PathLike, *, sources: Mapping[str, str] | None = None, file: str = MANIFEST, **more: Any
) -> dict[str, Any]:
    """Write ``manifest.json``: command line, versions, sha256 of the source files, and whatever ``more`` says.

    Args:
        output: the prepared folder.
        sources: sha256 of each source file.
        file: its name.
        more: further JSON values.

    Returns:
        what was written.
    """
    content = {
        "command": shlex.join(["python", *program(), *sys.argv[1:]]),
        "versions": software_versions(),
        **more,
        "sources": dict(sources or {}),
    }
    write_json(Path(output) / file, content)
    return content


def begin(output: str | os.PathLike, files: Sequence[str] = (DATALIST, MANIFEST)) -> Path:
    """Make the folder and take an older datalist and manifest away: a run that stops half-way leaves none behind."""
    output = Path(output)
    check_folder(output)
    output.mkdir(parents=True, exist_ok=True)
    for name in files:
        (output / name).unlink(missing_ok=True)
    return output


def phantom_is_there(output: str | os.PathLike, recipe: Mapping[str, Any]) -> bool:
    """Whether a folder already holds the phantoms of this very recipe, unchanged, as its manifest says.

    Raises:
        DataError: the folder holds something else.
    """
    output = Path(output)
    if not output.exists() or all(is_clutter(path.name) for path in output.iterdir()):
        return False
    try:
        manifest = json.loads((output / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        manifest = {}
    if "phantom" not in manifest:
        raise DataError(f"{output} holds files that are no phantom cohort; give an empty or new folder as --output")
    return manifest["phantom"] == recipe and manifest.get("content") == _phantom_content(output)


def seal_phantom(output: str | os.PathLike) -> dict[str, Any]:
    """Add a digest of all files to a finished phantom cohort's manifest; return the manifest."""
    path = Path(output) / MANIFEST
    manifest = {**json.loads(path.read_text(encoding="utf-8")), "content": _phantom_content(Path(output))}
    write_json(path, manifest)
    return manifest


def _phantom_content(output: Path) -> str | None:
    """Digest of the datalists, the atlas and all files they list; None where one is missing."""
    try:
        datalist = json.loads((output / DATALIST).read_text(encoding="utf-8"))
        cases = [case for section in datalist.values() if isinstance(section, list) for case in section]
        keys = ("image", "mask", "fa", "planted")
        values = [case[key] for case in cases if isinstance(case, dict) for key in keys if key in case]
        names = [name for value in values for name in ([value] if isinstance(value, str) else value)]
        names += sorted(path.name for pattern in ("datalist*.json", "*.npz") for path in output.glob(pattern))
        lines = "".join(f"{name} {sha256(output / name)}\n" for name in names)
    except (OSError, ValueError):
        return None
    return hashlib.sha256(lines.encode()).hexdigest()


def program() -> list[str]:
    """What started this process: a script, or a module of ``shared`` by ``python -m``."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    return ["-m", spec.name] if spec and spec.name.startswith("shared.") else sys.argv[:1]
