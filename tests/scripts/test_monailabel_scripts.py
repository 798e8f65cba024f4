"""The scripts beside MONAI Label, without it: the studies folder, and the client before a server that only pretends."""

import gzip
import json
import os
import re
import subprocess
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import nibabel as nib
import numpy as np
import pytest
from packaging.requirements import Requirement

from tests.support.script_modules import load_script
from tests.support.tiny import affine_of, texture, write_case

ROOT = Path(__file__).parents[2]
studies, client = load_script("monailabel_studies"), load_script("monailabel_client")


@pytest.fixture
def prepared(tmp_path):
    """Two patients of two modalities: one named by its files, one by its folder."""
    folder = tmp_path / "prepared"
    cases = [write_case(folder / "scans", "P1", modalities=2), write_case(folder / "P2", "t", modalities=2)]
    for case, patient in zip(cases, ("P1", "P2"), strict=True):
        case["patient"] = patient
        case["image"] = [os.path.relpath(path, folder) for path in case["image"]]
    (folder / "datalist.json").write_text(json.dumps({"training": [], "testing": cases}), encoding="utf-8")
    return folder


def test_images_are_linked_flat_and_masks_left_out(prepared, tmp_path, capsys):
    for _ in range(2):  # again over what is there
        assert studies.main([str(prepared), str(tmp_path / "studies")]) == 0
    names = ["P1_0.nii.gz", "P1_1.nii.gz", "P2_t_0.nii.gz", "P2_t_1.nii.gz"]
    assert sorted(path.name for path in (tmp_path / "studies").iterdir()) == names
    assert (tmp_path / "studies/P2_t_1.nii.gz").resolve() == (prepared / "P2/t_1.nii.gz").resolve()
    assert "4 images" in capsys.readouterr().out


def test_an_empty_section_a_missing_file_and_one_name_for_two_are_refused(prepared, tmp_path, capsys):
    assert studies.main([str(prepared), str(tmp_path / "a"), "--split", "training"]) == 2
    assert "split 'training' of its datalist is empty" in capsys.readouterr().err
    content = json.loads((prepared / "datalist.json").read_text())
    content["testing"][1]["image"] = ["P2/t_0.nii.gz", "scans/t_0.nii.gz", "none.nii.gz"]
    write_case(prepared / "scans", "t")
    (prepared / "datalist.json").write_text(json.dumps(content))
    assert studies.main([str(prepared), str(tmp_path / "b")]) == 2
    error = capsys.readouterr().err
    assert "would both be P2_t_0.nii.gz" in error and "there is no file" in error and not (tmp_path / "b").exists()


FIGURES = {
    "probability": 0.75,
    "positive_class": "high",
    "images": [{"modality": "T1", "slice": 3, "biomarker": 1, "similarity": 0.9}],
    "shapley": {"base": 0.5, "values": {"0": 0.0, "1": 0.25}},
    "regions": {"2": {"biomarker": 1, "voxels": 6}},
    "label_names": {"biomarker 0": 1, "biomarker 1": 2},
}


# log odds of 0.75: 1.0986
ODDS = {"unit": "log odds", "base": 0.0086, "values": {"T1 0": -0.01, "T1 1": 1.1}}


class Pretender:
    """A server that answers as it is told."""

    def __init__(self, image, figures=FIGURES, *, affine=None, shape=None, status=200):
        pretender = self
        labels = np.zeros(shape or image.shape, dtype=np.uint8)
        labels[2:4, 3:6, 3] = 2
        volume = nib.Nifti1Image(labels, image.affine if affine is None else affine)
        self.asked, self.figures, self.status = [], figures, status
        # the client names it .nii.gz, and nibabel goes by the name
        self.file = gzip.compress(volume.to_bytes())

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *arguments):
                pass

            def reply(self, kind, content):
                self.send_response(pretender.status if self.command == "POST" else 200)
                self.send_header("Content-Type", kind)
                self.end_headers()
                self.wfile.write(content)

            def do_GET(self):
                self.reply("application/json", json.dumps({"models": {"ircl_mvi": {}}}).encode())

            def do_POST(self):
                body = self.rfile.read(int(self.headers["Content-Length"])).decode()
                pretender.asked.append((urlsplit(self.path), parse_qs(body)))
                parts = [
                    (b'name="params"', b"application/json", json.dumps(pretender.figures).encode()),
                    (b'name="image"; filename="a.nii.gz"', b"application/gzip", pretender.file),
                ]
                lines = [
                    b"--x\r\nContent-Disposition: form-data; "
                    + name
                    + b"\r\nContent-Type: "
                    + kind
                    + b"\r\n\r\n"
                    + part
                    for name, kind, part in parts
                ]
                self.reply("multipart/form-data; boundary=x", b"\r\n".join([*lines, b"--x--\r\n"]))

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.http.server_port}"

    def __enter__(self):
        threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return self

    def __exit__(self, *error):
        self.http.shutdown()
        self.http.server_close()


@pytest.fixture
def image(tmp_path):
    (tmp_path / "studies").mkdir()
    image = nib.Nifti1Image(texture(), affine_of(degrees=20))
    nib.save(image, tmp_path / "studies/P1_t1.nii.gz")
    return image


def run_client(server, folder, *more, name="P1_t1"):
    places = ["--studies", str(folder / "studies"), "--output", str(folder / "out"), *more]
    return client.main([name, "--server", server, *places])


def test_a_right_answer_passes_and_is_kept(image, tmp_path, capsys):
    with Pretender(image) as server:
        assert run_client(server.address, tmp_path) == 0
    assert "probability of high: 0.750" in capsys.readouterr().out
    (url, body), *more = server.asked
    assert (url.path, parse_qs(url.query)["image"], body["params"], more) == ("/infer/ircl_mvi", ["P1_t1"], ["{}"], [])
    assert json.loads((tmp_path / "out/P1_t1.json").read_text()) == FIGURES
    kept = nib.load(tmp_path / "out/P1_t1_biomarkers.nii.gz")
    assert kept.shape == image.shape and int((np.asarray(kept.dataobj) == 2).sum()) == 6


def test_an_answer_of_the_additive_predictor_passes(image, tmp_path, capsys):
    images = [{"modality": "T1", "slice": 3, "contribution": -0.25}]
    with Pretender(image, figures=FIGURES | {"images": images, "shapley": ODDS}) as server:
        assert run_client(server.address, tmp_path) == 0
    assert "T1, slice 3: -0.250 log odds" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"affine": affine_of()}, "affine differs from the image's by"),
        ({"shape": (24, 20, 8)}, r"the label map is \(24, 20, 8\), the image \(24, 20, 7\)"),
        ({"figures": FIGURES | {"probability": 1.5}}, r"probability must lie in \[0, 1\], got 1.5"),
        ({"figures": FIGURES | {"probability": 0.7}}, "add up to 0.75, the probability is 0.7"),
        ({"figures": FIGURES | {"images": []}}, "every image needs a biomarker"),
        ({"figures": FIGURES | {"images": [{"modality": "T1", "slice": 3}]}}, "or a contribution"),
        ({"figures": FIGURES | {"shapley": ODDS | {"base": 0.5}}}, "add up to 0.8306.*, the probability is 0.75"),
        ({"figures": FIGURES | {"regions": {"2": {"biomarker": 1, "voxels": 5}}}}, "holds {2: 6} .* tell {2: 5}"),
        ({"figures": FIGURES | {"regions": {}}}, "the figures tell {}"),
        ({"figures": FIGURES | {"label_names": {"biomarker 0": 1}}}, r"no name to the values \[2\]"),
        ({"status": 500}, "refuses P1_t1 for ircl_mvi: 500"),
    ],
)
def test_a_wrong_answer_is_told(image, tmp_path, capsys, wrong, message):
    with Pretender(image, **wrong) as server:
        assert run_client(server.address, tmp_path) == 2
    assert re.search(message, capsys.readouterr().err)


def test_another_model_and_a_server_that_is_not_there_are_told(image, tmp_path, capsys):
    with Pretender(image) as server:
        assert run_client(server.address, tmp_path, "--model", "other") == 2
    assert "serves ircl_mvi, not other" in capsys.readouterr().err
    assert run_client(server.address, tmp_path, "--start", "0.1") == 2
    assert "does not answer within 0.1 s" in capsys.readouterr().err


def test_its_environment_differs_from_ours_where_it_says_so():
    def pins(name):
        lines = [line.split("#")[0].strip() for line in (ROOT / name).read_text(encoding="utf-8").splitlines()]
        return {r.name.lower(): str(r.specifier) for r in map(Requirement, filter(None, lines))}

    ours, theirs = pins("requirements.txt"), pins("requirements-monailabel.txt")
    assert all(pin.startswith("==") and "*" not in pin for pin in theirs.values())
    assert {name for name in set(ours) & set(theirs) if ours[name] != theirs[name]} == {"torch", "numpy"}
    assert set(ours) - set(theirs) == {"shap", "torch-geometric", "simplejpeg", "jinja2"}


def test_the_smoke_test_refuses_what_it_cannot_serve(tmp_path):
    script, environment = (
        ROOT / "scripts/monailabel_smoke.sh",
        {**os.environ, "MONAILABEL_VENV": str(tmp_path / "none")},
    )
    for arguments, message in (
        (["one"], "give both or none"),
        ([str(tmp_path), str(tmp_path)], "has no datalist.json"),
        ([], "there is no folder"),
    ):
        command = ["bash", str(script), *arguments]
        ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
        assert ended.returncode == 1 and message in ended.stderr and not ended.stdout
