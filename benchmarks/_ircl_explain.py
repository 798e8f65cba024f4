"""Explanations of IRCL: masks per second, and exact Shapley values of biomarkers against shap's Exact explainer."""

from __future__ import annotations

import copy
import tempfile
from pathlib import Path
from typing import Any

from _ircl_training import overlays, settings
from _timing import Finding, interleaved, product, report

MODALITIES = ("T1", "T1D", "T1V")


def masks(*, device: Any, tiny: bool = False, paper_size: bool = False) -> list[Finding]:
    """Masks of Eq. 10 for the images of one patient, with the settings of ``explain.json``."""
    import torch

    config = settings(*overlays(paper_size))  # explain.json whole would take the network of a trained model
    config["mask"] = settings("explain")["mask"]
    if tiny:
        config["mask#steps"] = 4
    mask, size = config.get_parsed_content("mask"), config["roi#size"]
    torch.manual_seed(0)
    network = config.get_parsed_content("network_def").to(device).eval()
    network.biomarkers.copy_(torch.nn.functional.normalize(torch.randn_like(network.biomarkers), dim=1))
    image = torch.rand(network.num_images, 1, size, size, device=device)
    with torch.no_grad():
        _, z = network.encode(image[None, :, 0])
        target = network.biomarkers[network.assign(z)[0][0]]

    def forward() -> None:
        with torch.no_grad():
            network.encoder(image)

    calls = {
        "a patient's masks": lambda: mask(network.encoder, image, target, network.rivals()),
        "forward pass": forward,
        "GEMM": product(device),
    }
    interleaved({name: calls[name] for name in ("forward pass", "GEMM")}, 1, device)
    seconds = interleaved(calls, 1 if tiny else 3, device)
    rate = len(image) / seconds["a patient's masks"]
    rows = [
        {
            "pixels": size,
            "images": len(image),
            "steps": mask.steps,
            **seconds,
            "a step / forward pass": seconds["a patient's masks"] / mask.steps / seconds["forward pass"],
            "a patient's masks / GEMM": seconds["a patient's masks"] / seconds["GEMM"],
            "masks per second": rate,
        }
    ]
    report("Masks, Eq. 10 (seconds)", rows)
    return [Finding(f"masks explained per second, {size} px, {mask.steps} steps", "-", f"{rate:.2f}")]


def contributions(*, device: Any, tiny: bool = False, paper_size: bool = False) -> list[Finding]:
    """A patient explained by the additive predictor, against its prediction alone."""
    import torch

    config = settings(*overlays(paper_size))
    size = config["roi#size"]
    torch.manual_seed(0)
    network = config.get_parsed_content("network_def").to(device).eval()
    network.additive.biomarkers.copy_(
        torch.nn.functional.normalize(torch.randn_like(network.additive.biomarkers), dim=-1)
    )
    image = torch.rand(1, network.num_images, size, size, device=device)

    def forward() -> None:
        with torch.no_grad():
            network.additive(image)

    calls = {
        "explained": lambda: network.additive.explain(image),
        "forward pass": forward,
        "prototype's forward pass": lambda: network.prototype_logits(image),
        "GEMM": product(device),
    }
    interleaved(calls, 1, device)
    seconds = interleaved(calls, 1 if tiny else 15, device)
    ratio = seconds["explained"] / seconds["forward pass"]
    rows = [{"pixels": size, "images": network.num_images, **seconds, "explained / forward pass": ratio}]
    report("Contributions of a patient (seconds)", rows)
    return [
        Finding(
            f"a patient explained by contributions / forward pass, {size} px", "<= 1.2", f"{ratio:.2f}", ratio <= 1.2
        )
    ]


def shapley(*, tiny: bool = False, paper_size: bool = False) -> list[Finding]:
    """Six biomarkers of phantom patients as K-means assigns them, and of patients who all show all six."""
    import torch

    from shared.biomarkers import fit_biomarkers

    config = settings("paper", *([] if paper_size else ["cpu"]))
    torch.manual_seed(0)
    network = config.get_parsed_content("network_def")
    images = phantom_images(2 if tiny else 12, config.get_parsed_content("roi"))
    with torch.no_grad():
        network.encoder.train()
        for _ in range(20):  # an untrained encoder tells images apart once its BatchNorms know them
            network.encoder(images.flatten(0, 1).unsqueeze(1))
        network.eval()
        h, z = network.encode(images)
        network.biomarkers.copy_(torch.as_tensor(fit_biomarkers(z.flatten(0, 1), 6, seed=0).centres))
        assigned, _ = network.assign(z)
    everyone = torch.stack([torch.randperm(h.shape[1]) % 6 for _ in h])
    rows, findings = [], []
    for name, assignment in {"as assigned": assigned, "all six": everyone}.items():
        part = slice(0, 2 if paper_size and name == "all six" else None)
        row = _against_shap(network, h[part], assignment[part], repeats=1 if tiny else 5)
        rows.append({"patients": name, **row})
        ratio, difference = row["ours / shap"], row["differ by"]
        findings += [
            Finding(f"exact Shapley / shap's Exact, {name}", "<= 0.25", f"{ratio:.2f}", ratio <= 0.25),
            Finding(f"  largest difference, {name}", "<= 1e-12", f"{difference:.1e}", difference <= 1e-12),
        ]
    blocks = len(network.predictor.blocks)
    report(f"Shapley values of 6 biomarkers, {blocks} transformer blocks (seconds a patient, float32)", rows)
    return findings


def phantom_images(count: int, roi: dict) -> Any:
    """Images ``[count, 9, H, W]`` of painted patients, through the bundle's own loading and cropping."""
    import nibabel
    import numpy as np

    from shared.apps.phantoms.liver import PATTERNS, paint_patient
    from shared.data import CaseDataset
    from shared.transforms import LoadCased, ROISlicesd

    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        data = []
        for i in range(count):
            present = {name: int(rng.random() < 0.5) for name in PATTERNS}
            patient = paint_patient(present, rng.uniform(30, 55), MODALITIES, rng)
            for name, volume in {**patient["images"], "mask": patient["mask"]}.items():
                nibabel.save(nibabel.Nifti1Image(volume, patient["affine"]), Path(folder, f"{i}_{name}.nii"))
            image = [f"{folder}/{i}_{name}.nii" for name in MODALITIES]
            data.append({"patient": f"P{i}", "image": image, "mask": f"{folder}/{i}_mask.nii", "label": 0})
        return CaseDataset(data, [LoadCased(), ROISlicesd(**roi)], progress=False).stack("image")


def _against_shap(network: Any, h: Any, assignment: Any, repeats: int) -> dict:
    """Times of both, in float32, and how far they differ in float64."""
    import numpy as np

    from shared.explain import biomarker_shapley

    def ours() -> Any:
        return biomarker_shapley(network, h, assignment)

    double = copy.deepcopy(network).double()
    difference = biomarker_shapley(double, h.double(), assignment).values.numpy() - _shap(
        double, h.double(), assignment
    )
    calls = {
        "ours": ours,
        "shap": lambda: _shap(network, h, assignment),
        "shap, all coalitions in a batch": lambda: _shap(network, h, assignment, 1 << len(network.biomarkers)),
        "GEMM": product(),
    }
    interleaved(calls, 1)
    seconds = interleaved(calls, repeats)
    a_patient = {name: value if name == "GEMM" else value / len(h) for name, value in seconds.items()}
    return {
        "number": len(h),
        "biomarkers shown": float(np.mean([len(set(row)) for row in assignment.tolist()])),
        **a_patient,
        "ours / GEMM": a_patient["ours"] / a_patient["GEMM"],
        "ours / shap": seconds["ours"] / seconds["shap"],
        "ours / shap in a batch": seconds["ours"] / seconds["shap, all coalitions in a batch"],
        "differ by": float(np.abs(difference).max()),
    }


def _shap(network: Any, h: Any, assignment: Any, batch_size: int | str = "auto") -> Any:
    """Values ``[B, K]`` by shap's Exact explainer, one patient after the other."""
    import numpy as np
    import shap
    import torch

    players = len(network.biomarkers)

    def masker(visible: Any, row: Any) -> tuple:
        return (visible.astype(float)[None],)

    masker.shape = lambda row: (1, players)
    values = []
    for i in range(len(h)):

        def probability(rows: Any, i: int = i) -> Any:
            present = torch.from_numpy(np.asarray(rows) > 0.5)
            count = len(present)
            with torch.no_grad():
                logits = network.predictor(h[i].expand(count, -1, -1), assignment[i].expand(count, -1), present=present)
            return logits.double().softmax(dim=1)[:, 1].numpy()

        explainer = shap.explainers.Exact(probability, masker)
        values.append(explainer(np.ones((1, players)), batch_size=batch_size, silent=True).values[0])
    return np.stack(values)
