"""Ask a MONAI Label server for the biomarkers of one image, check the answer, and keep it.

Checked are the label map (the image's shape and affine, the voxels that the figures tell, a name for every value) and
the figures: probability in [0, 1]; a biomarker and a similarity, or a contribution, of every image; Shapley values that
add up to the probability, or to the log odds. What is wrong is told, all at once, with exit status 2.
"""

from __future__ import annotations

import json
import math
import time
from email import message_from_bytes
from http.client import HTTPException
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.parse import urlencode
from urllib.request import Request, urlopen

from shared.apps.preparation.files import run_script, script_parser
from shared.errors import DataError
from shared.io import atomic_path, write_json


def wait_for(server: str, seconds: float) -> dict:
    """The server's description, as soon as it answers within ``seconds``."""
    end = time.monotonic() + seconds
    while True:
        try:
            with urlopen(f"{server}/info/", timeout=max(end - time.monotonic(), 1)) as reply:
                return json.load(reply)
        except (URLError, HTTPException, TimeoutError, ConnectionError) as error:
            if isinstance(error, HTTPError) or time.monotonic() > end:
                raise DataError(
                    f"{server} does not answer within {seconds:g} s ({error}); see the server's log"
                ) from error
            time.sleep(0.5)


def infer(server: str, model: str, image: str, *, seconds: float, **params: object) -> tuple[dict, bytes]:
    """Ask for one inference; returns the figures and the label map's file."""
    query = urlencode({"image": image, "output": "all"})
    body = urlencode({"params": json.dumps(params)}).encode()
    request = Request(f"{server}/infer/{model}?{query}", data=body, headers={"Accept": "multipart/form-data"})
    try:
        with urlopen(request, timeout=seconds) as reply:
            kind, content = reply.headers["Content-Type"], reply.read()
    except HTTPError as error:
        text = error.read().decode(errors="replace")[:500]
        raise DataError(f"{server} refuses {image} for {model}: {error.code} {text}") from error
    except (URLError, HTTPException, TimeoutError, ConnectionError) as error:
        raise DataError(f"{server} gives no answer within {seconds:g} s ({error}); see its log") from error
    message = message_from_bytes(b"Content-Type: " + kind.encode() + b"\r\n\r\n" + content)
    parts = {part.get_param("name", header="content-disposition"): part for part in message.walk()}
    if not {"params", "image"} <= set(parts):
        raise DataError(f"{server} must answer with params and image, got {kind}: {content[:200]!r}")
    return json.loads(parts["params"].get_payload(decode=True)), parts["image"].get_payload(decode=True)


def problems_of(figures: dict, answer: Path, image: Path) -> list[str]:
    """What is wrong with an answer."""
    import nibabel as nib
    import numpy as np

    found, asked = nib.load(answer), nib.load(image)
    labels = np.asarray(found.dataobj)
    problems = []
    if found.shape != asked.shape:
        problems.append(f"the label map is {found.shape}, the image {asked.shape}")
    distance = float(np.abs(found.affine - asked.affine).max())
    if distance > 1e-3:
        problems.append(f"the label map's affine differs from the image's by {distance:g}")
    regions = {int(value): region for value, region in figures.get("regions", {}).items()}
    counted = {int(value): int(n) for value, n in zip(*np.unique(labels[labels != 0], return_counts=True), strict=True)}
    told = {value: region["voxels"] for value, region in regions.items() if region["voxels"]}
    if not regions or told != counted:
        problems.append(f"the label map holds {counted} (value: voxels), the figures tell {told}")
    unnamed = set(counted) - set(figures.get("label_names", {}).values())
    if unnamed:
        problems.append(f"the server gives no name to the values {sorted(unnamed)}")
    probability = figures.get("probability")
    if not isinstance(probability, float) or not 0 <= probability <= 1:
        return [*problems, f"probability must lie in [0, 1], got {probability!r}"]
    images = figures.get("images", [])
    if not images or not all(
        isinstance(i.get("contribution"), float)
        or (isinstance(i.get("biomarker"), int) and -1.001 <= i["similarity"] <= 1.001)
        for i in images
    ):
        problems.append(f"every image needs a biomarker and a similarity, or a contribution, got {images!r}")
    shapley = figures.get("shapley", {"base": 0.0, "values": {}})  # None: the model's prediction has none
    total = probability if shapley is None else shapley["base"] + sum(shapley["values"].values())
    if shapley is not None and shapley.get("unit") == "log odds":
        total = 1 / (1 + math.exp(-total))
    if abs(total - probability) > 1e-4:
        problems.append(f"base and Shapley values add up to {total:g}, the probability is {probability:g}")
    return problems


def ask(*, server: str, model: str, image: str, studies: Path, output: Path, start: float, answer: float) -> None:
    """Ask, write both parts of the answer, check it, and say what it says."""
    info = wait_for(server, start)
    if model not in info["models"]:
        raise DataError(f"{server} serves {', '.join(info['models']) or 'no model'}, not {model}; see the server's log")
    started = time.monotonic()
    figures, content = infer(server, model, image, seconds=answer)
    took = time.monotonic() - started
    source = next(iter(sorted(studies.glob(f"{image}.nii*"))), None)
    if source is None:
        raise DataError(f"{studies}: there is no {image}.nii.gz to compare the answer with")
    file = output / f"{image}_biomarkers.nii.gz"
    output.mkdir(parents=True, exist_ok=True)
    with atomic_path(file) as temporary:
        temporary.write_bytes(content)
    write_json(output / f"{image}.json", figures)
    problems = problems_of(figures, file, source)
    if problems:
        raise DataError([f"{image}: {problem}" for problem in problems])
    print(f"{image}: answered in {took:.1f} s; {file.name} has the image's grid")
    print(f"  probability of {figures['positive_class']}: {figures['probability']:.3f}")
    if figures.get("set"):
        print(f"  plausible: {figures['set']}")
    if figures.get("reason"):
        print(f"  do not use it as it is: {figures['reason']}")
    for row in figures["images"]:
        said = (
            f"{row['contribution']:+.3f} log odds"
            if "contribution" in row
            else f"biomarker {row['biomarker']} ({row['similarity']:.3f})"
        )
        print(f"  {row['modality']}, slice {row['slice']}: {said}")
    for value, region in figures["regions"].items():
        print(f"  value {value} of the label map: biomarker {region['biomarker']}, {region['voxels']} voxels")


def main(arguments: list[str] | None = None) -> int:
    """Parse the command line and ask."""
    parser = script_parser(__doc__)
    parser.add_argument("image", help="id of the image: its file name in the studies folder without .nii.gz")
    parser.add_argument("--server", default="http://127.0.0.1:8000", help="address (http://127.0.0.1:8000)")
    parser.add_argument("--model", default="ircl_mvi", help="bundle (ircl_mvi)")
    parser.add_argument("--studies", type=Path, required=True, help="the server's studies folder")
    parser.add_argument("--output", type=Path, required=True, help="folder for the answer")
    parser.add_argument("--start", type=float, default=120, help="seconds to wait for the server (120)")
    parser.add_argument("--answer", type=float, default=300, help="seconds to wait for its answer (300)")
    options = vars(parser.parse_args(arguments))
    return run_script(lambda: ask(**options))
