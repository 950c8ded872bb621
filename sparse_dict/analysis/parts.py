"""What each analysis made: of a finished run, what still holds.

A part holds as long as the dictionaries and how they are compared are the same; a run that does not
make it anew keeps it.
"""

import json
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from sparse_dict.analysis.report import page
from sparse_dict.analysis.report.page import Block, Section
from sparse_dict.errors import MALFORMED, UserError
from sparse_dict.storage import files

RECORD = "sections.json"  # in the analysis' folder: all parts, and what they were made of
KINDS = {kind.kind: kind for kind in (page.Picture, page.Table, page.Link, page.Notes, page.Code)}


@dataclass(frozen=True)
class Part:
    """What one analysis made."""

    files: list[str]  # their names in the analysis' folder
    section: Section | None


def files_in(folder: Path) -> set[str]:
    """The files in a folder, and in those in it, by their path from there."""
    return {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}


def write(folder: Path, parts: Mapping[str, Part], of: str) -> None:
    """Write the parts that were made `of` this fingerprint."""
    written = {
        name: {
            "files": part.files,
            "title": part.section and part.section.title,
            "blocks": [_plain(block) for block in part.section.blocks] if part.section else [],
        }
        for name, part in parts.items()
    }
    files.write_json(folder / RECORD, {"of": of, "parts": written})


def kept(folder: Path, of: str, recorded: Collection[str]) -> dict[str, Part]:
    """The parts of a finished analysis that were made of the same; without `recorded` files, none.

    What is damaged is made anew like the rest.
    """
    found: dict[str, Part] = {}
    with suppress(UserError, OSError, *MALFORMED):
        record = files.read_json(folder / RECORD)
        for name, part in record["parts"].items() if record["of"] == of else ():
            if all(file in recorded and (folder / file).is_file() for file in part["files"]):
                blocks = [_block(folder, block) for block in part["blocks"]]
                section = None if part["title"] is None else Section(part["title"], blocks)
                found[name] = Part(part["files"], section)
    return found


def _plain(block: Block) -> Any:
    """A block as JSON; what is drawn by a script is, when it is kept, a link to its page."""
    if isinstance(block, str):
        return block
    if isinstance(block, page.Markup):
        block = page.Link("The page that shows this part", block.page)
    values = {"kind": block.kind, **vars(block)}
    values.pop("png", None)
    if isinstance(block, page.Table):
        text = values.pop("frame").to_json(orient="split", index=False, double_precision=15)
        values |= json.loads(text)
    return values


def _block(folder: Path, block: Any) -> Block:
    """A block as it was; pictures are read from their files."""
    if isinstance(block, str):
        return block
    values = dict(block)
    kind: Any = KINDS[values.pop("kind")]
    if kind is page.Picture:
        values["png"] = (folder / f"{values['key']}.png").read_bytes()
    if kind is page.Table:
        values["frame"] = pd.DataFrame(values.pop("data"), columns=values.pop("columns"))
    found: Block = kind(**values)
    return found
