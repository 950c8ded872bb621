"""The report: one HTML file that needs nothing else, with its figures inside."""

import base64
import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup as Safe

FOLDER = Path(__file__).parent
PAGE_PIXELS = 1050  # a figure of 7 inches at 150 dpi fills the text's width
VERDICT_CLASS = {"holds": "holds", "does not hold": "fails", "undecided": "undecided"}


def templates(folder: Path) -> Environment:
    """The templates in `folder`. They escape every text, so that no name can become markup."""
    found = Environment(
        loader=FileSystemLoader(folder), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True,
    )  # fmt: skip
    found.policies["json.dumps_kwargs"] = {"allow_nan": False, "separators": (",", ":")}
    return found


TEMPLATES = templates(FOLDER)


@dataclass(frozen=True)
class Picture:
    """A figure of the report; `key` names the files beside it, of which the PNG is embedded."""

    key: str
    title: str
    caption: str


@dataclass(frozen=True)
class Table:
    """A table of the report; columns that are empty throughout are left out."""

    title: str
    frame: pd.DataFrame
    fold: bool = False  # shown on demand

    @property
    def key(self) -> str:
        """A short name: the title up to a comma or a bracket."""
        return re.split(r"[,(]", self.title)[0].strip().lower().replace(" ", "_")

    @property
    def shown(self) -> pd.DataFrame:
        """The columns that are not empty."""
        return self.frame[[c for c in self.frame.columns if (self.frame[c] != "").any()]]

    def columns(self) -> Iterator[tuple[str, str | None]]:
        """Each column's name and CSS class."""
        for name, values in self.shown.items():
            yield str(name), "number" if pd.api.types.is_numeric_dtype(values) else None

    def rows(self) -> Iterator[tuple[tuple[str, str | None], ...]]:
        """For each row the text and the CSS class of its cells."""
        columns = [values.tolist() for _, values in self.shown.items()]
        specs = map(_spec, columns)
        cells = [[_cell(v, spec) for v in of] for of, spec in zip(columns, specs, strict=True)]
        return zip(*cells, strict=True)


def _cell(value: object, spec: str) -> tuple[str, str | None]:
    if isinstance(value, bool) or not isinstance(value, int | float):
        verdict = VERDICT_CLASS.get(str(value))
        return str(value), verdict and f"verdict {verdict}"
    if value != value:
        return "-", "number"
    return format(value, "," if isinstance(value, int) else spec), "number"


def _spec(values: list[object]) -> str:
    """Three decimals where that shows every float of a column well, else four digits."""
    sizes = [abs(v) for v in values if isinstance(v, float) and v == v and v != 0]
    return ".3f" if sizes and max(sizes) < 100 and min(sizes) >= 0.05 else ".4g"


@dataclass(frozen=True)
class Link:
    """A sentence that leads to a file beside the report."""

    text: str
    href: str


@dataclass(frozen=True)
class Notes:
    """A bulleted list."""

    items: list[str]


@dataclass(frozen=True)
class Code:
    """Preformatted text, shown on demand."""

    title: str
    text: str


@dataclass(frozen=True)
class Markup:
    """HTML as it stands, whose texts are escaped, with the style and the script that it needs."""

    html: str
    style: str = ""
    script: str = ""
    page: str = ""  # a file beside the report that shows the same


Block = str | Picture | Table | Link | Notes | Code | Markup

MISSING = "This part is missing: {}."  # with the reason


@dataclass
class Section:
    """A heading and what stands below it, in order; a plain string is a paragraph."""

    title: str
    blocks: list[Block] = field(default_factory=list)

    def tables(self) -> list[Table]:
        """Its tables, in order."""
        return [block for block in self.blocks if isinstance(block, Table)]

    @property
    def html(self) -> Safe:
        """What stands below the heading; of pictures the names alone."""
        blocks = [(type(block).__name__, block) for block in self.blocks]
        return Safe(TEMPLATES.get_template("section.html.jinja").render(blocks=blocks))


def render(
    title: str,
    subtitle: str,
    sections: Sequence[Section],
    lead: Sequence[str] = (),
    alarm: str | None = None,
) -> str:
    """The whole report; it begins with the sentences of `lead`, after a red one, `alarm`."""
    template = TEMPLATES.get_template("report.html.jinja")
    body = template.render(
        title=title, subtitle=subtitle, sections=sections, lead=lead, alarm=alarm
    )
    of = (block for section in sections for block in section.blocks)
    drawn = [block for block in of if isinstance(block, Markup) and block.script]
    style = (FOLDER / "report.css").read_text(encoding="utf-8")
    return page(title, body, [style, *(d.style for d in drawn)], [d.script for d in drawn])


def embedded(html: str, *folders: Path) -> str:
    """A page with its pictures inside, numbered, of files in one of the folders.

    Each has the share of the text's width that makes letters alike in all figures.
    """
    numbers = count(1)

    def inside(found: re.Match[str]) -> str:
        png = next(f / found[2] for f in folders if (f / found[2]).exists()).read_bytes()
        pixels = int.from_bytes(png[16:20], "big")  # from the PNG's header
        width, data = min(1.0, pixels / PAGE_PIXELS), base64.b64encode(png).decode("ascii")
        image = f'<img width="{width:.1%}" {found[1]} src="data:image/png;base64,{data}">'
        return f"{image}{found[3]} {next(numbers)}"

    picture = r'<img (alt="[^"]*") src="(\w+\.png)">(\n<figcaption><b>Figure)'
    return re.sub(picture, inside, html)


def page(title: str, body: str, styles: Sequence[str], scripts: Sequence[str]) -> str:
    """A page around an escaped `body`; a browser loads and runs nothing but what is named here."""
    policy = (
        f"default-src 'none'; base-uri 'none'; form-action 'none'; img-src data:; "
        f"style-src {_hashes(styles)}; script-src {_hashes(scripts)}"
    )
    return TEMPLATES.get_template("page.html.jinja").render(
        title=title, body=Safe(body), styles=styles, scripts=scripts, policy=policy
    )


def _hashes(texts: Sequence[str]) -> str:
    """Sources of a Content-Security-Policy that allow these inline texts alone."""
    digests = (base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in texts)
    return " ".join(f"'sha256-{digest}'" for digest in digests) or "'none'"
