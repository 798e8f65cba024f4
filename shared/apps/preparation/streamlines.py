"""Streamlines of a tractogram, in mm of its world (RAS): .trk and .tck through nibabel, and DSI Studio's .tt.gz."""

from __future__ import annotations

import gzip
import io
import os
import re
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from nibabel.streamlines import ArraySequence, Tractogram, load

from shared.errors import DataError
from shared.io import disguise

FORMATS = (".trk", ".tck", ".tt.gz", ".tt")
_SCALE = 32  # a tiny track's units to a voxel
_HEADER = 16  # bytes: count, x, y, z


def read_streamlines(path: str | os.PathLike) -> ArraySequence:
    """Read a tractogram; streamlines of fewer than two points are left out.

    Args:
        path: a .trk (TrackVis), .tck (MRtrix) or .tt.gz (DSI Studio) file.

    Returns:
        streamlines ``[n_i, 3]``, in mm.

    Raises:
        DataError: no such file, another ending, a file that cannot be read, no streamline, or points that are not
            finite.

    Example:
        >>> import tempfile, nibabel
        >>> path = tempfile.mkdtemp() + "/one.tck"
        >>> tractogram = nibabel.streamlines.Tractogram([np.eye(3)], affine_to_rasmm=np.eye(4))
        >>> nibabel.streamlines.save(tractogram, path)
        >>> len(read_streamlines(path)), read_streamlines(path)[0].shape
        (1, (3, 3))
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"{path}: no such tractogram; give a {', '.join(FORMATS[:3])} file")
    if not path.name.endswith(FORMATS):
        raise DataError(
            f"{path}: a tractogram ends in {', '.join(FORMATS[:3])}; convert it with your tracking software"
        )
    if found := disguise(path):
        raise DataError(f"{path}: {found}")
    if path.name.endswith(FORMATS[2:]):
        streamlines = read_tiny_track(path)
    else:
        try:
            streamlines = load(path).streamlines
        except Exception as error:  # nibabel raises whatever a broken header leads to
            raise DataError(
                f"{path}: cannot be read as a tractogram ({type(error).__name__}: {error}); is the file whole?"
            ) from error
    streamlines = streamlines[np.array([len(line) >= 2 for line in streamlines], dtype=bool)].copy()
    if not len(streamlines):
        raise DataError(f"{path}: has no streamline of two points or more; track again or give another tractogram")
    if not np.isfinite(streamlines.get_data()).all():
        raise DataError(f"{path}: has points that are NaN or Inf; export it again")
    return streamlines


def read_tiny_track(path: str | os.PathLike) -> ArraySequence:
    """Read DSI Studio's "tiny track", a gzipped MATLAB 4 file.

    Its variables: ``dimension`` and ``voxel_size`` of the tracked volume, ``trans_to_mni`` (voxel to mm, 4 x 4, row by
    row; needed here), and ``track`` (in large files ``track1``, ``track2``, ... after it), bytes that hold one
    streamline after another. A streamline of n points is, little-endian: uint32 3 n; the first point as 3 int32; the
    steps from each point to the next as 3 (n - 1) int8. Coordinates are in 1/32 voxel.

    Args:
        path: the file, gzipped or not.

    Returns:
        streamlines ``[n_i, 3]``, in mm.

    Raises:
        DataError: not such a file, or one that is cut off.
    """
    from scipy.io.matlab import MatReadError, loadmat

    content = Path(path).read_bytes()
    try:
        if content[:2] == b"\x1f\x8b":
            content = gzip.decompress(content)
        variables = loadmat(io.BytesIO(content))
        affine = variables["trans_to_mni"].reshape(4, 4).astype(np.float64)
        names = sorted((n for n in variables if re.fullmatch(r"track\d*", n)), key=lambda n: int(n[5:] or 0))
        blocks = [variables[name].ravel().view(np.uint8) for name in names]
    except KeyError as error:
        raise DataError(
            f"{path}: has no {error}, so its voxels cannot be placed in mm; save it with DSI Studio as .tt.gz"
        ) from error
    except (OSError, EOFError, ValueError, TypeError, zlib.error, MatReadError) as error:
        raise DataError(
            f"{path}: cannot be read as a DSI Studio .tt.gz file ({error}); check that it is whole"
        ) from error
    lines = [line for block in blocks for line in _decode(block, path)]
    return Tractogram(lines, affine_to_rasmm=affine).to_world().streamlines


def _decode(block: np.ndarray, path: str | os.PathLike) -> Iterator[np.ndarray]:
    """The streamlines of a block of bytes, in voxels."""
    position = 0
    while position < len(block):
        header = block[position : position + _HEADER]
        count = int(header[:4].view("<u4")[0]) if len(header) == _HEADER else 0
        steps = block[position + _HEADER : position + _HEADER + count - 3].view(np.int8)
        if count < 3 or count % 3 or len(steps) != count - 3:
            raise DataError(
                f"{path}: is cut off or damaged (the streamline at byte {position} of its tracks does not end); "
                "download or export it again"
            )
        points = np.concatenate([header[4:].view("<i4"), steps]).reshape(-1, 3).cumsum(axis=0)
        yield (points / _SCALE).astype(np.float32)
        position += _HEADER + count - 3
