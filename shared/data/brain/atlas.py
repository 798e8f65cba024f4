"""The atlas of a brain network: regions (nodes) and the probability maps of the tracts (edges) that join them."""

from __future__ import annotations

import hashlib
import os
import zipfile
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from shared.data.brain.mni import MNI_SHAPE, mni_affine
from shared.data.grids import same_grid
from shared.data.tables import some
from shared.errors import DataError
from shared.io import atomic_path, disguise

if TYPE_CHECKING:
    from scipy.sparse import csr_array

_ARRAYS = ("pairs", "counts", "starts", "voxels", "probabilities", "regions", "affine", "names")


class TractAtlas:
    """Regions of a grid and the tracts between them: a sparse matrix of tracts x voxels.

    Args:
        pairs: the two regions of every tract, numbered from 0, the smaller first; no pair twice.
        counts: streamlines that each tract was made of.
        starts: where each tract's voxels begin, and their number at the end.
        voxels: flat (C order) index of the tracts' voxels, one tract after another, ascending within each.
        probabilities: share of the tract's streamlines that run through the voxel, above 0 up to 1.
        regions: the grid: 0 outside the regions, r + 1 in region r.
        affine: voxel to mm (RAS).
        names: of the regions.
        source: what to call it in messages, a file's name as a rule.

    Shape:
        - pairs ``[E, 2]``, counts ``[E]``, starts ``[E + 1]``, voxels and probabilities ``[N]``, regions ``[X, Y, Z]``,
          affine ``[4, 4]``, names ``[R]``

    Raises:
        DataError: with everything that does not fit together, such as a tract or a region without a voxel.

    Example:
        >>> regions = np.array([1, 0, 0, 2]).reshape(4, 1, 1)
        >>> lines = [np.array([[0.0, 0, 0], [6, 0, 0]])] * 3
        >>> atlas = TractAtlas.from_streamlines(lines, regions, np.diag([2, 2, 2, 1]), shape=(4, 1, 1),
        ...                                     affine=np.diag([2, 2, 2, 1]), names=["left", "right"])
        >>> atlas.num_regions, atlas.num_tracts, atlas.edge_index.tolist(), atlas.tract(0)[0].tolist()
        (2, 1, [[0], [1]], [0, 1, 2, 3])
    """

    not_settings = ("source",)  # for messages

    def __init__(
        self,
        *,
        pairs: Any,
        counts: Any,
        starts: Any,
        voxels: Any,
        probabilities: Any,
        regions: Any,
        affine: Any,
        names: Sequence[str],
        source: str = "the tract atlas",
    ):
        self.pairs = np.asarray(pairs, dtype=np.int64).reshape(-1, 2)
        self.counts = np.asarray(counts, dtype=np.int64)
        self.starts = np.asarray(starts, dtype=np.int64)
        self.voxels = np.asarray(voxels, dtype=np.int64)
        self.probabilities = np.asarray(probabilities, dtype=np.float32)
        self.regions = np.asarray(regions)
        self.affine = np.asarray(affine, dtype=np.float64)
        self.names = [str(name) for name in names]
        self.source = source
        if problems := atlas_problems(self):
            raise DataError([f"{source}: {problem}" for problem in problems])

    @property
    def shape(self) -> tuple[int, int, int]:
        """Voxels of the grid along its axes."""
        return self.regions.shape

    @property
    def num_regions(self) -> int:
        """R, nodes of the brain network."""
        return len(self.names)

    @property
    def num_tracts(self) -> int:
        """E, edges of the brain network."""
        return len(self.pairs)

    @property
    def edge_index(self) -> np.ndarray:
        """The regions of every tract, ``[2, E]``; each undirected pair is there once."""
        return np.ascontiguousarray(self.pairs.T)

    @cached_property
    def matrix(self) -> csr_array:
        """Probabilities as a sparse matrix ``[E, X * Y * Z]``."""
        from scipy.sparse import csr_array

        shape = (self.num_tracts, self.regions.size)
        return csr_array((self.probabilities, self.voxels, self.starts), shape=shape)

    @cached_property
    def centres(self) -> np.ndarray:
        """Mean position of each region's voxels, mm, ``[R, 3]``."""
        from scipy.ndimage import center_of_mass

        regions = range(1, self.num_regions + 1)
        voxels = np.array(center_of_mass(self.regions > 0, self.regions, regions))
        return voxels @ self.affine[:3, :3].T + self.affine[:3, 3]

    @cached_property
    def digest(self) -> str:
        """SHA-256 of all arrays: another atlas has another one, with as many tracts, too."""
        found = hashlib.sha256()
        for name in _ARRAYS:
            values = np.ascontiguousarray(getattr(self, name))
            found.update(f"{name} {values.dtype} {values.shape}".encode())
            found.update(" ".join(self.names).encode() if name == "names" else values.tobytes())
        return found.hexdigest()

    def tract(self, edge: int) -> tuple[np.ndarray, np.ndarray]:
        """Flat voxel indices and probabilities of one tract."""
        part = slice(self.starts[edge], self.starts[edge + 1])
        return self.voxels[part], self.probabilities[part]

    def volume(self, values: Any) -> np.ndarray:
        """A value for every tract ``[E]``, spread over its voxels by their probabilities and added up ``[X, Y, Z]``.

        Example:
            ``atlas.volume(np.eye(atlas.num_tracts)[5])`` is the probability map of tract 5.
        """
        return (self.matrix.T @ np.asarray(values, dtype=np.float64)).reshape(self.shape)

    def check_grid(self, shape: Sequence[int], affine: Any = None, *, what: str = "the image") -> None:
        """Refuse a volume of another grid.

        Args:
            shape: of its last three axes.
            affine: voxel to mm; None: not known.
            what: whose it is, for the message.

        Raises:
            DataError: shapes or affines differ.
        """
        if tuple(shape) != tuple(self.shape):
            raise DataError(
                f"{what} must lie on the atlas's grid {_by(self.shape)} ({self.source}), but has {_by(shape)} voxels; "
                "prepare the case (MNI152, 2 mm), or build the atlas on the images' grid"
            )
        if affine is not None and not same_grid((shape, affine), (self.shape, self.affine)):
            raise DataError(
                f"{what} must lie on the atlas's grid, but its voxels lie elsewhere in space: affine "
                f"{np.round(np.asarray(affine), 3).tolist()}, the atlas's ({self.source}) "
                f"{np.round(self.affine, 3).tolist()}; reorient to RAS and resample, or build the atlas on that grid"
            )

    def summary(self) -> dict[str, float]:
        """Figures of the atlas: tracts, regions, how many of them have a tract, voxels and streamlines of a tract."""
        sizes = np.diff(self.starts)
        white = np.add.reduceat((self.regions.ravel()[self.voxels] == 0).astype(np.int64), self.starts[:-1])
        return {
            "tracts": self.num_tracts,
            "regions": self.num_regions,
            "regions_with_tract": len(np.unique(self.pairs)),
            "streamlines": int(self.counts.sum()),
            "median_streamlines": float(np.median(self.counts)),
            "median_voxels": float(np.median(sizes)),
            "smallest_tract": int(sizes.min()),
            "largest_tract": int(sizes.max()),
            "median_voxels_outside_regions": float(np.median(white)),
            "under_20_streamlines": int((self.counts < 20).sum()),
        }

    def save(self, path: str | os.PathLike) -> None:
        """Write it as a compressed .npz; the same atlas gives the same bytes.

        Raises:
            DataError: the path does not end in ``.npz``.
        """
        path = Path(path)
        if path.suffix != ".npz":
            raise DataError(f"{path}: an atlas is written as .npz; name the file so")
        small = {"pairs": np.int32, "counts": np.int32, "voxels": np.int32, "regions": np.int16}
        arrays = {name: np.asarray(getattr(self, name)) for name in _ARRAYS}
        arrays = {name: array.astype(small.get(name, array.dtype)) for name, array in arrays.items()}
        with atomic_path(path) as temporary:
            np.savez_compressed(temporary, **arrays)

    @classmethod
    def load(cls, path: str | os.PathLike) -> TractAtlas:
        """Read one that :meth:`save` wrote.

        Raises:
            DataError: no such file, another kind of file, or one whose arrays do not fit together.
        """
        path = Path(path)
        if not path.is_file():
            raise DataError(f"{path}: no such tract atlas; make one with scripts/build_tract_atlas.py")
        if found := disguise(path):
            raise DataError(f"{path}: {found}")
        try:
            with np.load(path, allow_pickle=False) as content:
                missing = [name for name in _ARRAYS if name not in content]
                arrays = {} if missing else {name: content[name] for name in _ARRAYS}
        except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
            raise DataError(f"{path}: cannot be read as an .npz ({error}); build the atlas again") from error
        if missing:
            raise DataError(
                f"{path}: lacks {', '.join(missing)}, so it is no tract atlas; scripts/build_tract_atlas.py makes one"
            )
        return cls(**arrays, source=str(path))

    @classmethod
    def from_streamlines(
        cls,
        streamlines: Sequence[np.ndarray],
        parcellation: Any,
        parcellation_affine: Any,
        *,
        shape: Sequence[int] = MNI_SHAPE,
        affine: Any = None,
        labels: int | None = None,
        names: Sequence[str] | dict[int, str] | None = None,
        min_streamlines: int = 3,
        endpoint_tolerance: float = 2.0,
        passing: bool = False,
        source: str = "the tract atlas",
    ) -> TractAtlas:
        """Count streamlines between the regions of a parcellation.

        A streamline belongs to the pair of regions in which its ends lie, or which are nearest to them within the
        tolerance. A tract's probability at a voxel is the share of its streamlines that run through it.

        Args:
            streamlines: ``[n_i, 3]`` each, mm in the parcellation's world.
            parcellation: label of every voxel ``[X', Y', Z']``, on a grid of its own.
            parcellation_affine: its voxel to mm.
            shape: of the atlas's grid.
            affine: its voxel to mm; None: the 2 mm MNI152 grid's.
            labels: take this many labels, the smallest ones; None: all.
            names: of the regions taken, in the order of their labels, or by label.
            min_streamlines: pairs with fewer have no tract.
            endpoint_tolerance: mm from an end to the nearest voxel centre of its region.
            passing: count the regions a streamline runs through, too; such a pair's tract is the part of the
                streamline between them.
            source: what to call it in messages.

        Raises:
            DataError: the parcellation has fewer labels than asked for, a region has no voxel on the grid, or no pair
                has enough streamlines.
        """
        from shared.data.brain.tracts import build_tracts, flat_voxels, number_regions

        labelled, values = number_regions(parcellation, labels)
        affine = mni_affine() if affine is None else np.asarray(affine, float)
        parcellation_affine = np.asarray(parcellation_affine, float)
        tracts = build_tracts(
            streamlines,
            labelled,
            parcellation_affine,
            shape=shape,
            affine=affine,
            min_streamlines=min_streamlines,
            tolerance=endpoint_tolerance,
            passing=passing,
        )
        if not len(tracts.pairs):
            raise DataError(
                f"no two regions are joined by {min_streamlines} streamlines ({len(streamlines)} streamlines, "
                f"{len(values)} regions, tolerance {endpoint_tolerance:g} mm): tractogram and parcellation must lie in "
                "the same space; check both in a viewer, or lower --min-streamlines"
            )
        centres = (
            np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1) @ affine[:3, :3].T + affine[:3, 3]
        )
        flat = flat_voxels(centres, labelled.shape, parcellation_affine)
        if not isinstance(names, dict):
            names = dict(zip(values, names or [f"region {value}" for value in values], strict=True))
        return cls(
            **tracts._asdict(),
            regions=np.where(flat >= 0, labelled.ravel()[flat], 0).astype(np.int16),
            affine=affine,
            names=[names.get(value, f"region {value}") for value in values],
            source=source,
        )


def tract_pairs(atlas_file: str | os.PathLike, *, num_regions: int, num_tracts: int) -> dict[str, Any]:
    """Regions and tracts that a network is built for: the atlas's, or where there is no file, invented ones.

    Without data nothing is trained or predicted, but a network can be described, checked and exported.

    Args:
        atlas_file: that :meth:`TractAtlas.save` wrote, or no file at all.
        num_regions: R, without it.
        num_tracts: E, without it: pairs evenly among all of them.

    Returns:
        ``num_regions`` and ``edge_index``, two lists of E regions.

    Raises:
        DataError: the file is no atlas.

    Example:
        >>> tract_pairs("no/atlas.npz", num_regions=4, num_tracts=3)
        {'num_regions': 4, 'edge_index': [[0, 0, 1], [1, 3, 3]]}
    """
    if Path(atlas_file).is_file():
        atlas = TractAtlas.load(atlas_file)
        return {"num_regions": atlas.num_regions, "edge_index": atlas.edge_index.tolist()}
    rows, columns = np.triu_indices(num_regions, k=1)
    chosen = np.arange(num_tracts) * len(rows) // num_tracts
    return {"num_regions": num_regions, "edge_index": [rows[chosen].tolist(), columns[chosen].tolist()]}


def _by(shape: Sequence[int]) -> str:
    return " x ".join(str(n) for n in shape)


def atlas_problems(atlas: TractAtlas) -> list[str]:
    """Everything in an atlas that does not fit together; the caller says whose it is."""
    edges, size, count = len(atlas.pairs), atlas.regions.size, len(atlas.voxels)
    if atlas.regions.ndim != 3 or atlas.affine.shape != (4, 4) or not np.isfinite(atlas.affine).all():
        return [f"regions must be [X, Y, Z] and affine [4, 4], got {atlas.regions.shape} and {atlas.affine.shape}"]
    if not edges:
        return ["has no tract"]
    if len(atlas.counts) != edges or len(atlas.starts) != edges + 1 or len(atlas.probabilities) != count:
        return [
            f"pairs [E, 2], counts [E], starts [E + 1], voxels and probabilities [N] must agree: got {edges} pairs"
            f", {len(atlas.counts)} counts, {len(atlas.starts)} starts, {count} voxels, {len(atlas.probabilities)} "
            "probabilities"
        ]
    sizes = np.diff(atlas.starts)
    if atlas.starts[0] != 0 or atlas.starts[-1] != count or (sizes < 0).any():
        return [f"starts must ascend from 0 to the number of voxels {count}, got {atlas.starts[[0, -1]].tolist()}"]
    problems = []
    present = np.bincount(atlas.regions[atlas.regions > 0].ravel(), minlength=atlas.num_regions + 1)
    if len(present) > atlas.num_regions + 1 or atlas.regions.min() < 0:
        problems.append(
            f"regions must hold 0 to {atlas.num_regions} (as many as names), got {atlas.regions.min()} to "
            f"{atlas.regions.max()}"
        )
    if empty := [f"{name} ({r + 1})" for r, name in enumerate(atlas.names) if present[r + 1] == 0]:
        problems.append(f"{_some(empty, 'region')} without a voxel on the grid; take a finer grid or fewer labels")
    low, high = atlas.pairs.T
    if (low >= high).any() or low.min() < 0 or high.max() >= atlas.num_regions:
        problems.append(
            f"a pair must name two regions of 0 to {atlas.num_regions - 1}, the smaller first; got "
            f"{atlas.pairs[(low >= high) | (low < 0) | (high >= atlas.num_regions)][:3].tolist()}"
        )
    if len(np.unique(atlas.pairs, axis=0)) < edges:
        problems.append("a pair of regions has two tracts; join them")
    if empty := [f"tract {edge} {tuple(atlas.pairs[edge].tolist())}" for edge in np.flatnonzero(sizes == 0)]:
        problems.append(f"{_some(empty, 'tract')} without a voxel on the grid; leave them out or take a larger grid")
    if count and (atlas.voxels.min() < 0 or atlas.voxels.max() >= size):
        problems.append(f"voxels must lie in the grid (0 to {size - 1}), got up to {atlas.voxels.max()}")
    inner = np.setdiff1d(np.arange(1, count), atlas.starts)  # where a voxel follows one of the same tract
    if (atlas.voxels[inner] <= atlas.voxels[inner - 1]).any():
        problems.append("the voxels of a tract must ascend, each once")
    if not ((atlas.probabilities > 0) & (atlas.probabilities <= 1)).all():
        problems.append("probabilities must lie above 0 up to 1")
    if (atlas.counts < 1).any():
        problems.append("every tract must have a streamline")
    return problems


def _some(names: Sequence[str], kind: str) -> str:
    return f"{len(names)} {kind}{'s' if len(names) > 1 else ''} ({some(names)})"
