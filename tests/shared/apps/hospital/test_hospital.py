"""The hospital's part on one machine: phantoms as DICOM, and a server by DICOMweb."""

import json
import shutil
import socket
import subprocess
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

pytest.importorskip("highdicom")

from shared.apps.hospital import dicomweb, phantom_series
from shared.apps.phantoms.dicom import make_series, write_series
from shared.apps.preparation import patients
from shared.errors import DataError
from tests.support.tiny_dicom import OBLIQUE, series_affine, tiny_volume

ORTHANC = shutil.which("Orthanc") or shutil.which("Orthanc", path="/usr/sbin")
PLUGIN = next((path for path in Path("/usr/share/orthanc/plugins").glob("libOrthancDicomWeb.so*")), None)


@pytest.mark.parametrize(
    "url", ["http://pacs.example/dicom-web", "http://192.0.2.1:8042", "http://127.0.0.1.example/x", "x"]
)
def test_other_machines_are_refused(url):
    with pytest.raises(DataError, match="is not this machine"):
        dicomweb.check_address(url)


def test_this_machine_is_taken():
    for url in ("http://127.0.0.1:1/a", "http://localhost:1", "http://[::1]:80"):
        dicomweb.check_address(url)


@pytest.mark.skipif(ORTHANC is None or PLUGIN is None, reason="needs Orthanc (Debian: orthanc, orthanc-dicomweb)")
def test_orthanc_gives_back_what_it_was_sent(tmp_path, capsys):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folder = tmp_path / "series"
    write_series(folder, make_series(tiny_volume(0, (8, 8, 4))[0], series_affine()))
    settings = {"HttpPort": port, "RemoteAccessAllowed": False, "HttpBindAddresses": ["127.0.0.1"]}
    settings |= {"AuthenticationEnabled": False, "DicomServerEnabled": False, "Plugins": [str(PLUGIN)]}
    settings |= {"StorageDirectory": str(tmp_path / "store"), "IndexDirectory": str(tmp_path / "store")}
    settings |= {"DicomWeb": {"Enable": True, "Root": "/dicom-web/"}}
    (tmp_path / "orthanc.json").write_text(json.dumps(settings))
    with (tmp_path / "log").open("w") as log:
        server = subprocess.Popen([ORTHANC, str(tmp_path / "orthanc.json")], stdout=log, stderr=log)
        try:
            assert dicomweb.main([f"http://127.0.0.1:{port}/dicom-web", str(folder), "--wait", "120"]) == 0
        finally:
            server.terminate()
            server.wait(60)
    assert capsys.readouterr().out == "MR 'T1': 4 equal\n"


def test_phantoms_come_back_from_their_dicom(tmp_path):
    """A prepared folder, written as DICOM and prepared again, holds the same voxels and places."""
    data = tmp_path / "data"
    (data / "P1").mkdir(parents=True)
    volume, ball = tiny_volume(0)
    affine = series_affine(spacing=(1.5, 1.25, 3), **OBLIQUE)
    nib.save(nib.Nifti1Image(volume.astype(np.float32) / 7, affine), data / "P1" / "a.nii.gz")
    nib.save(nib.Nifti1Image(ball.astype(np.uint8), affine), data / "P1" / "m.nii.gz")
    case = {"patient": "P1", "image": ["P1/a.nii.gz"], "mask": "P1/m.nii.gz", "label": 1}
    (data / "datalist.json").write_text(json.dumps({"modalities": ["T1V"], "training": [case], "testing": []}))
    arguments = [str(data), str(tmp_path / "dicom"), "--labels", str(tmp_path / "labels.csv")]
    assert phantom_series.main(arguments) == 0 and (tmp_path / "labels.csv").read_text().split() == [
        "patient,label,test",
        "P1,1,0",
    ]
    assert (
        patients.main(
            [str(tmp_path / "dicom"), "--inference", "--output", str(tmp_path / "again"), "--modalities", "T1V"]
        )
        == 0
    )
    for name, expected, step in (("t1v", volume / 7, (volume.max() - volume.min()) / 7 / 4000), ("mask", ball, 0)):
        image = nib.as_closest_canonical(nib.load(tmp_path / "again" / "P1" / f"{name}.nii.gz"))
        first = nib.as_closest_canonical(nib.Nifti1Image(expected.astype(np.float32), affine))
        assert np.allclose(image.affine, first.affine, atol=1e-4)
        assert np.abs(image.get_fdata() - first.get_fdata()).max() <= step * 0.51
    assert phantom_series.main(arguments) == 2  # the folder is not empty
