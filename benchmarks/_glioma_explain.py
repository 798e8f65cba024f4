"""A glioma patient explained: pictures of maps against one pair of axes a plane, attributes made once against twice."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from _glioma_cases import made_atlas, made_patient
from _timing import Finding, interleaved, product, report

SEQUENCES = ("T1", "T1c", "T2", "FLAIR")
SMALL = {  # as in cpu.json
    "image": {"channels": (8, 16, 32), "hidden": (64,), "global_pool": True},
    "points": {"channels": (16, 32, 32), "hidden": (64,), "radii": (12.0, 18.0, 26.0)},
    "brain": {"channels": (32, 32), "hidden": (64,), "residual": True, "tract_means": True},
    "attribute_widths": (128, 64, 16),
}


def explain(*, tiny: bool = False) -> list[Finding]:
    """A patient of 569 tracts: explanation and its control, on the CPU as with cpu.json, and the picture of a map."""
    return [*_numbers(tiny), *_picture(tiny)]


def _numbers(tiny: bool) -> list[Finding]:
    import numpy as np
    import torch

    from shared.explain import ClassifierLogit, GliomaExplainer
    from shared.networks.glioma.classifier import GliomaFeatures

    torch.manual_seed(0)
    atlas, case = made_atlas(tiny=tiny), made_patient(tiny=tiny, points=SMALL["points"]["radii"])
    sizes = {"num_regions": atlas.num_regions, "num_voxels": case["region_rows"].shape[1] // 4}
    features = GliomaFeatures(
        atlas.edge_index.tolist(), size=case["image"].shape[-1], objective="multitask", unimodal=True, **sizes, **SMALL
    ).eval()
    target = ClassifierLogit(features.glioma)
    steps = {"own": True, "block": 0, "local": True, "steps": 16, "masked": "attributes"}
    explainer = GliomaExplainer(features.glioma, target, features.attributes, edges={"epochs": 100}, **steps)
    control = explainer.untrained()

    def once() -> Any:
        encoded = explainer.encoded(case)
        return explainer(encoded), control(encoded)

    def twice() -> Any:
        return explainer(case), control(case)

    pairs = list(zip(once(), twice(), strict=True))
    names = ("cam", "contribution", "point_attention", "node_attention")
    same = all(np.array_equal(getattr(a, name), getattr(b, name)) for a, b in pairs for name in names)
    same = same and torch.equal(pairs[0][0].edges.mask, pairs[0][1].edges.mask)
    seconds = interleaved({"once": once, "twice": twice, "GEMM": product()}, 1 if tiny else 5)
    ratio = seconds["twice"] / seconds["once"]
    report("A patient and its control explained (seconds)", [{"tracts": atlas.num_tracts, **seconds, "ratio": ratio}])
    return [
        Finding("a patient and its control explained, s", "-", f"{seconds['once']:.2f}"),
        Finding("  attributes made twice / once", "-", f"{ratio:.2f}"),
        Finding("  same explanation", "yes", "yes" if same else "no", same),
    ]


def _picture(tiny: bool) -> list[Finding]:
    import numpy as np

    from shared.visualize import cam_planes

    random = np.random.default_rng(0)
    shape, radii = ((24, 28, 24), (4, 5, 4)) if tiny else ((91, 109, 91), (14, 11, 9))
    away = sum(
        ((axis - n // 2) / r) ** 2 for axis, n, r in zip(np.indices(shape, sparse=True), shape, radii, strict=True)
    )
    images = {name: random.random(shape) for name in SEQUENCES}
    cam, mask, planted = random.random(shape) * (away < 1), away < 1, (away < 0.3) * 2
    with tempfile.TemporaryDirectory() as folder:
        given = images, cam, mask
        calls = {
            "one pair of axes": lambda: cam_planes(*given, Path(folder, "a.png"), title="P", planted=planted),
            "one a plane": lambda: _planes_apart(*given, Path(folder, "b.png"), planted),
            "GEMM": product(),
        }
        interleaved(calls, 1)
        seconds = interleaved(calls, 1 if tiny else 5)
    ratio = seconds["one a plane"] / seconds["one pair of axes"]
    report("The picture of a map, four sequences (seconds)", [{**seconds, "ratio": ratio}])
    return [Finding("picture of a map, axes for each plane / for all", ">= 2", f"{ratio:.1f}", ratio >= 2)]


def _planes_apart(images: dict, cam: Any, mask: Any, path: Path, planted: Any) -> None:
    """The same picture with a pair of axes for each plane, laid out and drawn by ``savefig``."""
    import numpy as np
    from matplotlib.figure import Figure

    from shared.visualize.glioma import PLANTED, TUMOUR, plane
    from shared.visualize.style import heat

    inside = np.argwhere(mask)
    centre = np.rint(inside.mean(axis=0)).astype(int)
    figure = Figure(figsize=(13.2, 2.2 * len(images) + 0.8), layout="constrained")
    axes = figure.subplots(len(images), 6)
    for line, (name, image) in zip(axes, images.items(), strict=True):
        for column, axis in enumerate((2, 1, 0)):
            for axe, shown in ((line[2 * column], None), (line[2 * column + 1], cam)):
                axe.imshow(plane(image, axis, centre), cmap="gray", interpolation="nearest")
                if shown is not None:
                    axe.imshow(plane(shown, axis, centre), cmap=heat(), vmin=0, vmax=1)
                axe.contour(plane(planted != 0, axis, centre), [0.5], colors=PLANTED, linewidths=1)
                axe.contour(plane(mask, axis, centre), [0.5], colors=TUMOUR, linewidths=1, linestyles="--")
                axe.set(xticks=[], yticks=[])
        line[0].set_ylabel(name)
    figure.colorbar(axes[0, 1].images[1], ax=axes, shrink=0.7, pad=0.01)
    figure.savefig(path, dpi=120)
