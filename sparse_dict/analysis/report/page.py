"""The report: one HTML file that needs nothing else, with its figures inside."""

import base64
import html
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pandas as pd

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CSS = """
body { font: 16px/1.5 Georgia, 'Times New Roman', serif; color: #1a1a1a; background: #fff;
  max-width: 60rem; margin: 2rem auto; padding: 0 1.5rem; }
h1, h2, h3, table, figcaption, summary, .meta { font-family: Helvetica, Arial, sans-serif; }
h1 { font-size: 1.7rem; line-height: 1.25; margin-bottom: .2rem; }
h2 { font-size: 1.25rem; margin-top: 2.4rem; padding-top: .8rem; border-top: 1px solid #ccc; }
.meta { color: #555; font-size: .9rem; margin-top: 0; }
figure { margin: 1.4rem 0; break-inside: avoid; }
figure img { max-width: 100%; height: auto; display: block; margin: 0 auto; }
figcaption { font-size: .85rem; color: #333; margin: .5rem auto 0; max-width: 48rem; }
.wide { overflow-x: auto; margin: 1rem 0; }
table { border-collapse: collapse; font-size: .82rem; line-height: 1.35; }
caption { text-align: left; font-weight: 600; padding-bottom: .3rem; }
th { text-align: left; border-bottom: 2px solid #333; padding: .3rem .6rem .3rem 0;
  vertical-align: bottom; }
td { border-bottom: 1px solid #ddd; padding: .3rem .6rem .3rem 0; vertical-align: top; }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
.verdict { font-weight: 600; white-space: nowrap; }
.holds { color: #00614a; } .fails { color: #a63d00; } .undecided { color: #666; font-weight: 400; }
pre { font-size: .78rem; background: #f6f6f6; padding: .8rem; overflow-x: auto; }
details { margin: .8rem 0; } summary { cursor: pointer; font-size: .95rem; }
li { margin: .2rem 0; }
@media print { body { font-size: 11px; max-width: none; margin: 0; } h2 { break-after: avoid; }
  table { font-size: 9px; } .wide { overflow: visible; } tr { break-inside: avoid; } }
"""

PAGE_PIXELS = 1050  # a figure of 7 inches at 150 dpi fills the text's width
VERDICT_CLASS = {"holds": "holds", "does not hold": "fails", "undecided": "undecided"}


@dataclass(frozen=True)
class Picture:
    """A figure of the report; `png` is embedded, `key` names the files beside the report."""

    key: str
    title: str
    caption: str
    png: bytes


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
    """HTML as it stands: whoever makes it escapes what it holds."""

    html: str


# Writes a figure to disk and logs it; gives what the report embeds. Its key, title and caption.
Draw = Callable[[str, "Figure", str, str], Picture]

MISSING = "This part is missing: {}."  # with the reason


@dataclass
class Section:
    """A heading and what stands below it, in order; a plain string is a paragraph."""

    title: str
    blocks: list[str | Picture | Table | Notes | Code | Markup] = field(default_factory=list)

    def tables(self) -> list[Table]:
        """Its tables, in order."""
        return [block for block in self.blocks if isinstance(block, Table)]


def _cell(value: object, spec: str) -> str:
    if isinstance(value, bool) or not isinstance(value, int | float):
        css = VERDICT_CLASS.get(str(value))
        text = html.escape(str(value))
        return f'<td class="verdict {css}">{text}</td>' if css else f"<td>{text}</td>"
    if value != value:
        return '<td class="number">-</td>'
    return f'<td class="number">{format(value, "," if isinstance(value, int) else spec)}</td>'


def _spec(values: list[object]) -> str:
    """Three decimals where that shows every float of a column well, else four digits."""
    sizes = [abs(v) for v in values if isinstance(v, float) and v == v and v != 0]
    return ".3f" if sizes and max(sizes) < 100 and min(sizes) >= 0.05 else ".4g"


def _table(table: Table) -> str:
    frame = table.frame[[c for c in table.frame.columns if (table.frame[c] != "").any()]]
    numeric = [pd.api.types.is_numeric_dtype(frame[c]) for c in frame.columns]
    head = "".join(
        f'<th class="number">{html.escape(str(c))}</th>' if n else f"<th>{html.escape(str(c))}</th>"
        for c, n in zip(frame.columns, numeric, strict=True)
    )
    columns = [frame[column].tolist() for column in frame.columns]
    cells = [[_cell(value, _spec(column)) for value in column] for column in columns]
    body = "".join(f"<tr>{''.join(row)}</tr>\n" for row in zip(*cells, strict=True))
    title = html.escape(table.title)
    rows = f"<thead><tr>{head}</tr></thead>\n<tbody>\n{body}</tbody></table></div>"
    if table.fold:
        return f'<details><summary>{title}</summary><div class="wide"><table>{rows}</details>'
    return f'<div class="wide"><table><caption>{title}</caption>{rows}'


def _width(png: bytes) -> int:
    """Width of a PNG in pixels, from its header."""
    return int.from_bytes(png[16:20], "big")


def _picture(picture: Picture, number: int) -> str:
    share = min(1.0, _width(picture.png) / PAGE_PIXELS)  # so that letters are alike in all figures
    data = base64.b64encode(picture.png).decode("ascii")
    title, caption = html.escape(picture.title), html.escape(picture.caption)
    return (
        f'<figure id="{html.escape(picture.key)}">\n'
        f'<img style="width: {share:.1%}" alt="{title}" src="data:image/png;base64,{data}">\n'
        f"<figcaption><b>Figure {number}. {title}.</b> {caption}</figcaption></figure>"
    )


def render(title: str, subtitle: str, sections: Sequence[Section]) -> str:
    """The whole page; every text is escaped, so settings and names cannot inject markup."""
    parts, number = [], 0
    for section in sections:
        parts.append(f"<section>\n<h2>{html.escape(section.title)}</h2>")
        for block in section.blocks:
            match block:
                case str():
                    parts.append(f"<p>{html.escape(block)}</p>")
                case Picture():
                    number += 1
                    parts.append(_picture(block, number))
                case Table():
                    parts.append(_table(block))
                case Notes():
                    items = "".join(f"<li>{html.escape(item)}</li>\n" for item in block.items)
                    parts.append(f"<ul>\n{items}</ul>")
                case Code():
                    parts.append(
                        f"<details><summary>{html.escape(block.title)}</summary>"
                        f"<pre>{html.escape(block.text)}</pre></details>"
                    )
                case Markup():
                    parts.append(block.html)
        parts.append("</section>")
    body = "\n".join(parts)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(title)}</title>\n<style>{CSS}</style>\n</head>\n<body>\n"
        f'<h1>{html.escape(title)}</h1>\n<p class="meta">{html.escape(subtitle)}</p>\n'
        f"{body}\n</body>\n</html>\n"
    )
