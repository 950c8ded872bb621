"""What each part of an analysis made, and which parts of an earlier one still hold.

A part is what one analysis makes: files, a section of the report, verdicts. It holds as long as the
dictionaries and how they are compared are the same; a run that does not make it anew keeps it.
"""

import json
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from sparse_dict.analysis.claim import Judged
from sparse_dict.analysis.report.page import (
    Block,
    Code,
    Link,
    Markup,
    Notes,
    Picture,
    Section,
    Table,
)
from sparse_dict.config import AnalyzeConfig
from sparse_dict.errors import MALFORMED, UserError
from sparse_dict.storage import files

SECTIONS = "sections.json"  # what parts show in the report
KINDS = {kind.kind: kind for kind in (Link, Notes, Code)}


@dataclass(frozen=True)
class Part:
    """What one analysis made."""

    files: tuple[str, ...]  # their names in the analysis' folder
    section: Section | None = None
    claims: tuple[Judged, ...] = ()


def files_in(folder: Path) -> set[str]:
    """The files in a folder, and in those in it, by their path from there."""
    return {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}


def made_of(config: AnalyzeConfig, dictionaries: Iterable[Mapping[str, str]]) -> str:
    """The fingerprint of what parts are made of: `dictionaries` of each study, by their weights."""
    return files.fingerprint([*dictionaries, asdict(config.comparison), config.seed])


def record(parts: Mapping[str, Part], of: str) -> dict[str, Any]:
    """What `analysis.json` says of parts."""
    return {name: {"of": of, "files": list(part.files)} for name, part in parts.items()}


def write(folder: Path, parts: Mapping[str, Part]) -> None:
    """Write what parts show and judge."""
    shown = {
        name: {
            "section": part.section and _encoded(part.section),
            "claims": [claim.as_json() for claim in part.claims],
        }
        for name, part in parts.items()
    }
    files.write_json(folder / SECTIONS, shown)


def kept(folder: Path, there: Mapping[str, Any], of: str) -> dict[str, Part]:
    """The parts of a finished analysis that are made of the same as now.

    `there` is its record; a part of it that is malformed, or lacks a file, is none.
    """
    found: dict[str, Part] = {}
    with suppress(UserError, *MALFORMED):
        shown = files.read_json(folder / SECTIONS)
        for name, part in there["parts"].items():
            with suppress(OSError, *MALFORMED):
                names = tuple(part["files"])
                recorded = all(name in there["sha256"] for name in names)
                if part["of"] == of and recorded and all((folder / n).is_file() for n in names):
                    section = _decoded(folder, shown[name]["section"])
                    claims = tuple(map(Judged.of_json, shown[name]["claims"]))
                    found[name] = Part(names, section, claims)
    return found


def _encoded(section: Section) -> dict[str, Any]:
    return {"title": section.title, "blocks": [_plain(block) for block in section.blocks]}


def _plain(block: Block) -> Any:
    """A block as JSON; what is drawn by a script is, when it is kept, a link to its page."""
    match block:
        case str():
            return block
        case Picture():
            values = {"key": block.key, "title": block.title, "caption": block.caption}
            return {"kind": "picture", **values}
        case Table():
            table = json.loads(
                block.frame.to_json(orient="split", index=False, double_precision=15)
            )
            return {"kind": "table", "title": block.title, "fold": block.fold, **table}
        case Markup():
            return {"kind": "link", "text": "The page that shows this part", "href": block.page}
        case _:
            return {"kind": block.kind, **asdict(block)}


def _decoded(folder: Path, section: Any) -> Section | None:
    """The section as it was; pictures are read from their files."""
    if section is None:
        return None
    return Section(section["title"], [_block(folder, block) for block in section["blocks"]])


def _block(folder: Path, block: Any) -> Block:
    if isinstance(block, str):
        return block
    values = {key: value for key, value in block.items() if key != "kind"}
    if block["kind"] == "picture":
        return Picture(**values, png=(folder / f"{block['key']}.png").read_bytes())
    if block["kind"] == "table":
        frame = pd.DataFrame(block["data"], columns=block["columns"])
        return Table(block["title"], frame, bool(block["fold"]))
    return KINDS[block["kind"]](**values)
