"""A picture of one feature's tree: what it splits into, each with the text it is most active on."""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sparse_dict.analysis.context import Blocks, Context
from sparse_dict.analysis.features.chosen import Chosen
from sparse_dict.analysis.features.top_contexts import describe
from sparse_dict.analysis.measures.splitting import SPLIT
from sparse_dict.analysis.report import figures
from sparse_dict.analysis.source import open_source
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
LETTERS: dict[str, Any] = {
    "va": "center", "fontsize": 8, "family": "DejaVu Sans Mono", "parse_math": False,
}  # fmt: skip

Line = tuple[str, str, str]  # text before the token, the token, text after it


@dataclass(frozen=True, eq=False)
class Node:
    """A feature in a tree."""

    level: int  # which dictionary of the main chain
    row: Any  # its row of the features table
    children: tuple["Node", ...]  # the nearest first

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
    nodes: list[Node] = []
    for level, name in reversed([*enumerate(main["dictionary"])]):
        of: dict[int, list[Node]] = defaultdict(list)
        for node in sorted(nodes, key=lambda node: -node.row.parent_cosine):
            of[node.row.parent].append(node)
        rows = study.features[study.features["dictionary"] == name]
        rows = rows[rows["parent"] >= 0] if level else rows
        nodes = [Node(level, row, tuple(of[row.feature])) for row in rows.itertuples()]
    sized = [
        (sum(n.row.fate == SPLIT for n in root.walk()), len(root.walk()), root) for root in nodes
    ]
    fitting = [one for one in sized if one[0] and one[1] <= largest]
    fitting.sort(key=lambda one: (-one[0], -one[1], one[2].row.feature))
    return [root for *_, root in fitting[:most]]


def shown(context: Context) -> list[Chosen]:
    """The features of the trees, for the features page."""
    main = context.comparison.main
    entries, found = main.entries if main else (), []
    for root in roots(context.tables):
        why = (f"tree of {entries[0].size}/{root.row.feature}",)
        nodes = root.walk()
        found += [Chosen.of(context, entries[n.level], n.row.feature, why) for n in nodes]
    return found


def pictures(context: Context) -> Blocks:
    """The trees with the most splits, and what is missing where their text is not there."""
    if not (found := roots(context.tables)):
        return
    nodes = [node for root in found for node in root.walk()]
    texts: dict[Node, list[Line]] = {}
    try:
        texts = dict(zip(nodes, _texts(context), strict=True))
    except UserError as error:
        yield f"The trees are drawn without text: {error}."
    sizes = sorted(context.tables.level["size"].unique())
    for number, root in enumerate(found, 1):
        yield context.figure(f"splits_tree_{number}", picture(root, sizes, texts))


def _texts(context: Context) -> Iterator[list[Line]]:
    """The strongest contexts of each feature that is `shown`."""
    settings = ContextsConfig(
        features=None, per_group=1, n_tokens=TOKENS, top=TEXTS, spread=0, width=24
    )
    source = open_source(context.config, context.study, settings.n_tokens)
    described, *_ = describe(shown(context), source, settings)
    for feature in described:
        words = source.words(feature.tokens)
        of = [([words[token] for token in c.tokens.tolist()], c.peak) for c in feature.top]
        yield [("".join(text[:at]), text[at], "".join(text[at + 1 :])) for text, at in of]


def picture(root: Node, sizes: list[int], texts: Mapping[Node, list[Line]]) -> Figure:
    """The tree as lines, a feature each or, with text, a context each."""
    nodes = root.walk()
    rows = [max(len(texts.get(node, [])), 1) for node in nodes]
    at = dict(zip(nodes, np.cumsum([0, *rows]).tolist(), strict=False))  # lines from the top
    figure, axis = plt.subplots(figsize=(figures.WIDTH, 0.5 + LINE * sum(rows)))
    axis.set(xlim=(0, figures.WIDTH), ylim=(sum(rows) - 0.3, -0.9))
    axis.axis("off")
    shades, top = figures.shades(len(sizes)), max(node.row.frequency for node in nodes)
    start = 0.28 + 0.16 * (len(sizes) - 1)
    for node, y in at.items():
        x = 0.12 + 0.16 * node.level
        area = 14 + 70 * np.sqrt(node.row.frequency / top)
        axis.scatter([x], [y], s=area, color=shades[node.level], zorder=3)
        label = f"{sizes[node.level]}/{node.row.feature}"
        if node.level:
            label += f" cos {node.row.parent_cosine:.2f} P {node.row.parent_active:.2f}"
        axis.text(start, y, label, **LETTERS)
        for number, line in enumerate(texts.get(node, [])):
            _write(axis, line, start + 27 * LETTER, y + number)
        for child in node.children:
            places = [x, x, x + 0.16], [y, at[child], at[child]]
            axis.plot(*places, color="0.6", zorder=1, lw=0.6 + 1.8 * child.row.parent_active)
    figure.suptitle(f"What feature {sizes[0]}/{root.row.feature} becomes")
    return figure


def _write(axis: Axes, line: Line, x: float, y: float) -> None:
    """A context with its token in orange, at the same place in every line."""
    before, token, after = line
    room = int((figures.WIDTH - x) / LETTER)
    left = min(BEFORE, room // 2)
    token = token[: room - left]
    end = left + len(token)
    middle, grey = x + left * LETTER, {"color": "0.35", **LETTERS}
    axis.text(middle, y, before[-left:], ha="right", **grey)
    axis.text(middle, y, token, color=figures.ORANGE, weight="bold", **LETTERS)
    axis.text(x + end * LETTER, y, after[: room - end], **grey)
