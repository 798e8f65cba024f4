"""The table and the picture of a comparison of explanations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from shared.io import write_csv, write_json, write_text

# heading of the table, score, digits, whether a higher score is better
COLUMNS = (
    ("pointing ↑", "pointing", 2),
    ("energy / chance ↑", "energy_ratio", 2),
    ("energy / chance in the region ↑", "energy_ratio_in_region", 2),
    ("IoU of the box ↑", "box_iou", 2),
    ("nothing for the class ↓", "all_zero", 2),
    ("deletion, blur ↓", "deletion_blur", 3),
    ("insertion, blur ↑", "insertion_blur", 3),
    ("deletion, mean ↓", "deletion_mean", 3),
    ("insertion, mean ↑", "insertion_mean", 3),
    ("agreement of modalities ↑", "agreement", 2),
    ("repeatability ↑", "repeatability", 2),
    ("seconds", "seconds", 2),
)


def write_comparison(folder: Path, rows: Sequence[Mapping[str, Any]], content: Mapping[str, Any]) -> None:
    """Write explanation_scores.csv, and explanation_comparison.json and .md."""
    write_csv(folder / "explanation_scores.csv", rows)
    write_json(folder / "explanation_comparison.json", content)
    write_text(folder / "explanation_comparison.md", comparison_page(content))


def comparison_page(content: Mapping[str, Any]) -> str:
    """The tables as a Markdown page."""
    from shared.reports.tables import difference_text, interval_text, markdown_table

    names, reference = content["methods"], content["reference"]
    shown = [column for column in COLUMNS if any(column[1] in of["scores"] for of in names.values())]

    def table(kind: str, rows: Sequence[str], methods: Mapping[str, Any] = names) -> str:
        lines = []
        for name in rows:
            of = methods[name][kind]
            text = interval_text if kind == "scores" else difference_text
            cells = [text(of[score], digits) if score in of else "-" for _, score, digits in shown]
            lines.append([name, *cells])
        return markdown_table(["explanation", *(title for title, _, _ in shown)], lines)

    others = [name for name in names if name != reference]
    page = [
        f"{content['patients']} patients, {content['images']} images. Means with 95 % bootstrap intervals over "
        "patients; ↑: more is better, ↓: less is better.",
        table("scores", list(names)),
        *([f"Minus {reference}, paired:", table("minus reference", others)] if others else []),
        *(
            part
            for label, of in content.get("by label", {}).items()
            for part in (f"Patches of {label}:", table("scores", list(of), of))
        ),
        *(f"Left out: {name}. {reason}" for name, reason in content["left out"].items()),
        *(stability_lines(content["biomarkers"]) if content["biomarkers"] else []),
    ]
    return "\n\n".join(page) + "\n"


def stability_lines(pairs: Sequence[Mapping[str, Any]]) -> list[str]:
    """Whether other trainings found the same biomarkers, as a table."""
    from shared.reports.tables import markdown_table

    names = ("overlap", "overlap_by_area", "chance", "effects")
    rows = []
    for pair in pairs:
        values = ("-" if pair[name] is None else f"{pair[name]:.2f}" for name in names)
        rows.append([" and ".join(map(str, pair["models"])), *values])
    heading = ["models", "overlap of matched biomarkers", "weighted by area", "by chance"]
    table = markdown_table([*heading, "rank correlation of effects"], rows)
    return ["Biomarkers of two models, matched (Hungarian) by the places that they share:", table]


def draw(
    output: Path,
    dataset: Sequence[Mapping[str, Any]],
    rows: Sequence[Mapping[str, Any]],
    methods: Sequence[Any],
    modalities: Sequence[str],
    datalist: Any,
    *,
    patients: int = 2,
) -> None:
    """The surest correct positive patients: the slice that shows most of what was planted (else the middle one)."""
    import numpy as np
    import torch

    from shared.explain.ircl.comparison import image_places
    from shared.explain.ircl.planted import planted_truth
    from shared.transforms.roi_slices import radiological
    from shared.visualize import explanation_grid

    probability = {row["patient"]: row["probability"] for row in rows}
    order = sorted(dataset, key=lambda case: (case.get("label") == 1, probability[str(case["patient"])]), reverse=True)
    images, maps, outlines, truths, titles = [], {method.name: [] for method in methods}, [], [], []
    for case in order[:patients]:
        image = torch.as_tensor(case["image"])
        slices = len(image) // len(modalities)
        truth = torch.zeros(image.shape, dtype=torch.bool)
        if case.get("planted") and datalist.planted_visible:
            truth = planted_truth(case, modalities, datalist.planted_visible, image.shape[-1])
        area = truth.unflatten(0, (-1, slices)).sum(dim=(0, 2, 3))
        picked = int(area.argmax()) if area.any() else slices // 2
        chosen = list(range(picked, len(image), slices))
        with np.load(output / "patients" / f"{case['patient']}.npz", allow_pickle=False) as known:
            found = dict(zip(known["methods"].tolist(), known["maps"], strict=True))
        for method in methods:
            evidence = method.evidence(torch.as_tensor(found[method.name][chosen]))
            maps[method.name].append(_scaled(evidence))
        places = image_places(case, modalities, len(image))
        truths.append(truth[chosen])
        images.append(image[chosen])
        outlines.append(torch.as_tensor(case["mask"])[chosen])
        who = f"{case['patient']}, p = {probability[str(case['patient'])]:.2f}"
        titles += [f"{who}\n{places[i][0]}, slice {places[i][1]}" for i in chosen]
    if not images:
        return

    def hung(parts: Sequence[Any]) -> Any:
        return radiological(torch.cat([torch.as_tensor(part) for part in parts]))

    truth = hung(truths)
    explanation_grid(
        hung(images),
        {name: hung(values) for name, values in maps.items()},
        output / "explanation_comparison.png",
        titles=titles,
        outline=hung(outlines),
        truth=truth if truth.any() else None,
        header=f"What speaks for {datalist.classes[1]}",
    )


def _scaled(evidence: Any) -> Any:
    """To [0, 1], the modalities of a patient alike; 1 from the 99th percentile of the values above 0 on."""
    import torch

    positive = evidence[evidence > 0]
    return (evidence / torch.quantile(positive, 0.99)).clamp(max=1) if len(positive) else evidence
