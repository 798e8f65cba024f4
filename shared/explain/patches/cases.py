"""Patches as an explanation needs them: images, the masks to compare maps with, names for the files written."""

from __future__ import annotations

import hashlib
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from shared.data.patches.reading import read_patch, read_patch_mask
from shared.data.patches.resizing import resize_images
from shared.errors import DataError

_LONGEST = 150  # characters of a file's name


class PatchCases(Sequence):
    """Cases of a datalist's entries and their decoded images; masks are read when a case is asked for.

    Args:
        entries: of :class:`shared.data.PatchDatalist`: ``image`` (path), and ``patient``, ``label``, ``mask`` or
            ``planted`` (paths) where there are any.
        images: of each entry, uint8 or in [0, 1], such as :class:`shared.data.PatchCache` holds.
        size: side that the network sees; None: the images' own.
        truth: entry that holds what maps are compared with: ``"mask"`` or ``"planted"``.
        codes: values of that file that count as inside; None: all but 0.

    Shape:
        - images: ``[N, 3, H, W]``
        - a case: ``image [3, H, W]`` float, ``mask [1, h, w]`` uint8 in the file's own size (where there is one),
          ``path``, ``patient``, ``label``

    Raises:
        DataError: not one image for each entry.

    Example:
        >>> cases = PatchCases([{"image": "a.png", "patient": "P1", "label": 1}], torch.zeros(1, 3, 8, 8))
        >>> len(cases), cases[0]["path"], cases[0]["label"], "mask" in cases[0]
        (1, 'a.png', 1, False)
    """

    def __init__(
        self,
        entries: Sequence[Mapping[str, Any]],
        images: Tensor,
        *,
        size: int | None = None,
        truth: str = "mask",
        codes: Sequence[int] | None = None,
    ):
        if len(entries) != len(images):
            raise DataError(f"Each entry needs its image, got {len(entries)} entries and {len(images)} images.")
        self.entries, self.images, self.size = list(entries), images, size
        self.truth, self.codes = truth, codes

    @property
    def paths(self) -> list[str]:
        """Paths of the images."""
        return [str(entry["image"]) for entry in self.entries]

    def __len__(self) -> int:
        """Number of cases."""
        return len(self.entries)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """A case."""
        entry = self.entries[index]
        image = stack_images([{"image": self.images[index]}])
        # in float, as evaluation resizes: the probabilities must be the same
        image = image if self.size is None else resize_images(image, self.size).clamp_(0, 1)
        case = {"image": image[0], "path": str(entry["image"])}
        case |= {key: entry[key] for key in ("patient", "label") if entry.get(key) is not None}
        if entry.get(self.truth):
            inside = read_patch_mask(entry[self.truth], self.codes)
            case["mask"] = torch.from_numpy(inside[None].astype(np.uint8))
        return case


def stack_images(cases: Sequence[Mapping[str, Any]]) -> Tensor:
    """The images of cases as a batch of floats ``[B, 3, H, W]`` in [0, 1].

    Raises:
        DataError: sizes that differ, naming the first that does.

    Example:
        >>> stack_images([{"image": torch.full((3, 1, 1), 255, dtype=torch.uint8)}]).flatten().tolist()
        [1.0, 1.0, 1.0]
    """
    images = [torch.as_tensor(case["image"]) for case in cases]
    for case, image in zip(cases, images, strict=True):
        if image.shape != images[0].shape:
            raise DataError(
                f"{case.get('path', 'a patch')}: patches of one batch must have one size, got {tuple(image.shape)} "
                f"after {tuple(images[0].shape)}; give all the same size."
            )
    return torch.stack([image.float() / 255 if image.dtype == torch.uint8 else image.float() for image in images])


def source_image(case: Mapping[str, Any]) -> np.ndarray:
    """The picture at ``path`` in its own size, else the case's image: ``[3, H, W]``, in [0, 1] or uint8."""
    return read_patch(case["path"]) if case.get("path") else torch.as_tensor(case["image"]).cpu().numpy()


def mask_at(mask: Any, size: Sequence[int]) -> np.ndarray | None:
    """A mask ``[1, h, w]`` at another size (nearest neighbour), ``[H, W]`` bool; None stays None.

    Example:
        >>> mask_at(torch.tensor([[[0, 3]]]), (1, 4)).tolist()
        [[False, False, True, True]]
    """
    if mask is None:
        return None
    values = (torch.as_tensor(mask) != 0).float()[None]
    return nn.functional.interpolate(values, tuple(size), mode="nearest-exact")[0, 0].numpy() > 0


def unique_names(paths: Sequence[str | os.PathLike], root: str | os.PathLike | None = None) -> list[str]:
    """A file name without ending for each image, from its path below ``root``: folders joined by ``-``.

    Names that would collide, also where a file system ignores case, get the first digits of their path's SHA-256.

    Args:
        paths: the images, none twice.
        root: folder that the names leave out; None: what all paths have in common.

    Raises:
        DataError: a path is there twice.

    Example:
        >>> unique_names(["data/HP/a.png", "data/SSA/a.png"])
        ['HP-a', 'SSA-a']
        >>> [name[:4] for name in unique_names(["a/b.png", "a-b.png"])]
        ['a-b-', 'a-b-']
    """
    full = [_absolute(path) for path in paths]
    twice = [path for path, times in Counter(full).items() if times > 1]
    if twice:
        raise DataError(
            [f"{path}: is there twice; each patch is explained once, check the datalist." for path in twice]
        )
    base = _absolute(root if root is not None else os.path.commonpath([path.parent for path in full] or ["."]))
    relative = [path.relative_to(base) if path.is_relative_to(base) else path.relative_to(path.anchor) for path in full]
    names = [re.sub(r"[^\w.-]+", "_", "-".join(path.with_suffix("").parts)) for path in relative]
    count = Counter(name.casefold() for name in names)
    return [
        name if count[name.casefold()] == 1 and len(name) <= _LONGEST else f"{name[-_LONGEST:]}-{_digest(path)}"
        for name, path in zip(names, relative, strict=True)
    ]


def _absolute(path: str | os.PathLike) -> Path:
    # links are kept as they are: what they point at may lie outside the folder
    return Path(os.path.normpath(Path(path).absolute()))


def _digest(path: Path) -> str:
    return hashlib.sha256(path.as_posix().encode()).hexdigest()[:10]
