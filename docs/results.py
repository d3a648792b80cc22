"""A hook of mkdocs: the pages of results that are there, listed where a page asks for them and in the navigation."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

MARK = "<!-- results -->"
NONE = "No comparison has been published with this version. The commands below make one of your own."


def results(docs: Path) -> dict[str, str]:
    """Title by path, relative to the folder of the documentation, of every page in ``results/``."""
    pages = sorted((docs / "results").rglob("*.md"))
    return {path.relative_to(docs).as_posix(): _title(path) for path in pages}


def on_config(config: Any) -> Any:
    """Put the pages of results at the end of the navigation."""
    found = list(results(Path(config["docs_dir"])))
    if found:
        config["nav"].append({"Results": found})
    return config


def on_page_markdown(markdown: str, *, page: Any, config: Any, files: Any) -> str:
    """Replace the mark by a list of links."""
    if MARK not in markdown:
        return markdown
    here = Path(page.file.src_uri).parent
    links = [f"* [{title}]({os.path.relpath(path, here)})" for path, title in results(Path(config["docs_dir"])).items()]
    return markdown.replace(MARK, "\n".join(links) or NONE)


def _title(path: Path) -> str:
    heads = (line[2:] for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("# "))
    return next(heads, path.stem)
