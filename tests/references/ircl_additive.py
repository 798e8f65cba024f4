"""IRCL's additive predictor as loops over places in Python floats (float64), written from its docstring's equation."""

import math

import numpy as np


def place_features(maps):
    """Unit mean ``[h][w][D]`` of a place's features over the views.

    ``maps[view]`` ``[D, h, w]`` is of the image turned by ``view % 4`` right angles, then, from view 4 on, mirrored.
    """
    width, height, breadth = maps[0].shape
    total = np.zeros((height, breadth, width))
    for view, found in enumerate(maps):
        # where each place lies after turning
        where = np.rot90(np.arange(height * breadth).reshape(height, breadth), view % 4)
        where = where[:, ::-1] if view >= 4 else where
        for r in range(height):
            for c in range(breadth):
                home = divmod(int(where[r, c]), breadth)
                for d in range(width):
                    total[home][d] += float(found[d, r, c])
    return total / np.sqrt((total**2).sum(axis=-1, keepdims=True))


def coverage(images, modalities, places):
    """Part of each place ``[m][places][places]`` that is not 0 in all modalities; images modality by modality."""
    count, side = len(images), len(images[0])
    slices, step = count // modalities, side // places
    found = np.zeros((count, places, places))
    for image in range(count):
        for r in range(places * step):
            for c in range(places * step):
                same_slice = [images[image % slices + k * slices][r][c] for k in range(modalities)]
                if any(float(value) != 0 for value in same_slice):
                    found[image, r // step, c // step] += 1 / step**2
    return found


def additive(features, covered, biomarkers, weight, bias, *, measure, covariates=(), covariate_weight=()):
    """Logits ``[C]`` of one patient and, of each class, what every place adds, ``[C][m][h][w]``.

    ``features[member][image][r][c]`` is a vector, ``biomarkers[member][modality][k]`` one of unit length,
    ``weight[member][modality][k]`` of each class.
    """
    members, (count, height, breadth) = len(features), covered.shape
    modalities, kinds = len(biomarkers[0]), len(biomarkers[0][0])
    slices = count // modalities
    logits = [float(value) for value in bias]
    for value, weights in zip(covariates, covariate_weight, strict=True):
        for c in range(len(logits)):
            logits[c] += float(value) * float(weights[c])
    places = np.zeros((len(logits), count, height, breadth))
    owners = np.zeros((members, count, height, breadth), dtype=int)
    for member in range(members):
        for modality in range(modalities):
            area = [0.0] * kinds
            own = range(modality * slices, (modality + 1) * slices)
            each = [(i, r, c) for i in own for r in range(height) for c in range(breadth)]
            for i, r, c in each:
                near = [
                    sum(float(a) * float(b) for a, b in zip(features[member][i][r][c], one, strict=True))
                    for one in biomarkers[member][modality]
                ]
                owners[member, i, r, c] = near.index(max(near))
                area[owners[member, i, r, c]] += covered[i, r, c] / len(each)
            whole = sum(area)
            x = {"share": [a / whole for a in area], "area": area, "sqrt": [math.sqrt(a) for a in area]}[measure]
            for c in range(len(logits)):
                logits[c] += sum(float(weight[member][modality][k][c]) * x[k] for k in range(kinds)) / members
            for i, r, c in each:
                k = owners[member, i, r, c]
                for one in range(len(logits)):
                    if area[k] > 0:
                        part = covered[i, r, c] / len(each) / area[k]
                        places[one, i, r, c] += float(weight[member][modality][k][one]) * x[k] * part / members
    return logits, places, owners
