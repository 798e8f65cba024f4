"""Write the requirement files from ``pyproject.toml``, where dependencies and extras stand once.

python scripts/write_requirements.py
"""

import argparse
import tomllib
from pathlib import Path

from shared.apps import ROOT

HEAD = "# Python 3.11 or newer. From pyproject.toml by scripts/write_requirements.py: edit that file.\n"


def requirement_files(pyproject: Path) -> dict[str, str]:
    """Name and text of each file: ``requirements.txt``, and ``requirements-EXTRA.txt`` of each extra."""
    project = tomllib.loads(pyproject.read_text(encoding="utf-8"))["project"]
    lists = {"requirements.txt": project["dependencies"]}
    lists |= {f"requirements-{extra}.txt": pins for extra, pins in project["optional-dependencies"].items()}
    return {name: HEAD + "".join(f"{pin}\n" for pin in pins) for name, pins in lists.items()}


def main() -> None:
    """Command line."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    for name, text in requirement_files(ROOT / "pyproject.toml").items():
        (ROOT / name).write_text(text, encoding="utf-8")
        print(name)
