"""A bundle as one zip that is the same for the same input, its checksum, and its entry in ``model_info.json``."""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from shared.bundle.checks import pinned_packages
from shared.bundle.contents import LARGEST, packaged_files, read_metadata
from shared.digests import sha256 as file_sha256
from shared.errors import DataError
from shared.io import atomic_path, write_json, write_text

MODEL_INFO = "model_info.json"
# the first moment a zip can hold; whoever packs the same files gets the same bytes
_EPOCH = (1980, 1, 1, 0, 0, 0)


def package_bundle(bundle: str | os.PathLike, output: str | os.PathLike, *, url: str | None = None) -> Path:
    """Write ``NAME_v<version>.zip``: the bundle and its copy of ``shared``; beside it ``.sha256``, ``model_info.json``.

    Files are stored, not compressed: other versions of zlib would give other bytes.

    Args:
        bundle: the bundle's folder.
        output: where the files go.
        url: where they will lie, with ``{file}`` for a file's name; needed where a model is larger than 25 MB, which is
            then written beside the zip and listed in the zip's ``large_files.yml``.

    Returns:
        the zip.

    Raises:
        DataError: a large model and no ``url``.
    """
    bundle, output = Path(bundle), Path(output)
    metadata = read_metadata(bundle)
    name, stem = bundle.name, f"{bundle.name}_v{metadata['version']}"
    files: dict[str, bytes | Path] = dict(packaged_files(bundle))
    files["requirements.txt"] = requirements_text(metadata).encode()
    large = {path: files.pop(path) for path, file in list(files.items()) if _size(file) > LARGEST}
    if large and not url:
        raise DataError(
            f"{name}: {', '.join(large)} has over {LARGEST // 2**20} MB and goes beside the zip: say where it will "
            "lie, as --url 'https://HOST/PATH/{file}'"
        )
    if large:
        entries = [_large_entry(path, files_name(stem, path), file, url or "") for path, file in large.items()]
        files["large_files.yml"] = ("large_files:\n" + "".join(entries)).encode()

    output.mkdir(parents=True, exist_ok=True)
    for path, file in large.items():
        with atomic_path(output / files_name(stem, path)) as temporary:
            temporary.write_bytes(Path(file).read_bytes())
    archive = output / f"{stem}.zip"
    with atomic_path(archive) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as packed:
        for path in sorted(files):
            entry = zipfile.ZipInfo(f"{name}/{path}", date_time=_EPOCH)
            # made on Unix, an ordinary file that everybody may read, wherever it was packed
            entry.create_system, entry.external_attr = 3, 0o100644 << 16
            file = files[path]
            packed.writestr(entry, file if isinstance(file, bytes) else file.read_bytes())
    _write_info(output, archive, metadata, url)
    return archive


def check_package(archive: str | os.PathLike, *, sha256: str | None = None) -> dict[str, Any]:
    """Whether a zip is whole, the one that was meant, and a bundle; its name, version, sha256 and size.

    Args:
        archive: the zip.
        sha256: what its checksum must be; None: as ``NAME_v<version>.zip.sha256`` or ``model_info.json`` beside it say.

    Raises:
        DataError: another checksum than expected or none to compare with, a damaged zip, or no bundle in it.
    """
    archive = Path(archive)
    if not archive.is_file():
        raise DataError(f"no such file: {archive}")
    found = file_sha256(archive)
    expected = sha256.strip().lower() if sha256 else _known_sha256(archive)
    if found != expected:
        raise DataError(
            f"{archive.name} has sha256 {found}, expected {expected}: it is damaged or not what was published. Do not "
            "unpack it; its configs are code."
        )
    try:
        with zipfile.ZipFile(archive) as packed:
            names, damaged = packed.namelist(), packed.testzip()
            tops = {PurePosixPath(name).parts[0] for name in names}
            outside = [name for name in names if name.startswith("/") or ".." in PurePosixPath(name).parts]
            top = sorted(tops)[0]
            version = json.loads(packed.read(f"{top}/configs/metadata.json"))["version"]
    except (zipfile.BadZipFile, ValueError, LookupError) as error:
        raise DataError(f"{archive.name} is no bundle's zip: {error}") from error
    if damaged or outside or len(tops) > 1:
        raise DataError(
            f"{archive.name} must hold one bundle in one folder; folders: {', '.join(sorted(tops))}; damaged: "
            f"{damaged or 'none'}; outside of it: {', '.join(outside) or 'none'}"
        )
    return {"name": top, "version": version, "sha256": found, "size": archive.stat().st_size}


def requirements_text(metadata: Mapping[str, Any]) -> str:
    """``requirements.txt`` of a package: what its metadata pins.

    Example:
        >>> print(requirements_text({"monai_version": "1.6.1", "required_packages_version": {"fire": "0.7.1"}}))
        # Python 3.11 or newer. From configs/metadata.json: pip install -r requirements.txt
        monai==1.6.1
        fire==0.7.1
    """
    pins = [f"{name}=={version}" for name, version in pinned_packages(metadata).items()]
    return "\n".join(["# Python 3.11 or newer. From configs/metadata.json: pip install -r requirements.txt", *pins, ""])


def files_name(stem: str, path: str) -> str:
    """Name of a large file beside the zip.

    Example:
        >>> files_name("ircl_mvi_v0.2.0", "models/model.pt")
        'ircl_mvi_v0.2.0_model.pt'
    """
    return f"{stem}_{PurePosixPath(path).name}"


def _size(file: bytes | Path) -> int:
    return len(file) if isinstance(file, bytes) else file.stat().st_size


def _large_entry(path: str, name: str, file: bytes | Path, url: str) -> str:
    """The form that MONAI's ``download_large_files`` reads."""
    address = url.replace("{file}", name)
    return f'- path: "{path}"\n  url: "{address}"\n  hash_val: "{file_sha256(Path(file))}"\n  hash_type: "sha256"\n'


def _write_info(output: Path, archive: Path, metadata: Mapping[str, Any], url: str | None) -> None:
    digest = file_sha256(archive)
    # what sha256sum -c reads
    write_text(output / f"{archive.name}.sha256", f"{digest}  {archive.name}\n")
    path = output / MODEL_INFO
    known = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    known[archive.stem] = {
        "checksum": digest,
        "hash_type": "sha256",
        "source": url.replace("{file}", archive.name) if url else archive.name,
        "size": archive.stat().st_size,
        "version": metadata["version"],
    }
    write_json(path, dict(sorted(known.items())))


def _known_sha256(archive: Path) -> str:
    beside, info = archive.with_name(f"{archive.name}.sha256"), archive.with_name(MODEL_INFO)
    if beside.is_file():
        return beside.read_text(encoding="utf-8").split()[0].lower()
    if info.is_file():
        entry = json.loads(info.read_text(encoding="utf-8")).get(archive.stem, {})
        if "checksum" in entry:
            return entry["checksum"]
    raise DataError(f"nothing beside {archive.name} says what its sha256 must be: give --sha256 HEX")
