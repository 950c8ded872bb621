"""What the report says: of sections and figures `figures.md`, of claims `claims.md`.

A heading ``## NAME: TITLE`` begins a section, with its introduction, or a claim; ``### KEY: TITLE``
a figure, with its caption. What stands before the first of these is for who reads the file.
"""

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

FIGURES, CLAIMS = (Path(__file__).parent.parent / f"{name}.md" for name in ("figures", "claims"))
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
def _texts(page: Path) -> dict[tuple[str, str], Text]:
    """Every text, by the level of its heading and its key."""
    _, *parts = HEADING.split(page.read_text(encoding="utf-8"))
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
    return _texts(FIGURES)["##", name]


def figure(key: str) -> Text:
    """The title and the caption of a figure; of several that are numbered, KEY_1, that of KEY."""
    return _texts(FIGURES)["###", re.sub(r"_\d+$", "", key)]


def claim(key: str) -> Text:
    """What a claim states, as its title, and how it is judged."""
    return _texts(CLAIMS)["##", key]
