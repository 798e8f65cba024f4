"""Send DICOM files to a server by DICOMweb and compare what comes back (STOW-RS, QIDO-RS, WADO-RS; PS3.18).

    python -m shared.apps.hospital.dicomweb http://127.0.0.1:8042/dicom-web FOLDER [FOLDER ...]

For a server on this machine: other addresses are refused, since patients' data must not leave it by a slip.
"""

from __future__ import annotations

import io
import ipaddress
import json
import re
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from shared.apps.preparation.files import positive_int, run_script, script_parser
from shared.data.clutter import walk_files
from shared.data.dicom.headers import is_dicom
from shared.data.dicom.library import dicom_library
from shared.errors import DataError


def check_address(url: str) -> None:
    """Refuse any address but this machine's.

    Raises:
        DataError: it is another one's.

    Example:
        >>> check_address("http://127.0.0.1:8042/dicom-web")
    """
    host = urlsplit(url).hostname or ""
    try:
        here = host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        here = False
    if not here:
        raise DataError(f"{url}: is not this machine; patients' data are sent to 127.0.0.1 only")


def ask(url: str, *, data: bytes | None = None, seconds: float = 60, **headers: str) -> tuple[bytes, str]:
    """An answer and its type, without a proxy."""
    request = urllib.request.Request(url, data=data, headers={k.replace("_", "-"): v for k, v in headers.items()})
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=seconds) as answer:
            return answer.read(), str(answer.headers.get("Content-Type", ""))
    except urllib.error.HTTPError as error:
        raise DataError(f"{url}: the server answers {error.code} {error.reason}") from error
    except (urllib.error.URLError, TimeoutError) as error:
        raise DataError(f"{url}: no answer ({error})") from error


def wait_for(url: str, seconds: float) -> None:
    """Wait until a server answers.

    Raises:
        DataError: it does not, within ``seconds``.
    """
    end = time.monotonic() + seconds
    while True:
        try:
            ask(f"{url}/studies?limit=1", seconds=5, Accept="application/dicom+json")
            return
        except DataError:
            if time.monotonic() > end:
                raise
            time.sleep(0.2)


def store(url: str, paths: Sequence[Path]) -> None:
    """Send files as one request (STOW-RS).

    Raises:
        DataError: the server does not take all.
    """
    mark = uuid.uuid4().hex
    head = f"--{mark}\r\nContent-Type: application/dicom\r\n\r\n".encode()
    body = b"".join(head + path.read_bytes() + b"\r\n" for path in paths) + f"--{mark}--\r\n".encode()
    kind = f'multipart/related; type="application/dicom"; boundary={mark}'
    answer, _ = ask(f"{url}/studies", data=body, Content_Type=kind, Accept="application/dicom+json")
    content = json.loads(answer)
    taken = len(content.get("00081199", {}).get("Value", []))
    if taken != len(paths) or content.get("00081198", {}).get("Value"):
        raise DataError(f"{url}: the server took {taken} of {len(paths)} files")


def retrieve(url: str, dataset: Any) -> Any:
    """One instance as the server keeps it (WADO-RS)."""
    series = f"{url}/studies/{dataset.StudyInstanceUID}/series/{dataset.SeriesInstanceUID}"
    place = f"{series}/instances/{dataset.SOPInstanceUID}"
    answer, kind = ask(place, Accept='multipart/related; type="application/dicom"; transfer-syntax=*')
    found = re.search(r'boundary="?([^";]+)', kind)
    if not found:
        raise DataError(f"{place}: the answer is {kind}, several parts are expected")
    part = answer.split(f"--{found[1]}".encode())[1].partition(b"\r\n\r\n")[2]
    return dicom_library("pydicom").dcmread(io.BytesIO(part[:-2]))


def round_trip(url: str, folders: Sequence[Path], *, most: int = 200) -> list[str]:
    """Send all files and compare each with what comes back; a line per series.

    Raises:
        DataError: an instance comes back with other values, or is not listed.
    """
    pydicom = dicom_library("pydicom")
    paths = [path for folder in folders for path in walk_files(folder) if is_dicom(path)]
    if not paths or len(paths) > most:
        raise DataError(f"{len(paths)} DICOM files; give folders with 1 to {most}")
    store(url, paths)
    series: dict[str, list[Any]] = {}
    for path in paths:
        sent = pydicom.dcmread(path)
        kept = retrieve(url, sent)
        if kept != sent:
            raise DataError(f"{path.name}: comes back with other values")
        series.setdefault(str(sent.SeriesInstanceUID), []).append(sent)
    listed, _ = ask(f"{url}/series", Accept="application/dicom+json")
    known = {one["0020000E"]["Value"][0] for one in json.loads(listed)}
    if lost := set(series) - known:
        raise DataError(f"{url}: does not list {len(lost)} of {len(series)} series")
    return [
        f"{many[0].Modality} {many[0].get('SeriesDescription', '')!r}: {len(many)} equal" for many in series.values()
    ]


def main(arguments: list[str] | None = None) -> int:
    """Command line."""
    parser = script_parser(__doc__ or "")
    parser.add_argument("url", help="of the server's DICOMweb")
    parser.add_argument("folders", type=Path, nargs="+", help="folders with DICOM files")
    parser.add_argument("--wait", type=positive_int, default=60, help="seconds for the server's start (60)")
    options = parser.parse_args(arguments)

    def act() -> None:
        check_address(options.url)
        wait_for(options.url, options.wait)
        for line in round_trip(options.url, options.folders):
            print(line)

    return run_script(act)


if __name__ == "__main__":
    from shared.errors import run_main

    run_main(main)
