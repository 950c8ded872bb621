"""What each analysis made: of a finished run, what still holds.

A part holds as long as the dictionaries and how they are compared are the same; a run that does not
make it anew keeps it.
"""

from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from sparse_dict.analysis.report.page import Block, Link, Markup, Section
from sparse_dict.errors import MALFORMED, UserError
from sparse_dict.storage import files

RECORD = "sections.json"  # in the analysis' folder: all parts, and what they were made of


@dataclass(frozen=True)
class Part:
    """What one analysis made."""

    files: list[str]  # their names in the analysis' folder
    title: str | None  # of its section; None: it has none
    html: str = ""  # of that section; pictures by their files' names

    @classmethod
    def of(cls, files: Iterable[str], section: Section | None) -> "Part":
        """With a section; what a script draws is, when it is kept, a link to its page."""
        if section is None:
            return cls(sorted(files), None)
        blocks: list[Block] = [
            Link("The page that shows this part", b.page) if isinstance(b, Markup) else b
            for b in section.blocks
        ]
        return cls(sorted(files), section.title, Section(section.title, blocks).html)

    @property
    def section(self) -> Section | None:
        """Its section as it was."""
        return None if self.title is None else Section(self.title, [Markup(self.html)])


def files_in(folder: Path) -> set[str]:
    """The files in a folder, and in those in it, by their path from there."""
    return {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}


def write(folder: Path, parts: Mapping[str, Part], of: str) -> None:
    """Write the parts that were made `of` this fingerprint."""
    written = {name: asdict(part) for name, part in parts.items()}
    files.write_json(folder / RECORD, {"of": of, "parts": written})


def kept(folder: Path, of: str, recorded: Mapping[str, str]) -> dict[str, Part]:
    """The parts of a finished analysis that were made of the same, all files of which are there.

    By the hashes that are `recorded`, without which there are none; what is damaged is made anew.
    """
    with suppress(UserError, OSError, *MALFORMED):
        record = files.read_json(path := folder / RECORD)
        if record["of"] == of and recorded[RECORD] == files.sha256_file(path):
            parts = {name: Part(**part) for name, part in record["parts"].items()}
            return {
                name: part
                for name, part in parts.items()
                if all(file in recorded and (folder / file).is_file() for file in part.files)
            }
    return {}
