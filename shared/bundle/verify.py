"""Verify bundles: files, metadata, versions, paths, properties, the network and its exports; one table, exit status.

python scripts/verify_bundles.py                       # all bundles of the repository
python -m shared.bundle.verify                      # within an unpacked bundle: itself
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import textwrap
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import shared
from shared.bundle.checks import Result, cheap_checks
from shared.bundle.contents import find_bundles, read_metadata
from shared.errors import DataError

ROOT = Path(shared.__file__).resolve().parents[1]


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("names", nargs="*", metavar="NAME", help="bundles by name or folder (default: all)")
    add("--schema", type=Path, help="MONAI's metadata schema as a file (default: fetched from the URL in the metadata)")
    add("--no-schema", action="store_true", help="leave the schema out, where there is no network")
    add("--quick", action="store_true", help="only what needs no network of layers: files, metadata, versions, paths")
    add("--config", nargs="+", default=[], metavar="OVERLAY", help="overlays of train.json, for a smaller network: cpu")
    add("--dataset_dir", type=Path, help="a prepared folder for check_properties (default: a few phantoms are made)")
    add("--output", type=Path, help="keep the exports in this folder, one for each bundle")
    args = parser.parse_args(argv)
    if args.schema and args.no_schema:
        parser.error("--schema and --no-schema exclude each other")
    return args


def read_schema(args: argparse.Namespace, bundle: Path) -> dict[str, Any] | None:
    """The schema: the file, else from the URL that the metadata names; None: left out.

    Raises:
        DataError: neither can be read.
    """
    if args.no_schema:
        return None
    source = args.schema or read_metadata(bundle).get("schema", "")
    try:
        if args.schema:
            return json.loads(args.schema.read_text(encoding="utf-8"))
        if not str(source).startswith("https://"):
            raise ValueError("an https address is needed")
        with urllib.request.urlopen(source, timeout=30) as answer:
            return json.load(answer)
    except (OSError, ValueError, urllib.error.URLError) as error:
        raise DataError(
            f"schema {source!r} cannot be read ({error}): give --schema FILE, or --no-schema to leave it out"
        ) from error


def verify(bundle: Path, args: argparse.Namespace) -> Iterator[Result]:
    """All checks of one bundle."""
    try:
        schema, problem = read_schema(args, bundle), None
    except DataError as error:
        schema, problem = None, str(error)
    for result in cheap_checks(bundle, root=ROOT, schema=schema):
        yield Result(bundle.name, result.check, [problem]) if problem and "schema" in result.check else result
    if args.quick:
        return
    from shared.bundle.exports import ExportChecks
    from shared.bundle.properties import check_properties, phantom_data

    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        overlays = [name for name in args.config if (bundle / f"configs/{name}.json").is_file()]
        try:
            data = args.dataset_dir or phantom_data(bundle, ROOT, folder / "data")
            yield from check_properties(bundle, data, folder, overlays=overlays)
            (folder / "exports").mkdir()
            # phantoms have an atlas of few tracts; exports are checked as the metadata describes them
            settings = {} if args.dataset_dir is None else {"dataset_dir": str(args.dataset_dir)}
            yield from ExportChecks(bundle, folder / "exports", overlays=overlays, settings=settings).run()
        except Exception as error:
            while error.__cause__ is not None:
                error = error.__cause__
            yield Result(bundle.name, "building it", [f"{type(error).__name__}: {error}"])
            return
        if args.output:
            shutil.copytree(folder / "exports", args.output / bundle.name, dirs_exist_ok=True)


def table(results: Sequence[Result], *, width: int = 118) -> str:
    """Rows of bundle, check, status and what was found; problems each on lines of their own.

    Example:
        >>> print(table([Result("a", "files"), Result("a", "version", ["none"])]))
        bundle  check    status  what was found
        ------  -------  ------  --------------
        a       files    ok
        a       version  FAILED
                                 - none
    """
    rows = [("bundle", "check", "status", "what was found")]
    rows += [(each.bundle, each.check, each.status, each.note) for each in results]
    widths = [max(len(row[i]) for row in rows) for i in range(3)]
    indent = " " * (sum(widths) + 6)
    rows.insert(1, (*("-" * each for each in widths), "-" * len(rows[0][3])))
    lines = []
    for i, row in enumerate(rows):
        start = "  ".join(text.ljust(each) for text, each in zip(row[:3], widths, strict=True)) + "  "
        room = max(width - len(indent), 40)
        note = textwrap.wrap(row[3], room) or [""]
        lines += [(start + note[0]).rstrip(), *(indent + line for line in note[1:])]
        for problem in results[i - 2].problems if i > 1 else ():
            found = textwrap.wrap(problem, room - 2) or [""]
            lines += [f"{indent}- {found[0]}", *(f"{indent}  {line}" for line in found[1:])]
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Verify, print the table; the exit status is 1 where anything failed."""
    args = arguments(argv)
    try:
        bundles = find_bundles(args.names, root=ROOT)
    except DataError as error:
        print(f"verify_bundles: {error}", file=sys.stderr)
        return 2
    results: list[Result] = []
    for bundle in bundles:
        for result in verify(bundle, args):
            results.append(result)
            if sys.stderr.isatty():
                print(f"{result.bundle}: {result.check} {result.status}", file=sys.stderr)
    failed = sum(result.status == "FAILED" for result in results)
    skipped = sum(result.status == "skipped" for result in results)
    print(table(results))
    print(f"\n{len(results) - failed - skipped} ok, {failed} failed, {skipped} skipped")
    return int(failed > 0)


if __name__ == "__main__":
    raise SystemExit(main())
