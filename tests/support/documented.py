"""What bundles and scripts write, compared with what docs/reference/outputs.md says of it."""

import csv
import json
import re
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "outputs.md"


def documented_files():
    """Of each section: the bundle or script it is of ("": all), the file's pattern, patterns of its columns or keys."""
    found = []
    for section in PAGE.read_text(encoding="utf-8").split("\n### ")[1:]:
        heading, *lines = re.split(r"\n## ", section)[0].splitlines()
        of, _, file = heading.rpartition(": `") if ": `" in heading else ("", "", heading.removeprefix("`"))
        keys = set()
        for line in lines:
            if line.startswith("|") and not line.startswith(("|---", "| column |", "| key |")):
                # further keys of a group stand in the cell that says what they are
                cells = line.split("|")[1:4] if " ... |" in line else line.split("|")[1:2]
                keys |= {name for cell in cells for name in re.findall(r"`([^`]+)`", cell)}
        found.append((of, _pattern(file.split("`")[0]), [_pattern(key) for key in keys]))
    return found


def undocumented(path, names, of):
    """The columns or keys of a file that no section about it names; the file itself where there is no section."""
    sections = [
        (file, keys)
        for owner, file, keys in documented_files()
        if owner in ("", of) and re.fullmatch(rf"(.*/)?{file}", str(path))
    ]
    if not sections:
        return [f"{path}: not described"]
    keys = [key for _, found in sections for key in found]
    return [f"{path}: {name}" for name in names if not any(re.fullmatch(key, name) for key in keys)]


def undocumented_in(folder, of):
    """What of the tables and JSON files below a folder is not described."""
    missing = []
    for path in sorted(Path(folder).rglob("*")):
        relative = path.relative_to(folder)
        if path.suffix == ".csv":
            with path.open(newline="", encoding="utf-8") as file:
                missing += undocumented(relative, next(csv.reader(file), []), of)
        elif path.suffix == ".json" and not any(part.startswith(".") for part in relative.parts):
            missing += undocumented(relative, json_keys(json.loads(path.read_text(encoding="utf-8"))), of)
    return missing


def json_keys(value, prefix=""):
    """Paths of all values: ``a.b``, ``a[].b``; an empty object or list counts as a value."""
    if isinstance(value, dict) and value:
        return list(dict.fromkeys(k for key, v in value.items() for k in json_keys(v, f"{prefix}.{key}".lstrip("."))))
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return list(dict.fromkeys(key for item in value for key in json_keys(item, f"{prefix}[]")))
    return [prefix]


def _pattern(name):
    parts = re.split(r"<[^>]+>", name)
    return ".+".join(re.escape(part) for part in parts)
