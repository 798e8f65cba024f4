import gzip
import io

import nibabel as nib
import numpy as np
import pytest
from scipy.io import savemat

from shared.apps.preparation.streamlines import read_streamlines
from shared.errors import DataError
from tests.support.tiny_brain import tiny_streamlines

TO_MNI = np.array([[-1.5, 0, 0, 40], [0, -1.5, 0, 50], [0, 0, 2.0, -60], [0, 0, 0, 1]])


def encode(lines):
    """The bytes of a DSI Studio track, written value by value; coordinates in voxels, steps under 4 voxels."""
    out = b""
    for line in lines:
        units = np.rint(np.asarray(line) * 32).astype(int)
        out += (3 * len(units)).to_bytes(4, "little")
        out += b"".join(int(v).to_bytes(4, "little", signed=True) for v in units[0])
        out += b"".join(int(v).to_bytes(1, "little", signed=True) for v in np.diff(units, axis=0).ravel())
    return np.frombuffer(out, dtype=np.uint8)[:, None]


def write_tiny_track(path, blocks, *, compress=True, **variables):
    names = ["track", *(f"track{i}" for i in range(1, len(blocks)))]
    content = {"dimension": [[90, 100, 80]], "voxel_size": [[1.5, 1.5, 2.0]], "trans_to_mni": TO_MNI.ravel()[None]}
    content |= dict(zip(names, blocks, strict=True)) | variables
    buffer = io.BytesIO()
    savemat(buffer, {k: v for k, v in content.items() if v is not None}, format="4")
    path.write_bytes(gzip.compress(buffer.getvalue()) if compress else buffer.getvalue())
    return path


def voxel_lines(count=3, seed=0):
    """Random walks on the format's 1/32 voxel raster."""
    rng = np.random.default_rng(seed)
    return [
        np.cumsum(np.vstack([rng.integers(200, 2000, 3), rng.integers(-127, 128, (9 + i, 3))]), 0) / 32
        for i in range(count)
    ]


@pytest.mark.parametrize("ending", ["trk", "tck"])
def test_what_nibabel_writes_is_read_in_mm(tmp_path, ending):
    lines = tiny_streamlines(each=2)
    affine = np.diag([2.0, 2, 2, 1])
    tractogram = nib.streamlines.Tractogram(lines, affine_to_rasmm=np.eye(4))
    header = {"voxel_to_rasmm": affine, "voxel_sizes": (2, 2, 2), "dimensions": (20, 20, 20), "voxel_order": "RAS"}
    nib.streamlines.save(tractogram, str(tmp_path / f"a.{ending}"), header=header if ending == "trk" else None)
    found = read_streamlines(tmp_path / f"a.{ending}")
    assert len(found) == len(lines)
    for got, wanted in zip(found, lines, strict=True):
        np.testing.assert_allclose(got, wanted, atol=1e-4)


@pytest.mark.parametrize(("name", "compress"), [("a.tt.gz", True), ("a.tt", False)])
def test_a_tiny_track_is_read_in_mm(tmp_path, name, compress):
    lines = voxel_lines()
    found = read_streamlines(write_tiny_track(tmp_path / name, [encode(lines)], compress=compress))
    assert len(found) == 3
    for got, voxels in zip(found, lines, strict=True):
        np.testing.assert_allclose(got, voxels @ TO_MNI[:3, :3].T + TO_MNI[:3, 3], atol=1e-4)


def test_the_blocks_of_a_large_file_are_read_in_their_order(tmp_path):
    lines = voxel_lines(12)
    found = read_streamlines(write_tiny_track(tmp_path / "a.tt.gz", [encode([line]) for line in lines]))
    assert [len(line) for line in found] == [len(line) for line in lines]


def test_single_points_are_left_out(tmp_path):
    lines = [voxel_lines()[0][:1], voxel_lines()[1]]
    assert len(read_streamlines(write_tiny_track(tmp_path / "a.tt.gz", [encode(lines)]))) == 1
    with pytest.raises(DataError, match="has no streamline of two points or more"):
        read_streamlines(write_tiny_track(tmp_path / "b.tt.gz", [encode(lines[:1])]))
    nib.streamlines.save(nib.streamlines.Tractogram([], affine_to_rasmm=np.eye(4)), str(tmp_path / "empty.tck"))
    with pytest.raises(DataError, match="has no streamline of two points or more"):
        read_streamlines(tmp_path / "empty.tck")


@pytest.mark.parametrize("cut", [3, 15, 20, -1])
def test_a_track_that_is_cut_off_is_refused(tmp_path, cut):
    path = write_tiny_track(tmp_path / "a.tt.gz", [encode(voxel_lines())[:cut]])
    with pytest.raises(DataError, match="is cut off or damaged"):
        read_streamlines(path)


def test_other_files_are_refused(tmp_path):
    with pytest.raises(DataError, match="no such tractogram"):
        read_streamlines(tmp_path / "none.trk")
    for name, content, message in (
        ("a.vtk", b"", "a tractogram ends in .trk, .tck, .tt.gz"),
        ("a.trk", b"TRACK", "cannot be read as a tractogram"),
        ("a.tck", b"nothing", "cannot be read as a tractogram"),
        ("a.tt.gz", b"nothing", "cannot be read as a DSI Studio .tt.gz file"),
        ("b.tt.gz", gzip.compress(b"x" * 90)[:-9], "cannot be read as a DSI Studio .tt.gz file"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError) as error:
            read_streamlines(tmp_path / name)
        assert message in str(error.value) and name in str(error.value)
    with pytest.raises(DataError, match="has no 'trans_to_mni', so its voxels cannot be placed in mm"):
        read_streamlines(write_tiny_track(tmp_path / "c.tt.gz", [encode(voxel_lines())], trans_to_mni=None))


def test_points_that_are_no_numbers_are_refused(tmp_path):
    path = write_tiny_track(tmp_path / "a.tt.gz", [encode(voxel_lines())], trans_to_mni=np.full((1, 16), np.nan))
    with pytest.raises(DataError, match="has points that are NaN or Inf"):
        read_streamlines(path)
