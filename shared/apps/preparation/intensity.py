"""Brightness of MRI made comparable: histogram matching to a reference patient and edge-preserving smoothing.

Histogram matching by landmarks (Nyul and Udupa 1999): percentiles of the brain outside the tumour, mapped piecewise
linearly onto the reference's. The reference ships with the cohort, so that a new patient is matched to the same one.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from shared.errors import DataError
from shared.io import write_json

PERCENTILES = (1.0, 10.0, 20.0, 30.0, 40.0, 50.0, 60.0, 70.0, 80.0, 90.0, 99.0)
FIRST, LAST = 100.0, 1000.0  # brightness of the reference's first and last landmark


def landmarks(array: Any, mask: Any) -> list[float]:
    """Percentiles of the voxels of ``mask``.

    Raises:
        DataError: the mask is empty, or the image constant in it.
    """
    import numpy as np

    values = array[mask]
    found = np.percentile(values, PERCENTILES) if values.size else np.zeros(len(PERCENTILES))
    if not found[-1] > found[0]:
        raise DataError("its brightness is the same all over the brain; export it again")
    return [float(value) for value in found]


def standard_landmarks(found: list[float]) -> list[float]:
    """Landmarks on the scale that prepared images have: the first at 100, the last at 1,000.

    Example:
        >>> standard_landmarks([0.0, 1.0, 4.0])
        [100.0, 325.0, 1000.0]
    """
    low, high = found[0], found[-1]
    return [FIRST + (value - low) / (high - low) * (LAST - FIRST) for value in found]


def match_landmarks(array: Any, mask: Any, found: list[float], standard: list[float]) -> Any:
    """An image whose landmarks lie at ``standard``; 0 outside ``mask``, never below 1 in it.

    Between landmarks the mapping is linear; beyond the last ones it goes on with the mean slope, so that an enhancing
    tumour stays brighter than everything else.

    Example:
        >>> import numpy as np
        >>> image, brain = np.array([0.0, 10.0, 20.0, 40.0]), np.array([False, True, True, True])
        >>> match_landmarks(image, brain, [10.0, 20.0], [100.0, 1000.0]).tolist()
        [0.0, 100.0, 1000.0, 2800.0]
    """
    import numpy as np

    x, y = np.asarray(found, float), np.asarray(standard, float)
    keep = np.concatenate([[True], np.diff(x) > 0])  # several percentiles of a coarse image may coincide
    x, y = x[keep], y[keep]
    slope = (y[-1] - y[0]) / (x[-1] - x[0])
    values = np.interp(array, x, y)
    values = values + slope * (np.minimum(array - x[0], 0) + np.maximum(array - x[-1], 0))
    return np.where(mask, np.maximum(values, 1.0), 0.0).astype(np.float32)


def smooth(array: Any, mask: Any, strength: float = 1.0) -> Any:
    """Edge-preserving smoothing by total variation (Chambolle 2004), as strong as the image is noisy.

    Args:
        array: the image.
        mask: of the brain; outside it the result is 0.
        strength: weight in standard deviations of the noise, which is estimated from the finest details.
    """
    import numpy as np
    from scipy.ndimage import find_objects, laplace
    from skimage.restoration import denoise_tv_chambolle

    box = find_objects(mask.astype(np.uint8))[0]
    part, inside = array[box].astype(np.float32), mask[box]
    # Outside the brain its median, so that its edge is no step; 6-neighbour Laplacian of white noise: sd * sqrt(42).
    part = np.where(inside, part, np.median(part[inside]))
    noise = 1.4826 * float(np.median(np.abs(laplace(part)[inside]))) / 42**0.5
    done = np.zeros(array.shape, np.float32)
    if noise > 0:
        part = denoise_tv_chambolle(part / noise, weight=strength, max_num_iter=20) * noise
    done[box] = part * inside
    return done


def write_reference(
    path: str | os.PathLike, patient: str, found: Mapping[str, list[float]], **more: Any
) -> dict[str, Any]:
    """Write a patient's landmarks as the cohort's reference."""
    content = {
        "patient": patient,
        "percentiles": list(PERCENTILES),
        "landmarks": {name: standard_landmarks(values) for name, values in found.items()},
        **more,
    }
    write_json(path, content)
    return content


def check_reference(content: Any, modalities: list[str], path: str | os.PathLike) -> dict[str, list[float]]:
    """Landmarks by sequence of a reference that was read.

    Raises:
        DataError: it was written for other sequences or percentiles, or by something else.
    """
    marks = content.get("landmarks") if isinstance(content, dict) else None
    fits = isinstance(marks, dict) and content.get("percentiles") == list(PERCENTILES)
    if not fits or any(len(marks.get(name, ())) != len(PERCENTILES) for name in modalities):
        have = ", ".join(marks) if isinstance(marks, dict) else "none"
        raise DataError(
            f"{path}: must hold {len(PERCENTILES)} landmarks of each of {', '.join(modalities)}, it has {have}; "
            "give the histogram_reference.json that scripts/prepare_glioma.py wrote beside the training cohort"
        )
    return {name: [float(value) for value in marks[name]] for name in modalities}
