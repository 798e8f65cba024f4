"""Pages of single patients: what the folder's files say, nothing of another patient, ids escaped or left out."""

import base64
import csv
import gzip
import json
import re
import shutil
import subprocess
from html import unescape

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from shared.apps.report.command import main
from shared.apps.report.patients import page_names, write_patient_pages
from shared.apps.report.viewer import niivue_source, packed_volumes
from shared.digests import sha256
from shared.errors import DataError
from shared.io import write_csv, write_json
from shared.reports.trace import with_digests

ROWS = [
    {"patient": "P1", "label": 1, "probability": 0.8312, "set": "{1}", "out_of_cohort": 0, "reason": ""},
    {"patient": "P1_a", "label": 0, "probability": 0.2345, "set": "{0, 1}", "out_of_cohort": 1, "reason": "far away"},
]
SPEAKS = {
    "for": [{"name": "T1 3", "log_odds": 1.25, "area_mm2": 12.5}],
    "against": [{"name": "T1 5", "log_odds": -0.75, "area_mm2": None}],
}


def write_volume(path, values):
    path.parent.mkdir(parents=True, exist_ok=True)
    volume = nib.Nifti1Image(np.asarray(values, np.float32), np.diag([2.0, 2.0, 3.0, 1.0]))
    volume.header["descrip"] = b"Doe, Jane"
    nib.save(volume, path)


@pytest.fixture
def folder(tmp_path):
    """An inference's output of two patients, the id of one the beginning of the other's, with images and a trace."""
    out, random = tmp_path / "out", np.random.default_rng(0)
    write_csv(out / "predictions.csv", ROWS)
    cases = []
    for row in ROWS:
        name = row["patient"]
        write_json(out / f"patients/{name}.json", {"patient": name, "positive_class": "rich", **SPEAKS})
        Image.fromarray(random.integers(0, 255, (8, 8, 3), np.uint8)).save(out / f"patients/{name}_overlay.png")
        maps = np.zeros((6, 5, 4, 2))
        maps[2, 3, 1, 0], maps[1, 1, 2, 0], maps[4, 4, 3, 1] = 0.5, -0.25, 0.125
        write_volume(out / f"patients/{name}_contributions.nii.gz", maps)
        for kind in ("t1", "t2"):
            write_volume(tmp_path / f"data/{name}/{kind}.nii.gz", random.uniform(1, 99, (6, 5, 4)))
        files = [{"of": "image", "file": f"{name}/{kind}.nii.gz", "sha256": ""} for kind in ("t1", "t2")]
        cases.append({"patient": name, "inputs": files})
    write_json(out / "trace.json", {"cases": cases, "places": {"dataset_dir": str(tmp_path / "data")}})
    return out


def page(folder, name):
    return (folder / "report" / f"{name}.html").read_text(encoding="utf-8")


def text_of(html):
    return " ".join(unescape(re.sub(r"<[^>]+>", " ", re.sub(r"<script.*?</script>", " ", html, flags=re.S))).split())


def volumes_of(html):
    return json.loads(re.search(r'<script type="application/json" id="volumes">(.*?)</script>', html, re.S)[1])


@pytest.fixture
def stub(tmp_path):
    """Stands in for niivue."""
    path = tmp_path / "niivue.umd.js"
    path.write_text('(function(exports){exports.niivue = {}; "</script>"})(globalThis)')
    return path


def test_a_page_holds_its_patients_numbers_with_their_files_and_nobody_elses(folder, stub):
    pages = write_patient_pages(folder, niivue=stub)
    assert [path.name for path in pages] == ["P1.html", "P1_a.html", "index.html"]
    html = page(folder, "P1")
    text = text_of(html)
    assert "The probability of rich is 0.831 (from predictions.csv)." in text
    assert all(part in text for part in ("T1 3 for +1.250", "T1 5 against -0.750", "from patients/P1.json", "{1}"))
    assert "P1_a" not in text and "unlike the training" not in text
    other = text_of(page(folder, "P1_a"))
    assert "unlike the training patients" in other and "Reason: far away" in other and "out of cohort yes" in other
    pictures = re.findall(r'src="data:image/png;base64,([^"]+)"', html)
    assert [base64.b64decode(p) for p in pictures] == [(folder / "patients/P1_overlay.png").read_bytes()]
    assert html.count("<script") == 3 and "<\\/script>" in html and "://" not in html
    index = page(folder, "index")
    assert 'href="P1_a.html"' in index and "far away" in index and "0.831" in index


def test_the_viewer_holds_images_and_a_map_for_each_on_their_own_grid_without_the_header(folder, stub):
    write_patient_pages(folder, niivue=stub, patients=["P1"])
    found = volumes_of(page(folder, "P1"))
    names = [(volume["name"], volume["kind"], volume["image"]) for volume in found]
    assert names == [
        ("contributions, image 1", "signed", 0),
        ("contributions, image 2", "signed", 1),
        ("image 1", "image", 0),
        ("image 2", "image", 1),
    ]
    decoded = [gzip.decompress(base64.b64decode(volume["data"])) for volume in found]
    assert not any(b"Doe" in data for data in decoded)
    first = nib.Nifti1Image.from_bytes(decoded[0])
    expected = np.asanyarray(nib.load(folder / "patients/P1_contributions.nii.gz").dataobj)[..., 0]
    assert np.allclose(first.get_fdata(), expected, atol=1e-4) and np.allclose(first.affine, np.diag([2, 2, 3, 1]))
    assert found[0]["place"] == [4.0, 6.0, 3.0] and found[0]["signed"]
    assert found[0]["most"] == found[1]["most"]  # one scale: a weak map looks weak
    image = nib.Nifti1Image.from_bytes(decoded[2]).get_fdata()
    source = nib.load(folder.parent / "data/P1/t1.nii.gz").get_fdata()
    assert image.max() == 255 and np.corrcoef(image.ravel(), source.ravel())[0, 1] > 0.999


def test_without_niivue_or_images_the_page_says_what_to_do(folder, stub, monkeypatch):
    monkeypatch.setattr("shared.apps.report.viewer.find_spec", lambda name: None)
    write_patient_pages(folder)
    html = page(folder, "P1")
    assert "install nilearn" in html and "--niivue FILE" in html and "<script" not in html and "<img" in html
    (folder / "trace.json").unlink()
    write_patient_pages(folder, niivue=stub)
    assert "Give --dataset_dir" in page(folder, "P1")
    images = [f"P1/{kind}.nii.gz" for kind in ("t1", "t2")]
    cohort = {"modalities": ["T1", "T2"], "testing": [{"patient": "P1", "image": images}]}
    write_json(folder.parent / "data/datalist.json", cohort)
    write_patient_pages(folder, niivue=stub, dataset_dir=folder.parent / "data")
    assert [v["name"] for v in volumes_of(page(folder, "P1")) if v["kind"] == "image"] == ["T1", "T2"]
    with pytest.raises(DataError, match=r"is not niivue's dist"):
        niivue_source(folder / "predictions.csv")


def test_what_does_not_fit_is_told_and_a_large_image_is_thinned(folder):
    image = folder.parent / "data/P1/t1.nii.gz"
    write_volume(image, np.random.default_rng(0).uniform(1, 99, (40, 40, 40)))
    volumes, told = packed_volumes([("T1", image)], [], [10**6])
    whole = len(volumes[0]["data"])
    assert not told and whole > 40000
    volumes, told = packed_volumes([("T1", image)], [], [whole - 1])
    thinned = nib.Nifti1Image.from_bytes(gzip.decompress(base64.b64decode(volumes[0]["data"])))
    assert thinned.shape == (20, 20, 20) and np.allclose(thinned.affine, np.diag([4, 4, 6, 1]))
    assert packed_volumes([("T1", image)], [], [100]) == (
        [],
        ["T1 is left out of the viewer: the page would be too large."],
    )


@pytest.mark.parametrize("name", ["<b>", "../x", "a/b", "index", 'x" onload="1', "</script>"])
def test_an_odd_id_is_escaped_in_the_page_and_its_name(tmp_path, stub, name):
    write_csv(tmp_path / "predictions.csv", [ROWS[0] | {"patient": name, "reason": "<i>why</i>"}])
    write_volume(tmp_path / "t1.nii.gz", np.ones((3, 3, 3)))
    inputs = [{"of": "image", "file": "t1.nii.gz", "sha256": ""}]
    cases = [{"patient": name, "inputs": inputs}]
    write_json(tmp_path / "trace.json", {"cases": cases, "places": {"dataset_dir": str(tmp_path)}})
    path, index = write_patient_pages(tmp_path, niivue=stub)
    assert path.parent == tmp_path / "report" and re.fullmatch(r"[\w-]+\.html", path.name) and path != index
    for found in (path, index):
        html = found.read_text()
        assert "<b>" not in html and "<i>" not in html and 'onload="1' not in html and name in text_of(html)
    assert path.read_text().count("<script") == 3 == path.read_text().count("</script>")


def test_names_of_pages_differ_where_a_file_system_takes_ids_for_one():
    names = page_names(["P1", "p1", "a b", "a_b", "a/b", "sub-01", ""])
    assert len({name.casefold() for name in names.values()}) == 7 and names["sub-01"] == "sub-01.html"


def test_pseudonyms_leave_no_id_in_any_page(folder, stub):
    write_csv(folder / "biomarkers.csv", [{"patient": "P1", "biomarker": "like P1_a", "log_odds": 0.5}])
    write_json(folder / "patients/P1.json", {"patient": "P1", "positive_class": "rich", "images": [{"note": "P1"}]})
    write_csv(folder / "patients/P1_signs.csv", [{"sign": 1, "file": "P1_overlay.png"}])
    write_csv(folder / "failures.csv", [{"patient": "P1", "name": "P1", "picture": "patients/P1_overlay.png"}])
    write_patient_pages(folder, niivue=stub)  # pages with ids, which must go
    pages = write_patient_pages(folder, niivue=stub, pseudonyms=True)
    assert sorted(path.name for path in (folder / "report").iterdir()) == sorted(path.name for path in pages)
    for path in pages:
        html = re.sub(r'"data": "[^"]+"', "", path.read_text())
        assert not re.search(r"(?<!\w)P1", html), path
        assert "<img" not in html
    with (folder / "pseudonyms.csv").open(newline="") as file:
        known = {row["patient"]: row["pseudonym"] for row in csv.DictReader(file)}
    assert sorted(known.values()) == ["patient-001", "patient-002"]
    assert "0.831" in text_of(page(folder, known["P1"]))


def test_ids_of_digits_alone_are_in_no_files_name_with_pseudonyms(tmp_path):
    rows = [{"patient": name, "label": 0, "probability": p} for name, p in (("0815", 0.25), ("12 b", 0.5))]
    write_csv(tmp_path / "predictions.csv", rows)
    for row in rows:
        write_csv(tmp_path / f"patients/{row['patient']}_signs.csv", [{"sign": 1, "value": 2}])
    pages = write_patient_pages(tmp_path, pseudonyms=True)
    assert len(pages) == 3 and not any(re.search(r"0815|12 b", path.read_text()) for path in pages)
    assert any("_signs.csv" in path.read_text() for path in pages)
    plain = write_patient_pages(tmp_path)
    assert plain[0].name == "0815.html" and "The probability of class 1 is 0.250" in text_of(page(tmp_path, "0815"))


def test_seeds_of_a_cross_validation_are_no_images_and_features_no_table(tmp_path):
    rows = [{"seed": seed, "fold": 0, "patient": "P1", "label": 1, "probability": 0.5 + seed / 4} for seed in (0, 1)]
    write_csv(tmp_path / "predictions.csv", rows)
    write_csv(tmp_path / "embeddings.csv", [{"patient": "P1", "brain_0": 0.123}])
    write_patient_pages(tmp_path)
    text = text_of(page(tmp_path, "P1"))
    assert "P1: 2 predictions, 0.625 on average" in text and "brain_0" not in text


def test_patches_are_shown_with_map_and_box_and_their_balance(tmp_path):
    rows = [{"image": f"HP/{k}.png", "patient": "S1", "label": "", "probability": 0.25 * k} for k in (1, 2)]
    write_csv(tmp_path / "predictions.csv", rows)
    patch = {"image": "HP/1.png", "patient": "S1", "class": "HP", "probability": 0.75, "overlay": "overlays/1.png"}
    patch |= {"margin": 0.5, "for": 0.875, "against": -0.125, "bias": -0.25}
    other = {"image": "HP/2.png", "patient": "S1", "class": "HP", "probability": 0.5}
    write_json(tmp_path / "boxes.json", {"patches": [patch, other, {"image": "x", "patient": "S2", "class": "SSA"}]})
    for name in ("overlays/1.png", "data/HP/2.png"):
        (tmp_path / name).parent.mkdir(parents=True)
        Image.fromarray(np.full((4, 4, 3), len(name), np.uint8)).save(tmp_path / name)
    write_patient_pages(tmp_path, dataset_dir=tmp_path / "data")
    html = page(tmp_path, "S1")
    text = text_of(html)
    assert "S1: 2 images, 0.375 on average" in text and "1.png for +0.500 HP 0.875 -0.125 -0.250" in text
    assert html.count("<img") == 2 and "with map and box of HP 0.750" in text and "2.png as it was read" in text


def test_the_terms_of_an_additive_answer_and_what_parts_answer_alone(tmp_path):
    row = {"patient": "G1", "label": 1, "probability": 0.75, "unimodal_image": 0.25, "mlp": 0.5, "unimodal_brain": ""}
    write_csv(tmp_path / "predictions.csv", [row])
    terms = {"patient": "G1", "logit": 0.5, "bias": 0.25, "term_image": -0.5, "term_age": 0.75}
    write_csv(tmp_path / "additive.csv", [terms])
    write_patient_pages(tmp_path)
    text = text_of(page(tmp_path, "G1"))
    assert "age for +0.750" in text and "image against -0.500" in text and "with the bias (0.250)" in text
    assert "image against -1.099 0.250" in text and "no summands" in text


def test_a_folder_without_predictions_and_an_unknown_patient_are_refused(folder, tmp_path):
    with pytest.raises(DataError, match="holds no predictions"):
        write_patient_pages(tmp_path / "data")
    with pytest.raises(DataError, match="holds nothing of P9"):
        write_patient_pages(folder, patients=["P9"])
    with pytest.raises(DataError, match="is no folder"):
        main([str(tmp_path / "none")])


def test_the_command_writes_pages_and_checks_a_trace(folder, stub, capsys):
    main([str(folder), "--niivue", str(stub), "--patients", "P1"])
    assert "(1 pages)" in capsys.readouterr().out and (folder / "report/P1.html").is_file()
    shared = {"model": {}, "configs": {}, "settings": {}, "transforms": [], "versions": {}}
    data = folder.parent / "data"
    image = {"of": "image", "file": "P1/t1.nii.gz", "sha256": sha256(data / "P1/t1.nii.gz")}
    cases = [{"patient": "P1", "inputs": [image], "values": {}}]
    write_json(folder / "trace.json", with_digests({**shared, "cases": cases}))
    assert main([str(folder), "--check-trace", str(data)]) == 0
    write_volume(data / "P1/t1.nii.gz", np.zeros((6, 5, 4)))
    assert main([str(folder), "--check-trace", str(data)]) == 1
    assert "P1: image P1/t1.nii.gz has changed since it was predicted" in capsys.readouterr().out


BROWSER = shutil.which("chromium") or shutil.which("google-chrome")


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="no Chromium on this machine")
@pytest.mark.skipif(niivue_source() is None, reason="no nilearn with niivue")
def test_a_browser_shows_the_volumes_without_network_or_errors(folder, tmp_path):
    write_patient_pages(folder, patients=["P1"])
    flags = ["--headless", "--no-sandbox", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"]
    flags += ["--host-resolver-rules=MAP * ~NOTFOUND", "--enable-logging=stderr", f"--user-data-dir={tmp_path / 'b'}"]
    flags += ["--virtual-time-budget=20000", "--dump-dom"]
    command = [BROWSER, *flags, (folder / "report/P1.html").as_uri()]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
    assert "CONSOLE" not in ended.stderr
    assert 'data-viewer="ready"' in ended.stdout
