"""Compare explanations of trained sscl_crc models on patches: what compare_explanations.py does with that bundle."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from shared.apps.experiments.explanation_report import write_comparison
from shared.errors import DataError

logger = logging.getLogger(__name__)

REFERENCE = "additive map"


def compare_patches(args: argparse.Namespace, configured: Any) -> dict[str, Any]:
    """Explain, score, write; returns what explanation_comparison.json holds.

    Args:
        args: of the command line; one fold for each checkpoint.
        configured: ``(args, checkpoint, fold) -> parser`` of an explanation.
    """
    from tqdm import tqdm

    from shared.bundle import load_model
    from shared.digests import sha256
    from shared.explain.patches.comparison import CONTROLS, UNTRAINED, PatchComparison

    rows: list[dict[str, Any]] = []
    shown: list[dict[str, Any]] = []
    truth = None
    for number, (folder, fold) in enumerate(zip(args.checkpoints, args.fold, strict=True)):
        parser = configured(args, folder, fold)
        stage = parser.get_parsed_content("explain_stage")
        truth = parser.get_parsed_content("truth")
        cases = list(tqdm(stage.cases, desc="reading", unit="patch"))
        patients = list(dict.fromkeys(case["patient"] for case in cases))[: args.max_patients]
        cases = [case for case in cases if case["patient"] in patients]
        if not cases:
            raise DataError(f"{args.dataset_dir}: no patch to explain in fold {fold}; give --split or --fold.")
        parser.get_parsed_content("model_check").run()
        load_model(folder / "model.pt", stage.explainer.network)
        compare = PatchComparison(
            stage.explainer, args.methods, steps=args.steps, cell=args.cell, seed=args.seed + number
        )
        explained = compare.predicted(cases)
        picked = surest(cases, explained, args.pictures) if number == 0 else []
        found, maps = compare(cases, explained, keep=picked, progress=True)
        rows += found
        names = compare.explainer.class_names
        for i in picked:
            title = f"{cases[i].get('patient', '')}\n{names[explained[i][0]]} {explained[i][1]:.2f}"
            shown.append({"case": cases[i], "title": title, "maps": {name: of[i] for name, of in maps.items()}})
    methods = list(dict.fromkeys(row["method"] for row in rows))
    reference = REFERENCE if REFERENCE in methods else methods[0]
    labels = list(dict.fromkeys(row["label"] for row in rows if row["label"] is not None))
    learnt = {name: {"control": name in (*CONTROLS, UNTRAINED)} for name in methods}
    means = _means(rows, reference, args)
    content = {
        "patients": len({row["patient"] for row in rows}),
        "images": len({row["image"] for row in rows}),
        "checkpoints": len(args.checkpoints),
        "reference": reference,
        "bootstrap": args.bootstrap,
        "methods": {name: learnt[name] | means[name] for name in methods},
        "by label": {label: _means([r for r in rows if r["label"] == label], reference, args) for label in labels},
        "left out": {},
        "biomarkers": [],
        "settings": {key: getattr(args, key) for key in ("steps", "cell", "seed")}
        | {"truth": truth, "models": [sha256(folder / "model.pt") for folder in args.checkpoints], "methods": methods},
    }
    write_comparison(args.output, rows, content)
    if shown:
        _draw(args.output / "explanation_comparison.png", shown, truth)
    return content


def surest(cases: Sequence[Mapping[str, Any]], explained: Sequence[tuple[int, float]], count: int) -> list[int]:
    """Of each class the patches that were called right with the highest probability, one a patient; with masks first.

    Example:
        >>> cases = [{"patient": "A", "label": 0}, {"patient": "A", "label": 0}, {"patient": "B", "label": 1}]
        >>> surest(cases, [(0, 0.8), (0, 0.9), (0, 0.7)], 2)
        [1]
    """
    right = [i for i, case in enumerate(cases) if case.get("label") in (None, explained[i][0])]
    right.sort(key=lambda i: (cases[i].get("mask") is None, -explained[i][1]))
    picked: list[int] = []
    for class_idx in sorted({k for k, _ in explained}):
        first: dict[Any, int] = {}
        for i in right:
            if explained[i][0] == class_idx:
                first.setdefault(cases[i].get("patient"), i)
        picked += list(first.values())[:count]
    return picked


def _means(rows: Sequence[Mapping[str, Any]], reference: str, args: argparse.Namespace) -> dict[str, Any]:
    from shared.explain.ircl.comparison import mean_method_scores
    from shared.explain.patches.comparison import SCORES

    given = {"reference": reference, "bootstrap": args.bootstrap, "seed": args.seed}
    return mean_method_scores(rows, **given, scores=SCORES, image=("image",))


def _draw(path: Any, shown: Sequence[Mapping[str, Any]], truth: str) -> None:
    from shared.explain.patches.cases import mask_at, stack_images
    from shared.explain.patches.comparison import METHODS
    from shared.explain.patches.maps import SIGNED
    from shared.visualize import explanation_grid

    images = stack_images([one["case"] for one in shown]).numpy()
    masks = [mask_at(one["case"].get("mask"), images.shape[2:]) for one in shown]
    inside = np.stack([np.zeros(images.shape[2:], bool) if mask is None else mask for mask in masks])
    maps = {name: np.stack([one["maps"][name] for one in shown]) for name in shown[0]["maps"]}
    explanation_grid(
        images,
        {name: _between(values) for name, values in maps.items()},
        path,
        titles=[one["title"] for one in shown],
        truth=inside if inside.any() else None,
        truth_name=truth,
        signed=[name for name, of in METHODS.items() if of["explanation"] in SIGNED],
        header="What speaks for the class called (additive maps and gradients: orange; blue speaks against it)",
    )


def _between(maps: np.ndarray) -> np.ndarray:
    """Each map divided by its 99th percentile of absolute values, within [-1, 1]."""
    top = np.quantile(np.abs(maps), 0.99, axis=(1, 2), keepdims=True)
    return np.clip(maps / np.where(top > 0, top, 1), -1, 1)
