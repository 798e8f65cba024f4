"""Build a tract atlas (.npz) from a tractogram and a parcellation: which regions are joined, and through which voxels.

The tractogram is a .trk, .tck or DSI Studio .tt.gz file in the parcellation's space, as a rule MNI152; the parcellation
is a NIfTI of whole numbers. A streamline joins the two regions in which its ends lie, or which are nearest to them
within --endpoint-tolerance; pairs joined by --min-streamlines or more become tracts. The probability of a tract at a
voxel of the 2 mm MNI152 grid (91 x 109 x 91, RAS) is the share of its streamlines that run through it. The number of
streamlines is stored beside it: under 20, every voxel of a tract has a probability above 0.05.

Region names are read from --names (lines of "label name ..."), or from the text file beside the parcellation
(aal.nii.txt beside aal.nii.gz) where there is one. For AAL90 with the HCP population streamlines of DSI Studio:

    python scripts/build_tract_atlas.py ICBM152_adult.tt.gz aal.nii.gz --labels 90 --output data/glioma_idh/atlas.npz
"""

from __future__ import annotations

import argparse
from pathlib import Path

from shared.apps.preparation.files import positive_int, run_script, script_parser, write_manifest
from shared.data.tables import decode
from shared.digests import sha256
from shared.errors import DataError
from shared.io import disguise


def read_names(path: Path | None, parcellation: Path) -> dict[int, str] | None:
    """Names by label from lines of "label name ..." (UTF-8, UTF-16 or Windows-1252); None where there is no file."""
    if path is None:
        path = parcellation.with_name(parcellation.name.removesuffix(".gz") + ".txt")
        if not path.is_file():
            return None
    if not path.is_file():
        raise DataError(f"{path}: no such file of region names")
    rows = [line.split() for line in decode(path.read_bytes(), path)[0].splitlines()]
    names = {int(row[0]): row[1] for row in rows if len(row) >= 2 and row[0].isdigit()}
    if not names:
        raise DataError(f'{path}: has no line "label name"; give region names as "1 Precentral_L"')
    return names


def build(
    tractogram: Path,
    parcellation: Path,
    output: Path,
    *,
    labels: int | None,
    names: Path | None,
    min_streamlines: int,
    endpoint_tolerance: float,
    passing: bool,
) -> dict:
    """Build the atlas, write it and its manifest (``<output>.json``), print its figures. Returns these."""
    import nibabel as nib
    import numpy as np

    from shared.apps.preparation.streamlines import read_streamlines
    from shared.data.brain.atlas import TractAtlas
    from shared.data.checks import orientation_problem

    if output.suffix != ".npz":
        raise DataError(f"--output {output}: an atlas is written as .npz; name the file so")
    try:
        if problem := disguise(parcellation):
            raise DataError(f"{parcellation}: {problem}")
        image = nib.load(parcellation)
        if problem := orientation_problem(image.header):
            raise DataError(f"{parcellation}: {problem}")
        volume = np.asarray(image.dataobj)
    except FileNotFoundError as error:
        raise DataError(f"{parcellation}: no such parcellation; give a NIfTI file") from error
    except (nib.filebasedimages.ImageFileError, OSError, EOFError, ValueError) as error:
        raise DataError(f"{parcellation}: cannot be read as NIfTI ({error}); check that the file is whole") from error
    if volume.size != np.prod(volume.shape[:3]) or volume.ndim < 3:
        raise DataError(
            f"{parcellation}: has the shape {' x '.join(map(str, volume.shape))}, a parcellation has one label a voxel "
            "(x, y, z); of a probabilistic atlas take the map of the most probable labels (often named maxprob)"
        )
    region_names = read_names(names, parcellation)
    streamlines = read_streamlines(tractogram)
    atlas = TractAtlas.from_streamlines(
        streamlines,
        volume.reshape(volume.shape[:3]),
        image.affine,
        labels=labels,
        names=region_names,
        min_streamlines=min_streamlines,
        endpoint_tolerance=endpoint_tolerance,
        passing=passing,
        source=str(output),
    )
    atlas.save(output)
    figures = {"read_streamlines": len(streamlines), **atlas.summary()}
    write_manifest(
        output.parent,
        file=output.name + ".json",
        sources={path.name: sha256(path) for path in (tractogram, parcellation)},
        atlas=figures,
        passing=passing,
    )
    alone = [atlas.names[r] for r in sorted(set(range(atlas.num_regions)) - set(atlas.pairs.ravel().tolist()))]
    print(
        f"{output}: {figures['tracts']} tracts of {figures['streamlines']} "
        f"{'joined pairs' if passing else 'streamlines'} ({len(streamlines)} streamlines read)\n"
        f"  regions: {figures['regions']}, with a tract: {figures['regions_with_tract']}"
        + (f" (without: {', '.join(alone)})" if alone else "")
        + f"\n  voxels of a tract: {figures['smallest_tract']} to {figures['largest_tract']}, median "
        f"{figures['median_voxels']:g} ({figures['median_voxels_outside_regions']:g} outside the regions)\n"
        f"  streamlines of a tract: median {figures['median_streamlines']:g}; "
        f"under 20: {figures['under_20_streamlines']} tracts"
    )
    return figures


def millimetres(text: str) -> float:
    """Type of a distance: a number of at least 0."""
    value = float(text)
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"must be 0 or more, got {text}")
    return value


def main(arguments: list[str] | None = None) -> int:
    """Parse the command line and build."""
    parser = script_parser(__doc__)
    parser.add_argument("tractogram", type=Path, help=".trk, .tck or .tt.gz")
    parser.add_argument("parcellation", type=Path, help="NIfTI of whole numbers, in the tractogram's space")
    parser.add_argument("--output", type=Path, required=True, help="the .npz to write")
    parser.add_argument("--labels", type=positive_int, help="take this many labels, the smallest ones (default: all)")
    parser.add_argument("--names", type=Path, help='text file of lines "label name" (default: beside the parcellation)')
    parser.add_argument("--min-streamlines", type=positive_int, default=3, help="of a tract (default: %(default)s)")
    parser.add_argument(
        "--endpoint-tolerance",
        type=millimetres,
        default=2.0,
        help="mm from an end to its region (default: %(default)s)",
    )
    parser.add_argument(
        "--passing", action="store_true", help="join the regions a streamline runs through, not only those at its ends"
    )
    given = vars(parser.parse_args(arguments))
    return run_script(lambda: build(**given))
