"""Write docs/reference/configs.md from the bundles' JSON and the docstrings of what it names."""

from __future__ import annotations

import argparse

from shared.apps import ROOT

PAGE = ROOT / "docs" / "reference" / "configs.md"


def main() -> None:
    """Command line."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    from shared.apps.reference.configs import configs_page
    from shared.io import write_text

    write_text(PAGE, configs_page(ROOT / "bundles"))
    print(PAGE.relative_to(ROOT))
