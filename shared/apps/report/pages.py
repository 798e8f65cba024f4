"""Pages from templates: escaped by default, in one file, loading nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from shared.io import write_text

LARGEST = 14 * 10**6
"""Characters of a page that pictures and volumes may fill; what does not fit is named."""

_TEMPLATES = [Path(__file__).parent / "templates", Path(__file__).parents[1] / "study" / "templates"]


def write_page(path: Path, template: str, content: dict[str, Any]) -> Path:
    """Write a page; every text of ``content`` is escaped, and a name that a template lacks is an error."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    write_text(path, environment.get_template(template).render(**content))
    return path
