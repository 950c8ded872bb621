"""What the report says of sections and figures: `figures.md`, which docs/figures.md shows.

A heading ``## NAME: TITLE`` begins a section, with its introduction; ``### KEY: TITLE`` a figure of
it, with its caption. What stands before the first of these is for the documentation alone.
"""

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

PAGE = Path(__file__).parent.parent / "figures.md"
HEADING = re.compile(r"^(##|###) ([\w*]+): (.+)$", re.MULTILINE)


@dataclass(frozen=True)
class Text:
    """A section or a figure in words."""

    title: str
    paragraphs: tuple[str, ...]  # without line breaks and without marks of Markdown

    @property
    def caption(self) -> str:
        """All of it in one paragraph."""
        return " ".join(self.paragraphs)


@cache
def _page() -> dict[tuple[str, str], Text]:
    """Every text, by the level of its heading and its key."""
    _, *parts = HEADING.split(PAGE.read_text(encoding="utf-8"))
    headings = zip(parts[::4], parts[1::4], parts[2::4], parts[3::4], strict=True)
    found = {}
    for level, key, title, body in headings:
        plain = re.sub(r"\[([^]]+)\]\([^)]+\)", r"\1", body)  # a link: its text
        plain = re.sub(r"(`|\*\*?)([^`*\n]+)\1", r"\2", plain)
        paragraphs = [" ".join(part.split()) for part in plain.split("\n\n")]
        found[level, key] = Text(title.strip(), tuple(filter(None, paragraphs)))
    return found


def section(name: str) -> Text:
    """The title and the introduction of an analysis' section."""
    return _page()["##", name]


def figure(key: str) -> Text:
    """The title and the caption of a figure; of several that are numbered, KEY_1, that of KEY."""
    return _page()["###", re.sub(r"_\d+$", "", key)]
