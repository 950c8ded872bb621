"""A picture of one feature's tree: what it splits into, each with the text it is most active on."""

from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sparse_dict.analysis.context import Context
from sparse_dict.analysis.features.chosen import Chosen
from sparse_dict.analysis.features.contexts import Context as Stretch
from sparse_dict.analysis.features.contexts import describe
from sparse_dict.analysis.harvested import Source, open_source
from sparse_dict.analysis.report import figures
from sparse_dict.analysis.report.page import Picture
from sparse_dict.analysis.splitting import Node, Splitting
from sparse_dict.config import ContextsConfig
from sparse_dict.errors import UserError

TREES = 2  # drawn
LARGEST = 14  # features of a tree
TEXTS = 2  # contexts of a feature
TOKENS = 100_000  # of the harvested text that are read again for them
LINE = 0.19  # inches
LETTER = 0.0685  # inches: DejaVu Sans Mono at 8 points
BEFORE, AFTER = 34, 22  # letters of a context

Lines = list[tuple[str, str, str]]  # text before the token, the token, text after it


def nodes(context: Context) -> list[Chosen]:
    """The features of the trees that `splits` draws, for the features page; none if it is off."""
    try:
        found = context.splitting if context.config.is_on("splits") else None
    except UserError:
        return []
    if found is None:
        return []
    trees = found.trees(TREES, LARGEST)
    entries = found.chains[0].entries
    return [
        Chosen(entries[node.level], node.index, (f"tree of {entries[0].size}/{root.index}",))
        for root in trees
        for node in root.walk()
    ]


def pictures(context: Context, found: Splitting) -> list[str | Picture]:
    """The trees with the most splits, and what is missing where their text is not there."""
    roots = found.trees(TREES, LARGEST)
    if not roots:
        return []
    shown = [node for root in roots for node in root.walk()]
    notes: list[str | Picture] = []
    try:
        texts = _texts(context, found, shown)
    except UserError as error:
        texts = {}
        notes.append(f"The trees are drawn without text: {error}.")
    entries = found.chains[0].entries
    for number, root in enumerate(roots, 1):
        name = f"{entries[0].size}/{root.index}"
        notes.append(
            context.draw(
                f"splits_tree_{number}", picture(root, [e.size for e in entries], texts),
                f"What feature {name} becomes",
                "Each line is a feature (SIZE/INDEX), below its parent. Disc: how often it is "
                "active; cos: cosine with the parent; P: share of its active rows on which the "
                "parent is active. Right: the text where it is most active, the token in orange.",
            )
        )  # fmt: skip
    return notes


def _texts(context: Context, found: Splitting, shown: list[Node]) -> dict[tuple[int, int], Lines]:
    """The strongest contexts of each node, by level and index.

    Raises:
        UserError: the language model or its text is not there.
    """
    settings = ContextsConfig(
        features=None, per_group=1, n_tokens=TOKENS, top=TEXTS, spread=0, width=24
    )
    source = open_source(context.config, context.study, settings.n_tokens)
    entries = found.chains[0].entries
    chosen = [Chosen(entries[node.level], node.index, ()) for node in shown]
    described, _ = describe(chosen, source, settings, context.config.seed)
    return {
        (node.level, node.index): [_line(c, source) for c in feature.top]
        for node, feature in zip(shown, described, strict=True)
    }


def _line(found: Stretch, source: Source) -> tuple[str, str, str]:
    words = source.words(found.tokens.tolist())
    text = [words[token] for token in found.tokens.tolist()]
    return "".join(text[: found.peak]), text[found.peak], "".join(text[found.peak + 1 :])


def picture(root: Node, sizes: list[int], texts: dict[tuple[int, int], Lines]) -> Figure:
    """The tree as lines, a feature each or, with text, a context each."""
    nodes = root.walk()
    rows = {id(node): max(len(texts.get((node.level, node.index), [])), 1) for node in nodes}
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
        for number, line in enumerate(texts.get((node.level, node.index), [])):
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
