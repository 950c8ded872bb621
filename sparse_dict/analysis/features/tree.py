"""A picture of one feature's tree: what it splits into, each with the text it is most active on."""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sparse_dict.analysis.context import Context
from sparse_dict.analysis.features.chosen import Chosen
from sparse_dict.analysis.features.contexts import Context as Stretch
from sparse_dict.analysis.features.contexts import describe
from sparse_dict.analysis.measures.splitting import SPLIT
from sparse_dict.analysis.report import figures
from sparse_dict.analysis.report.page import Picture
from sparse_dict.analysis.source import Source, open_source
from sparse_dict.analysis.tables import Tables
from sparse_dict.config import ContextsConfig
from sparse_dict.errors import UserError

TREES = 2  # drawn
LARGEST = 14  # features of a tree
TEXTS = 2  # contexts of a feature
TOKENS = 100_000  # of the harvested text that are read again for them
LINE = 0.19  # inches
LETTER = 0.0685  # inches: DejaVu Sans Mono at 8 points
BEFORE = 34  # letters of a context before its token

Lines = list[tuple[str, str, str]]  # text before the token, the token, text after it


@dataclass(frozen=True)
class Node:
    """A feature in a tree, with the rows of the features table that it is made of."""

    level: int  # which dictionary of the main chain
    index: int
    frequency: float  # share of the evaluation rows
    cosine: float  # with its parent
    given: float  # P(parent active | this active)
    parent: int
    fate: str  # in the next larger dictionary; nan in the largest
    children: tuple["Node", ...]  # the nearest first

    @property
    def size(self) -> int:
        """Features in the tree."""
        return len(self.walk())

    @property
    def splits(self) -> int:
        """Features in the tree that split."""
        return sum(node.fate == SPLIT for node in self.walk())

    def walk(self) -> list["Node"]:
        """All nodes, parents before children."""
        return [self, *(node for child in self.children for node in child.walk())]


def roots(study: Tables, most: int = TREES, largest: int = LARGEST) -> list[Node]:
    """Trees of features of the smallest dictionary, at most `most`, most splits first.

    Of trees of at most `largest` features, those with the most splits, then the most features. None
    where `splits` was not measured.
    """
    if "fate" not in study.features:
        return []
    main = study.level[study.level["seed"] == study.level["seed"].min()].sort_values("size")
    columns = ["feature", "frequency", "parent_cosine", "parent_active", "parent", "fate"]
    nodes: list[Node] = []
    for level, name in reversed([*enumerate(main["dictionary"])]):
        of: dict[int, list[Node]] = defaultdict(list)
        for node in sorted(nodes, key=lambda node: -node.cosine):
            of[node.parent].append(node)
        rows = study.features.loc[study.features["dictionary"] == name, columns]
        rows = rows[rows["parent"] >= 0] if level else rows
        nodes = []
        for index, frequency, cosine, given, parent, fate in rows.to_numpy(object):
            children = tuple(of[index])
            nodes.append(Node(level, index, frequency, cosine, given, parent, fate, children))
    fitting = [root for root in nodes if root.size <= largest and root.splits]
    return sorted(fitting, key=lambda r: (-r.splits, -r.size, r.index))[:most]


def shown(context: Context) -> list[Chosen]:
    """The features of the trees, for the features page."""
    main = context.comparison.main
    entries = main.entries if main else ()
    return [
        Chosen(entries[node.level], node.index, (f"tree of {entries[0].size}/{root.index}",))
        for root in roots(context.tables)
        for node in root.walk()
    ]


def pictures(context: Context) -> Iterator[str | Picture]:
    """The trees with the most splits, and what is missing where their text is not there."""
    found, chosen = roots(context.tables), shown(context)
    if not found:
        return
    nodes = [node for root in found for node in root.walk()]
    try:
        of = dict(zip(map(id, nodes), _texts(context, chosen), strict=True))
    except UserError as error:
        of = {}
        yield f"The trees are drawn without text: {error}."
    sizes = sorted(context.tables.level["size"].unique())
    for number, root in enumerate(found, 1):
        yield context.figure(f"splits_tree_{number}", picture(root, sizes, of))


def _texts(context: Context, chosen: list[Chosen]) -> list[Lines]:
    """The strongest contexts of each feature."""
    settings = ContextsConfig(
        features=None, per_group=1, n_tokens=TOKENS, top=TEXTS, spread=0, width=24
    )
    source = open_source(context.config, context.study, settings.n_tokens)
    described, _ = describe(chosen, source, settings)
    return [[_line(c, source) for c in feature.top] for feature in described]


def _line(found: Stretch, source: Source) -> tuple[str, str, str]:
    words = source.words(found.tokens.tolist())
    text = [words[token] for token in found.tokens.tolist()]
    return "".join(text[: found.peak]), text[found.peak], "".join(text[found.peak + 1 :])


def picture(root: Node, sizes: list[int], texts: dict[int, Lines]) -> Figure:
    """The tree as lines, a feature each or, with text (by the node's `id`), a context each."""
    nodes = root.walk()
    rows = {id(node): max(len(texts.get(id(node), [])), 1) for node in nodes}
    total = sum(rows.values())
    figure, axis = plt.subplots(figsize=(figures.WIDTH, 0.5 + LINE * total))
    axis.set_xlim(0, figures.WIDTH)
    axis.set_ylim(total - 0.3, -0.9)
    axis.axis("off")
    shades = figures.shades(len(sizes))
    top = max(node.frequency for node in nodes)
    at: dict[int, float] = {}
    y = 0.0
    for node in nodes:
        at[id(node)] = y
        x = 0.12 + 0.16 * node.level
        area = 14 + 70 * np.sqrt(node.frequency / top)
        axis.scatter([x], [y], s=area, color=shades[node.level], zorder=3)
        label = f"{sizes[node.level]}/{node.index}"
        detail = "" if node.level == 0 else f" cos {node.cosine:.2f} P {node.given:.2f}"
        start = 0.28 + 0.16 * (len(sizes) - 1)
        axis.text(start, y, label + detail, va="center", fontsize=8, family="DejaVu Sans Mono")
        for number, line in enumerate(texts.get(id(node), [])):
            _write(axis, line, start + 27 * LETTER, y + number)
        y += rows[id(node)]
    for node in nodes:
        for child in node.children:
            x = 0.12 + 0.16 * node.level
            below = at[id(child)]
            axis.plot(
                [x, x, x + 0.16], [at[id(node)], below, below], color="0.6", zorder=1,
                lw=0.6 + 1.8 * child.given,
            )  # fmt: skip
    figure.suptitle(f"What feature {sizes[0]}/{root.index} becomes")
    return figure


def _write(axis: Axes, line: tuple[str, str, str], x: float, y: float) -> None:
    """A context with its token in orange, at the same place in every line."""
    before, token, after = line
    room = int((figures.WIDTH - x) / LETTER)
    left = min(BEFORE, room // 2)
    token = token[: room - left]
    style: dict[str, Any] = {
        "va": "center",
        "fontsize": 8,
        "family": "DejaVu Sans Mono",
        "parse_math": False,
    }
    axis.text(x + left * LETTER, y, before[-left:], ha="right", color="0.35", **style)
    axis.text(x + left * LETTER, y, token, color=figures.ORANGE, weight="bold", **style)
    rest = room - left - len(token)
    axis.text(x + (left + len(token)) * LETTER, y, after[:rest], color="0.35", **style)
