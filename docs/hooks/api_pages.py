"""MkDocs hook: an API page of each room of ``shared/``, added to site and navigation while the site is built."""

import ast
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[2]


def api_pages() -> dict[str, str]:
    """Name and Markdown of each room's page: one ``:::`` line for each module that has public names."""
    rooms: dict[str, list[str]] = {}
    for path in sorted((ROOT / "shared").rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        if path.name != "__init__.py" and _has_public_names(path):
            rooms.setdefault(parts[1], []).append(".".join(parts))
    return {
        f"reference/api/{room}.md": f"# shared.{room}\n\n" + "\n".join(f"::: {module}\n" for module in modules)
        for room, modules in rooms.items()
    }


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Enter the pages into the navigation."""
    config.nav = [*(config.nav or []), {"API": [{f"shared.{Path(name).stem}": name} for name in api_pages()]}]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages to those of docs/."""
    for name, text in api_pages().items():
        files.append(File.generated(config, name, content=text))
    return files


def _has_public_names(path: Path) -> bool:
    body = ast.parse(path.read_text(encoding="utf-8")).body
    named = [node for node in body if isinstance(node, ast.FunctionDef | ast.ClassDef)]
    return any(not node.name.startswith("_") for node in named)
