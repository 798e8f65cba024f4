"""Pack bundles into NAME_v<version>.zip, each with its own copy of shared/: one file that runs anywhere.

The zip has the same bytes for the same input. Its sha256 is printed and written, with size and version, into
OUTPUT/model_info.json (the form of MONAI's model zoo) and OUTPUT/NAME_v<version>.zip.sha256 (for sha256sum -c).

    python scripts/package_bundle.py ircl_mvi sscl_crc --output dist
    python scripts/package_bundle.py --check dist/ircl_mvi_v0.2.0.zip --sha256 HEX      # before unpacking
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from shared.apps import ROOT
from shared.bundle.archive import check_package, package_bundle
from shared.bundle.checks import cheap_checks
from shared.bundle.contents import find_bundles
from shared.digests import sha256
from shared.errors import DataError, describe


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("names", nargs="*", metavar="NAME", help="bundles by name or folder")
    add("--output", type=Path, default=Path("dist"), help="folder of the zips (default: dist)")
    add("--url", help="where the files will lie, {file} for a file's name; needed for models over 25 MB")
    add("--schema", type=Path, help="check the metadata against MONAI's schema in this file, too")
    add("--check", type=Path, metavar="ZIP", help="only check a zip: its sha256, and that it holds one whole bundle")
    add("--sha256", help="with --check: what its checksum must be (default: as the files beside it say)")
    args = parser.parse_args(argv)
    if bool(args.check) == bool(args.names):
        parser.error("give the NAMEs of bundles to pack, or --check ZIP")
    if args.sha256 and not args.check:
        parser.error("--sha256 goes with --check")
    return args


def pack(args: argparse.Namespace) -> None:
    """Check the bundles, then pack them; nothing is written where one fails."""
    schema = json.loads(args.schema.read_text(encoding="utf-8")) if args.schema else None
    bundles = find_bundles(args.names, root=ROOT)
    results = [result for bundle in bundles for result in cheap_checks(bundle, root=ROOT, schema=schema)]
    problems = [f"{each.bundle}: {each.check}: {problem}" for each in results for problem in each.problems]
    if problems:
        raise DataError(problems)
    for bundle in bundles:
        archive = package_bundle(bundle, args.output, url=args.url)
        print(f"{sha256(archive)}  {archive} ({archive.stat().st_size / 2**20:.1f} MB)")


def main(argv: Sequence[str] | None = None) -> None:
    """Pack, or check what was packed."""
    args = arguments(argv)
    try:
        if args.check:
            found = check_package(args.check, sha256=args.sha256)
            print(f"ok: {found['name']} {found['version']}, {found['size'] / 2**20:.1f} MB, sha256 {found['sha256']}")
        else:
            pack(args)
    except (DataError, OSError) as error:
        raise SystemExit(f"package_bundle: {describe(error)}") from None
