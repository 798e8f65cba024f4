"""Prepared glioma patients in memory, and a small classifier for them."""

from types import SimpleNamespace

import torch

from shared.data import GliomaRows
from shared.networks import GliomaClassifier
from shared.transforms import build_point_graph
from tests.support.tiny_brains import PAIRS, REGIONS, cloud

VOXELS, RADII = 6, (8.0, 14.0)


def glioma_classifier(*, seed=0, **settings):
    """A small one, of two sequences and regions and tracts of six voxels."""
    torch.manual_seed(seed)
    given = {
        "num_regions": REGIONS,
        "in_channels": 2,
        "size": 16,
        "num_voxels": VOXELS,
        "embedding_dim": 8,
        "projection": [8, 8, 16],
        "image": {"channels": [4, 8], "hidden": [8]},
        "points": {"channels": [4, 8], "hidden": [8], "radii": list(RADII)},
        "brain": {"channels": [8], "hidden": [8]},
        "attribute_widths": [8, 4],
        "edge_head": [4, 6],
    }
    return GliomaClassifier(PAIRS.tolist(), **(given | settings))


def patients_rows(count, *, covariates=1, seed=0):
    """Rows of so many patients, P0 ..., of alternating labels, as the bundle prepares them."""
    generator = torch.Generator().manual_seed(seed)
    items = []
    for k in range(count):
        points = cloud(batch=1, seed=seed + k)[0]
        items.append(
            {
                "patient": f"P{k}",
                "label": k % 2,
                "covariates": torch.randn(covariates, generator=generator) * 8 + 50 - 20 * (k % 2),
                "image": torch.randn(2, 16, 16, 16, generator=generator),
                "points": points,
                "centre": torch.tensor([7.0, 8.0, 7.5]),
                "graph": build_point_graph(points, radii=RADII),
                "region_rows": torch.randn(REGIONS, 2 * VOXELS, generator=generator) + k,
                "tract_rows": torch.randn(PAIRS.shape[1], 2 * VOXELS, generator=generator) - k,
                "incidence": torch.randint(-1, PAIRS.shape[1], (64, 1 + k % 2), generator=generator),
            }
        )
    return GliomaRows(SimpleNamespace(patients=[item["patient"] for item in items], items=items))
