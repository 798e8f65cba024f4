"""Audit a cohort for leakage: what lets a model know the label, or a patient of the test, other than by the images.

Looked at are the datalist as it stands, the files, their headers and the pixels; one table, red or green. Nothing is
changed. With --train, one fold is trained twice, with and without the left-out patients' own images and labels: every
checkpoint must be bitwise the same.

    python scripts/audit.py ircl_mvi --dataset_dir data/hcc
    python scripts/audit.py sscl_crc --dataset_dir data/crc --train --config cpu --strict
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from shared.apps import ROOT
from shared.apps.audit.rows import LABELLED, Finding, listed
from shared.apps.experiments.options import add_options, check_options, parse_options

SHOWN = 12  # pairs in the picture
MOST_PAIRS = 10_000
HEADER = ("", "check", "item", "AUC", "found")
HOW = (
    "AUC: how well the label is told from the field alone, by a random forest that never saw the patient; brackets: "
    "95 % interval (DeLong, by patient). Red: its low end is above 0.6; amber: above 0.5."
)


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("bundle", help="a name under bundles/, or the folder of an unpacked bundle")
    add("--dataset_dir", required=True, help="folder with datalist.json")
    add("--datalist_file", help="another datalist (default: DATASET_DIR/datalist.json)")
    add("--output", type=Path, help="folder (default: bundles/BUNDLE/eval/audit)")
    add("--report", type=Path, help="folder of the report that shows the section (default: OUTPUT)")
    add("--turned", action="store_true", help="near-duplicates that are flipped or turned, too (8 times the time)")
    add("--train", action="store_true", help="the left-out fold: train one fold twice and compare the checkpoints")
    add("--strict", action="store_true", help="exit status 1 where something is red")
    add_options(parser)
    args = parse_options(parser, argv)
    check_options(parser, args)
    return args


def audit(args: argparse.Namespace) -> list[Finding]:
    """Run all checks; write audit.csv, audit.json, near_duplicates.csv and .png, and the report's section."""
    from shared.apps.audit.rows import read_cohort
    from shared.apps.audit.signals import file_fields, header_fields, split_dates
    from shared.bundle.configs import find_bundle

    bundle = find_bundle(args.bundle, ROOT)
    output = Path(args.output or bundle / "eval" / "audit")
    cohort = read_cohort(args.dataset_dir, args.datalist_file or "datalist.json")
    labelled = cohort.labelled
    findings = patient_findings(cohort)
    pairs, found = duplicate_findings(cohort, output, turned=args.turned, threads=args.threads)
    findings += found
    if labelled:
        names, dates = name_columns(labelled, cohort.patches)
        columns, caps = file_fields(labelled, cohort.root)
        headers, dated = split_dates(header_fields(cohort, labelled))
        for kind, asked in (("names", names), ("files", columns), ("dates", dates | dated), ("acquisition", headers)):
            findings += signal_findings(kind, labelled, asked, caps if kind == "files" else {})
    else:
        findings.append(Finding("names", "", "", "no row has a label: nothing can predict it"))
    if args.train:
        from shared.apps.audit.left_out import left_out_finding

        findings.append(left_out_finding(args, output / "left_out"))
    write(output, args.report or output, findings, pairs, cohort, bundle.name)
    return findings


def patient_findings(cohort: Any) -> list[Finding]:
    """Patients and groups in two parts, patients of two labels or groups, names that differ by their spelling alone."""
    parts: dict[str, dict[str, set[str]]] = {"patient": defaultdict(set), "group": defaultdict(set)}
    groups, labels, spelled, of_patient = (defaultdict(set) for _ in range(4))
    for row in cohort.rows:
        if row.section in LABELLED:  # the bundles leave out unlabelled patches of who is tested
            parts["patient"][row.patient].add(row.part)
            parts["group"][row.unit].add(row.part)
        groups[row.patient].add(row.unit)
        labels[row.patient] |= {row.label} - {None}
        spelled[_plain(row.patient)].add(row.patient)
        of_patient[row.patient].add(row.part)
    findings = []
    for what, found in parts.items():
        twice = [f"{name} ({', '.join(sorted(places))})" for name, places in found.items() if len(places) > 1]
        where = "folds or parts" if cohort.folds else "parts; without folds in the datalist they are made by patient"
        text = f"{len(twice)} in two: {listed(twice)}" if twice else f"{len(found)} {what}s, none in two {where}"
        findings.append(Finding("patients", f"a {what} in two parts or folds", "red" if twice else "green", text))
    checks: dict[str, tuple[list[str], str]] = {
        "a patient in two groups": ([name for name, own in groups.items() if len(own) > 1], "red"),
        "names that differ in spelling alone": (
            [
                " = ".join(f"{name} ({', '.join(sorted(of_patient[name]))})" for name in sorted(names))
                for names in spelled.values()
                if len(names) > 1
            ],
            "amber",
        ),
    }
    if not cohort.patches:
        twice = [name for name, own in labels.items() if len(own) > 1]
        checks["a patient with two labels"] = (twice, "red")
    for item, (names, status) in checks.items():
        text = f"{len(names)}: {listed(names)}" if names else "none"
        findings.append(Finding("patients", item, status if names else "green", text))
    return findings


def _plain(name: str) -> str:
    """A name without capitals, signs and leading zeros of its numbers."""
    import re

    return re.sub(r"(?<!\d)0+(?=\d)", "", re.sub(r"[\W_]+", " ", name.casefold()).strip())


def duplicate_findings(
    cohort: Any, output: Path, *, turned: bool = False, threads: int = 2
) -> tuple[list[dict[str, Any]], list[Finding]]:
    """Files of the same bytes and near-duplicates: the table's rows, and what is found of them."""
    from shared.apps.audit.duplicates import byte_identical, near_duplicates, pairs_figure, thumbnails_of
    from shared.digests import Digests

    rows = cohort.rows
    output.mkdir(parents=True, exist_ok=True)
    digests = Digests(output)
    identical = byte_identical(rows, digests)
    digests.save()
    views = thumbnails_of(cohort, threads)
    near = [pair for view, pictures in views.items() for pair in near_duplicates(pictures, view, turned=turned)]
    same = {(pair.first, pair.other) for pair in near if pair.same}
    near = [pair for pair in near if pair.same or (pair.first, pair.other) not in same]
    near.sort(key=lambda pair: -pair.correlation)
    told: list[dict[str, Any]] = []
    statuses: dict[tuple[int, int, str], str] = {}

    def tell(first: int, other: int, view: str, kind: str, **more: Any) -> None:
        a, b = rows[first], rows[other]
        where = "one patient" if a.patient == b.patient else "one group" if a.unit == b.unit else "two patients"
        open_pair = a.unit != b.unit or _apart(a, b)
        free = "unlabelled" in (a.section, b.section)
        clash = None not in (a.label, b.label) and a.label != b.label
        status = "green" if not open_pair else "amber" if free or kind == "alike" else "red"
        statuses[first, other, view] = status
        who = {"first": a.name, "other": b.name, "first_patient": a.patient, "other_patient": b.patient}
        who |= {"first_part": a.part, "other_part": b.part, "of": where, "two_labels": int(clash)}
        told.append({"kind": kind, "status": status, **who, "view": view, **more})

    for first, other in identical:
        tell(first, other, "file", "identical", distance=0, correlation=1.0, own=1.0)
    for pair in near:
        values = {"distance": pair.distance, "correlation": pair.correlation, "own": pair.own}
        tell(pair.first, pair.other, pair.view, "near-duplicate" if pair.same else "alike", **values)
    told.sort(key=lambda row: ("red", "amber", "green").index(row["status"]))
    findings = []
    for kind, item in (
        ("identical", "files of the same bytes"),
        ("near-duplicate", "near-duplicates"),
        ("alike", "images that are alike, to be looked at"),
    ):
        own = [row for row in told if row["kind"] == kind]
        pairs: dict[str, list] = {"red": [], "amber": [], "green": []}
        for row in own:
            pairs[row["status"]].append((row["first"], row["other"]))
        pairs = {status: list(dict.fromkeys(names)) for status, names in pairs.items()}
        status = next((status for status in ("red", "amber") if pairs[status]), "green")
        open_pairs = pairs["red"] + [pair for pair in pairs["amber"] if pair not in pairs["red"]]
        inside = f"{len(pairs['green'])} pairs within a patient or group, which stay together"
        clashes = len({(r["first"], r["other"]) for r in own if r["two_labels"]})
        text = (
            f"{len(open_pairs)} pairs of different patients or parts: {listed([' = '.join(p) for p in open_pairs])}; "
        )
        text = (text if open_pairs else "none of different patients or parts; ") + inside
        text += f"; {clashes} pairs have two labels" if clashes else ""
        findings.append(Finding("near-duplicates", item, status, text, rows=len(rows)))
    shown = [pair for pair in near if statuses[pair.first, pair.other, pair.view] != "green"] or near
    if shown:
        pictures = [
            (views[p.view][p.first], views[p.view][p.other], f"{rows[p.first].name} | {rows[p.other].name}\n"
             f"{p.view}, correlation {p.correlation:.3f}")
            for p in shown[:SHOWN]
        ]  # fmt: skip
        pairs_figure(pictures, output / "near_duplicates.png")
    else:
        (output / "near_duplicates.png").unlink(missing_ok=True)
    return told[:MOST_PAIRS], findings


def _apart(a: Any, b: Any) -> bool:
    """One patient's two rows that are in different parts of which one is tested on the other."""
    return a.part != b.part and "unlabelled" not in (a.section, b.section)


def name_columns(rows: Sequence[Any], patches: bool) -> tuple[dict[str, Any], dict[str, Any]]:
    """Columns of the patients' names and, of patches, of the files'; and of the dates in them."""
    from shared.apps.audit.signals import day_of, name_fields

    columns: dict[str, Any] = {}
    dates: dict[str, Any] = {}
    kinds = {"patient's name": [row.patient for row in rows]}
    if patches:
        kinds["file's name"] = [row.images[0].stem for row in rows]
    for what, names in kinds.items():
        columns |= {f"{what}: {field}": values for field, values in name_fields(names).items()}
        days = [day_of(name) for name in names]
        dates |= {f"date in the {what}": days} if any(day is not None for day in days) else {}
    return columns, dates


def signal_findings(
    kind: str, rows: Sequence[Any], columns: Mapping[str, Any], caps: Mapping[str, str]
) -> list[Finding]:
    """What each field says of the label, the strongest first."""
    from shared.apps.audit.signals import signals

    found = signals(kind, rows, columns, caps)
    if not found:
        return [Finding(kind, "", "green", f"{len(columns)} fields, none of which varies" if columns else "none there")]
    return sorted(found, key=lambda signal: -(signal.low or 0.0))


def write(
    output: Path, report: Path, findings: Sequence[Finding], pairs: Sequence[Mapping], cohort: Any, bundle: str
) -> None:
    """Write the tables and the section."""
    from shared.io import write_csv, write_json
    from shared.reports.sections import worst, write_section

    rows = [asdict(finding) for finding in findings]
    write_csv(output / "audit.csv", rows)
    columns = ("kind", "status", "first", "other", "first_patient", "other_patient", "first_part", "other_part")
    columns += ("of", "two_labels", "view", "distance", "correlation", "own")
    write_csv(output / "near_duplicates.csv", pairs, columns=columns)
    status = worst([finding.status for finding in findings])
    count = {key: len({getattr(row, key) for row in cohort.rows}) for key in ("name", "patient", "unit")}
    counts = {"rows": len(cohort.rows), "patients": count["patient"], "groups": count["unit"]}
    checks: dict[str, str] = {}
    for finding in findings:
        checks[finding.check] = worst([checks.get(finding.check, ""), finding.status])
    content = {"bundle": bundle, "status": status, **counts, "checks": checks, "findings": rows}
    write_json(output / "audit.json", content)
    told = {key: [f for f in findings if f.status == key] for key in ("red", "amber")}
    text = [f"{counts['rows']} images of {counts['patients']} patients." if cohort.patches else
            f"{counts['patients']} patients in {counts['groups']} groups."]  # fmt: skip
    names = {key: ", ".join(dict.fromkeys(f"{f.check} ({f.item})" for f in found)) for key, found in told.items()}
    text += [f"Red: {names['red']}." if told["red"] else "No check is red."]
    text += [f"Amber, to be looked at: {names['amber']}."] if told["amber"] else []
    text.append(HOW)
    picture = output / "near_duplicates.png"
    alt = "Pairs of images that show the same or are alike, side by side, with names and correlation"
    write_section(
        report,
        "10_audit",
        title="Leakage audit",
        status=status,
        text=text,
        tables=[{"caption": "What was looked at", "header": HEADER, "rows": lines(findings)}],
        pictures=[(picture.resolve(), alt)] if picture.is_file() else [],
        patients=bool(pairs) or any(f.check == "patients" and f.status != "green" for f in findings),
    )


def lines(findings: Sequence[Finding]) -> list[list[str]]:
    """Rows of the table, with ``HEADER``."""
    from shared.reports.tables import interval_text

    aucs = ["" if f.auc is None else interval_text({"value": f.auc, "low": f.low, "high": f.high}) for f in findings]
    return [[f.status, f.check, f.item, auc, f.found] for f, auc in zip(findings, aucs, strict=True)]


def main(argv: Sequence[str] | None = None) -> int:
    """Audit; status 1 with --strict where something is red."""
    args = arguments(argv)
    from shared.apps.experiments.processes import resumable
    from shared.reports.tables import markdown_table

    with resumable("audit"):
        findings = audit(args)
    print(markdown_table(HEADER, lines(findings)))
    return int(args.strict and any(finding.status == "red" for finding in findings))
