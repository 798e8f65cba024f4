"""Near-duplicates: images of a cohort that show the same, whatever their compression, size or gain.

Two steps: a perceptual hash of 64 bits (Zauner, Implementation and Benchmarking of Perceptual Image Hash Functions,
2010: signs of the lowest frequencies of a cosine transform) finds candidates, the correlation of thumbnails decides.
Of a volume the slice with most of the mask is looked at: the region around the mask, and the whole slice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from shared.apps.audit.rows import AuditCohort, AuditRow
from shared.errors import DataError

SIDE = 64  # of a thumbnail
BITS = 8  # lowest frequencies along each axis
DISTANCE = 10  # bits of 64 that candidates may differ in
SAME, ALIKE = (0.9, 0.85), (0.85, 0.75)  # correlation of thumbnails, and of what they have beyond the cohort's mean
ENOUGH = 20  # thumbnails of which a mean is taken: brains on one grid are alike before any is a copy
SAME_OF_FEW = 0.95  # correlation, where there is no such mean
FLAT = 2.0  # grey levels of 255: a thumbnail that varies less shows nothing
MARGIN = 0.25  # of the mask's box, on each side
_BLOCK = 512


@dataclass(frozen=True)
class Pair:
    """Two images that show the same, or may (not ``same``): rows of the cohort, what was looked at, bits that differ.

    ``correlation`` is of the two thumbnails, ``own`` of what each has beyond the cohort's mean.
    """

    first: int
    other: int
    view: str
    distance: int
    correlation: float
    own: float
    same: bool


def perceptual_hash(thumbnails: np.ndarray) -> np.ndarray:
    """Hash of 64 bits of each picture: whether a low frequency is above the median of all.

    Args:
        thumbnails: grey.

    Shape:
        - thumbnails: ``[n, h, w]``; returns: uint64 ``[n]``

    Example:
        >>> x = np.random.default_rng(0).random((1, 64, 64))
        >>> bool((perceptual_hash(x) == perceptual_hash(3 * x + 7)).all())
        True
    """
    from scipy.fft import dctn

    low = dctn(thumbnails, axes=(1, 2), norm="ortho")[:, :BITS, :BITS].reshape(len(thumbnails), -1)
    above = low > np.median(low[:, 1:], axis=1, keepdims=True)
    above[:, 0] = False  # the mean grey, which a gain changes
    return np.packbits(above, axis=1).view(np.uint64)[:, 0]


def hash_pairs(first: np.ndarray, other: np.ndarray, distance: int = DISTANCE) -> Iterator[tuple[int, int, int]]:
    """Row of ``first``, later row of ``other``, and bits they differ in, where these are few; in blocks, all compared.

    Shape:
        - first, other: uint64 ``[n]``

    Example:
        >>> list(hash_pairs(np.array([0, 7, 1], np.uint64), np.array([0, 7, 1], np.uint64), 2))
        [(0, 2, 1), (1, 2, 2)]
    """
    for start in range(0, len(first), _BLOCK):
        block = np.bitwise_count(first[start : start + _BLOCK, None] ^ other[None, start:])
        rows, columns = np.nonzero(np.triu(block <= distance, k=1))
        for row, column in zip(rows.tolist(), columns.tolist(), strict=True):
            yield start + row, start + column, int(block[row, column])


def near_duplicates(thumbnails: np.ndarray, view: str, *, turned: bool = False) -> list[Pair]:
    """Pairs of pictures that show the same.

    Args:
        thumbnails: grey; NaN throughout: none of this row. Flat ones are not compared.
        view: what they show, for the pairs.
        turned: also compare with the flipped and turned ones.

    Shape:
        - thumbnails: ``[n, 64, 64]``
    """
    kept = np.flatnonzero(thumbnails.reshape(len(thumbnails), -1).std(axis=1) >= FLAT)  # NaN is not kept
    if len(kept) < 2:
        return []
    flat = _unit(thumbnails[kept].astype(np.float32).reshape(len(kept), -1))
    mean, least = np.zeros(SIDE * SIDE, np.float32), SAME_OF_FEW
    if len(kept) >= ENOUGH:
        mean, least = flat.mean(axis=0), SAME[0]
    hashes = _hashes(flat, _TURNS[0])
    found: dict[tuple[int, int], Pair] = {}
    for turn in _TURNS if turned else _TURNS[:1]:
        for i, j, distance in hash_pairs(hashes, _hashes(flat, turn)):
            one, other = flat[i], turn(flat[j].reshape(1, SIDE, SIDE)).ravel()
            correlation = float(one @ other)
            if correlation < ALIKE[0] or ((i, j) in found and correlation <= found[i, j].correlation):
                continue
            beyond = _unit(np.stack([one, other]) - mean)
            own = float(beyond[0] @ beyond[1])
            if own < ALIKE[1]:
                continue
            same = correlation >= least and own >= SAME[1]
            correlation, own = (round(min(1.0, value), 4) for value in (correlation, own))
            found[i, j] = Pair(int(kept[i]), int(kept[j]), view, distance, correlation, own, same)
    return list(found.values())


def _hashes(flat: np.ndarray, turn: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """Hashes of turned pictures, in blocks that fit into memory."""
    blocks = (flat[k : k + _BLOCK].reshape(-1, SIDE, SIDE) for k in range(0, len(flat), _BLOCK))
    return np.concatenate([perceptual_hash(turn(block)) for block in blocks])


def _unit(x: np.ndarray) -> np.ndarray:
    x = x - x.mean(axis=1, keepdims=True)
    return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)


def _turn(quarter: int, flip: bool) -> Callable[[np.ndarray], np.ndarray]:
    def turn(x: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(np.rot90(x[:, :, ::-1] if flip else x, quarter, axes=(1, 2)))

    return turn


_TURNS = tuple(_turn(quarter, flip) for flip in (False, True) for quarter in range(4))


def thumbnails_of(cohort: AuditCohort, threads: int = 2) -> dict[str, np.ndarray]:
    """Thumbnails by view: of patches ``patch``, of volumes ``region`` and ``slice`` of each modality.

    Shape:
        - returns: view to ``[n, 64, 64]``, grey levels 0 to 255; NaN where a row has no such image

    Raises:
        DataError: all files that cannot be read.
    """
    read = _patch if cohort.patches else _volume
    with ThreadPoolExecutor(threads) as pool:
        results = list(pool.map(lambda row: _tried(read, row, cohort), cohort.rows))
    problems = [result for result in results if isinstance(result, str)]
    if problems:
        raise DataError(problems)
    views: dict[str, np.ndarray] = {}
    for number, result in enumerate(results):
        assert not isinstance(result, str)
        for view, picture in result.items():
            if view not in views:
                views[view] = np.full((len(results), SIDE, SIDE), np.nan, np.float32)
            views[view][number] = picture
    return views


def _tried(
    read: Callable[[AuditRow, AuditCohort], dict[str, np.ndarray]], row: AuditRow, cohort: AuditCohort
) -> dict[str, np.ndarray] | str:
    try:
        return read(row, cohort)
    except DataError as error:
        return f"{row.name}: {error}"


def _patch(row: AuditRow, _: AuditCohort) -> dict[str, np.ndarray]:
    return {"patch": patch_thumbnail(row.images[0])}


def patch_thumbnail(path: Path) -> np.ndarray:
    """Grey levels ``[64, 64]`` of a picture, upright.

    Raises:
        DataError: it cannot be read.
    """
    from PIL import Image, ImageOps

    try:
        with Image.open(path) as image:
            grey = ImageOps.exif_transpose(image).convert("L").resize((SIDE, SIDE), Image.Resampling.BOX)
            return np.asarray(grey, np.float32)
    except (OSError, ValueError, SyntaxError) as error:
        raise DataError(f"{path} cannot be read as a picture ({error}); copy it again") from error


def _volume(row: AuditRow, cohort: AuditCohort) -> dict[str, np.ndarray]:
    from shared.data.volumes import load_volume, resample

    views = {}
    mask = None if row.mask is None or not row.mask.is_file() else load_volume(row.mask)
    for number, path in enumerate(row.images):
        name = cohort.modalities[number] if number < len(cohort.modalities) else f"image {number + 1}"
        volume = load_volume(path)
        inside = None if mask is None else resample(mask, volume.array.shape, volume.affine, nearest=True).array > 0
        if inside is None or not inside.any():
            views[f"slice of {name}"] = _grey(volume.array[:, :, volume.array.shape[2] // 2])
            continue
        level = int(inside.sum(axis=(0, 1)).argmax())
        place = []
        for axis in (0, 1):
            along = np.flatnonzero(inside[:, :, level].any(axis=1 - axis))
            more = int(np.ceil(MARGIN * (along[-1] - along[0] + 1)))
            place.append(slice(max(0, along[0] - more), along[-1] + more + 1))
        views[f"slice of {name}"] = _grey(volume.array[:, :, level])
        views[f"region of {name}"] = _grey(volume.array[place[0], place[1], level])
    return views


def _grey(image: np.ndarray) -> np.ndarray:
    """A slice as a thumbnail of 0 to 255, over its 1st to 99th percentile."""
    from skimage.transform import resize

    low, high = np.percentile(image, (1, 99))
    scaled = np.clip((image - low) / (high - low or 1), 0, 1)
    # hung as a viewer shows it: rows from front to back
    return 255 * resize(scaled.T[::-1], (SIDE, SIDE), anti_aliasing=True).astype(np.float32)


def byte_identical(rows: Sequence[AuditRow], digest: Callable[[Path], str]) -> list[tuple[int, int]]:
    """Rows with an image file of the same bytes as one of an earlier row, each with the first such row.

    Args:
        rows: of the cohort.
        digest: SHA-256 of a file, such as :class:`shared.digests.Digests`.
    """
    first: dict[str, int] = {}
    found = {}
    for number, row in enumerate(rows):
        for path in row.images:
            before = first.setdefault(digest(path), number)
            if before != number:
                found[before, number] = None
    return list(found)


def pairs_figure(pictures: Sequence[tuple[np.ndarray, np.ndarray, str]], path: Path) -> None:
    """Write pairs of thumbnails side by side, with a line over each."""
    from shared.visualize.style import cell_grid, save

    figure, cells = cell_grid(len(pictures), 3.4, 2.1, head=0.3)
    for cell, (first, other, text) in zip(cells, pictures, strict=False):
        gap = np.full((SIDE, 4), 255.0)
        cell.imshow(np.hstack([first, gap, other]), cmap="gray", vmin=0, vmax=255)
        cell.set_title(text, fontsize=7)
    save(figure, path)
