"""A series as a volume, naively: slices sorted by their place along the normal, one by one; float64."""

import numpy as np
import pydicom


def stacked_series(paths):
    """Values [X, Y, Z] of single-frame files and their positions (RAS, mm) [X, Y, Z, 3], by PS3.3 C.7.6.2.1.1."""
    read = [pydicom.dcmread(path, force=True) for path in paths]
    slices = []
    for one in read:
        row, column = (np.array(one.ImageOrientationPatient, float)[part] for part in (slice(0, 3), slice(3, 6)))
        slices.append((float(np.dot(np.cross(row, column), np.array(one.ImagePositionPatient, float))), one))
    slices.sort(key=lambda pair: pair[0])
    shape = (read[0].Columns, read[0].Rows, len(slices))
    values, places = np.zeros(shape), np.zeros((*shape, 3))
    for k, (_, one) in enumerate(slices):
        orientation, origin = (np.array(v, float) for v in (one.ImageOrientationPatient, one.ImagePositionPatient))
        down, along = map(float, one.PixelSpacing)  # between rows first, then between columns
        pixels = one.pixel_array.astype(float) * float(one.get("RescaleSlope", 1)) + float(
            one.get("RescaleIntercept", 0)
        )
        values[:, :, k] = pixels.T
        c, r = (n[..., None] for n in np.meshgrid(range(shape[0]), range(shape[1]), indexing="ij"))
        places[:, :, k] = (origin + orientation[:3] * along * c + orientation[3:] * down * r) * [-1, -1, 1]
    return values, places


def enclosed(points, place):
    """Whether a point of the plane lies inside a polygon (even-odd rule, one edge at a time)."""
    inside = False
    for (x0, y0), (x1, y1) in zip(points, [*points[1:], points[0]], strict=True):
        if (y0 > place[1]) != (y1 > place[1]) and place[0] < (x1 - x0) * (place[1] - y0) / (y1 - y0) + x0:
            inside = not inside
    return inside
