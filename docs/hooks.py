"""What `mkdocs build` does besides: pages of the repository's root, and links into its files."""

import re
from pathlib import Path, PurePosixPath
from posixpath import normpath
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parent.parent
# Files outside docs/ that are pages of the site.
PAGES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "benchmarks/README.md": "benchmarks.md",
}
# What a page shows below its own text, and which page shows a file.
BELOW = {
    "figures.md": "sparse_dict/analysis/figures.md",
    "tables.md": "sparse_dict/analysis/columns.md",
}
LINK = re.compile(r"(!?)\[([^]]*)\]\((?!\w+:|#)([^)#\s]+)(#[^)\s]*)?\)")


def on_files(files: Files, config: Any) -> Files:
    """Add the pages that lie outside docs/."""
    for path, page in PAGES.items():
        files.append(File.generated(config, page, content=(ROOT / path).read_text("utf-8")))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Add what stands below, and write links as the site has them; to files, their text alone."""
    if below := BELOW.get(page.file.src_uri):
        markdown += (ROOT / below).read_text("utf-8").partition("\n")[2]
    pages = PAGES | {path: name for name, path in BELOW.items()}
    sources = {name: path for path, name in PAGES.items()}
    folder = PurePosixPath(sources.get(page.file.src_uri, f"docs/{page.file.src_uri}")).parent

    def on_site(link: re.Match[str]) -> str:
        mark, text, target, anchor = link.groups()
        path = normpath(folder / target)
        name = pages.get(path, path.removeprefix("docs/") if path.startswith("docs/") else None)
        return f"{mark}[{text}]({name}{anchor or ''})" if name else text

    return LINK.sub(on_site, markdown)
