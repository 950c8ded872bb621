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
}
LINK = re.compile(r"(!?)\[([^]]*)\]\((?!\w+:|#)([^)#\s]+)(#[^)\s]*)?\)")


def on_files(files: Files, config: Any) -> Files:
    """Add the pages that lie outside docs/."""
    for path, page in PAGES.items():
        files.append(File.generated(config, page, content=(ROOT / path).read_text("utf-8")))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Links as the site has them; of a link to a file that is no page, its text."""
    sources = {name: path for path, name in PAGES.items()}
    folder = PurePosixPath(sources.get(page.file.src_uri, f"docs/{page.file.src_uri}")).parent

    def on_site(link: re.Match[str]) -> str:
        mark, text, target, anchor = link.groups()
        path = normpath(folder / target)
        name = PAGES.get(path, path.removeprefix("docs/") if path.startswith("docs/") else None)
        return f"{mark}[{text}]({name}{anchor or ''})" if name else text

    return LINK.sub(on_site, markdown)
