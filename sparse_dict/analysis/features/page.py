"""The page of features with their contexts, and the section of the report that shows a few.

Both hold their data as JSON and the same script that draws it; neither needs a network.
"""

import html
import json
from collections.abc import Sequence
from importlib.resources import files as resources
from pathlib import Path
from typing import Any

import numpy as np

from sparse_dict.analysis.features.chosen import ASKED, LOW, NEURONS, OUTLIER, RANDOM, TOP
from sparse_dict.analysis.features.contexts import Context, Feature, Gallery, Missing
from sparse_dict.analysis.report.page import MISSING as MISSING_TEXT
from sparse_dict.analysis.report.page import Markup, Section
from sparse_dict.analysis.study import Entry
from sparse_dict.storage import files

PAGE = "features.html"
DATA = "features.json"  # what the page draws, for notebooks and others
SCALE = 255  # activations are written as integers, a feature's largest as this
IN_REPORT = {TOP: 2, RANDOM: 1, LOW: 1, OUTLIER: 2}

HEAD = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'">
<title>Features and their text</title>
<style>
body { max-width: 76rem; margin: 1.5rem auto; padding: 0 1.5rem; background: #fff; }
.intro { font: 15px/1.5 Georgia, 'Times New Roman', serif; max-width: 52rem; }
h1 { font: 600 1.5rem/1.25 Helvetica, Arial, sans-serif; }
"""


def write(gathered: Gallery | Missing, folder: Path) -> None:
    """Write PAGE and DATA to `folder`; without a gallery remove those of an earlier run."""
    if isinstance(gathered, Gallery):
        files.write_text(folder / PAGE, page(gathered))
        files.write_text(folder / DATA, _json(payload(gathered, gathered.features, ())) + "\n")
    else:
        for name in (PAGE, DATA):
            (folder / name).unlink(missing_ok=True)


def page(gallery: Gallery) -> str:
    """The searchable page of all features."""
    text = "".join(f'<p class="intro">{html.escape(part)}</p>\n' for part in explained(gallery))
    return (
        f"{HEAD}{_resource('features.css')}</style>\n</head>\n<body>\n"
        f'<h1>Features and their text</h1>\n{text}<p class="intro">'
        '<a href="report.html">Back to the report</a></p>\n'
        f"{_drawn('browse', payload(gallery, gallery.features, ()))}\n</body>\n</html>\n"
    )


def section(gathered: Gallery | Missing) -> Section:
    """The report's section: a few features beside the neurons nearest to them."""
    found = Section("What features respond to")
    if isinstance(gathered, Missing):
        found.blocks.append(MISSING_TEXT.format(gathered.reason))
        return found
    shown = pick(gathered.features)
    neurons = {f.neuron[0] for f in shown if f.neuron}
    beside = [
        f
        for f in gathered.features
        if f.chosen.entry is None and f.chosen.index in neurons and f not in shown
    ]
    found.blocks += explained(gathered)
    found.blocks.append(
        Markup(
            f'<p><a href="{PAGE}">All {len(gathered.features)} features and neurons</a>, '
            "searchable, lie beside this report.</p>\n"
            f"<style>{_resource('features.css')}</style>\n"
            f"{_drawn('sample', payload(gathered, [*shown, *beside], shown))}"
        )
    )
    return found


def explained(gallery: Gallery) -> list[str]:
    """How to read a feature, in paragraphs."""
    n = gallery.skip_first
    skipped = f", the first {n} positions of which have no activations" if n else ""
    return [
        f"The language model read {gallery.n_tokens:,} of the {gallery.n_harvested:,} harvested "
        f"tokens again, in evenly spaced contexts of {gallery.n_ctx}{skipped}. For each feature: "
        "the contexts where it is most active (at most one of each context of the model; repeated "
        "text is shown once), and others drawn at evenly spaced quantiles of its activations. The "
        "deeper a token's colour, the more active the feature, relative to its largest "
        "activation; the framed token is the one the context was chosen for, its activation "
        "stands on the left. A neuron, with its raw activation, is treated as a feature alike, and "
        "counts as active where that is positive.",
        "Logits raised and lowered: the effect of one unit of activation by the direct path alone, "
        "from the decoder row through the MLP's output matrix and the final LayerNorm's centring "
        "and gain to the unembedding, relative to the mean over the vocabulary. The LayerNorm's "
        "division by the standard deviation and all later blocks are ignored, so the order of "
        f"tokens means more than the numbers. MCS: {gallery.mcs}.",
    ]


def pick(features: Sequence[Feature]) -> list[Feature]:
    """Up to six features for the report: those asked for, or of the largest size with an MCS."""
    asked = [f for f in features if ASKED in f.chosen.groups]
    if asked:
        return asked[:6]
    active = [f for f in features if f.chosen.entry is not None and f.top]
    known = [f for f in active if np.isfinite(f.chosen.mcs)] or active
    largest = max((f.chosen.entry.size for f in known if f.chosen.entry), default=0)
    found: list[Feature] = []
    for group, count in IN_REPORT.items():
        of_group = [
            f
            for f in known
            if f.chosen.entry and f.chosen.entry.size == largest and group in f.chosen.groups
        ]
        of_group.sort(key=lambda f: len(f.chosen.groups))  # first those that are nothing else
        found += [f for f in of_group if f not in found][:count]
    return found


def payload(
    gallery: Gallery, features: Sequence[Feature], shown: Sequence[Feature]
) -> dict[str, Any]:
    """What the script draws; `shown` are those that the report's section puts on the left."""
    entries = list(dict.fromkeys(f.chosen.entry for f in features))
    neurons = {f.chosen.index: i for i, f in enumerate(features) if f.chosen.entry is None}
    used = sorted(
        {token for f in features for c in [*f.top, *f.spread] for token in c.tokens.tolist()}
        | {token for f in features for token, _ in [*f.promoted, *f.demoted]}
    )
    number = {token: i for i, token in enumerate(used)}

    def context(found: Context, largest: float) -> list[Any]:
        values = np.rint(found.values / largest * SCALE).astype(int).tolist()
        return [[number[token] for token in found.tokens.tolist()], values, found.peak]

    def described(feature: Feature) -> dict[str, Any]:
        chosen = feature.chosen
        return {
            "dictionary": entries.index(chosen.entry),
            "index": chosen.index,
            "groups": chosen.groups,
            "mcs": round(chosen.mcs, 4) if np.isfinite(chosen.mcs) else None,
            "effective": round(feature.effective, 3),
            "density": feature.density,
            "dead": bool(feature.dead),
            "largest": feature.largest,
            "histogram": feature.histogram.tolist(),
            "top": [context(c, feature.largest) for c in feature.top],
            "spread": [context(c, feature.largest) for c in feature.spread],
            "promoted": [[number[token], round(v, 4)] for token, v in feature.promoted],
            "demoted": [[number[token], round(v, 4)] for token, v in feature.demoted],
            "neuron": feature.neuron and [neurons[feature.neuron[0]], round(feature.neuron[1], 3)],
            "shown": feature in shown,
        }

    return {
        "scale": SCALE,
        "vocabulary": [gallery.vocabulary[token] for token in used],
        "dictionaries": [
            {"name": e.name if e else NEURONS, "size": e and e.size, "label": _label(e)}
            for e in entries
        ],
        "features": [described(feature) for feature in features],
    }


def _label(entry: Entry | None) -> str:
    if entry is None:
        return "Neurons"
    kind = f", {entry.family}" if entry.family else ""
    return f"{entry.size} features, {entry.setting}, seed {entry.seed}{kind}"


def _drawn(function: str, data: dict[str, Any]) -> str:
    """An element that the script's `function` fills with `data`.

    Without a "<" the JSON can neither end its script element nor open a comment in it.
    """
    text = _json(data).replace("<", "\\u003c")
    return (
        '<div id="sparse-features"><noscript>This part is drawn by a script.</noscript></div>\n'
        f'<script type="application/json" id="sparse-features-data">{text}</script>\n'
        f"<script>\n{_resource('features.js')}\n"
        f'SparseFeatures.{function}(document.getElementById("sparse-features"),\n'
        '  JSON.parse(document.getElementById("sparse-features-data").textContent));\n</script>'
    )


def _json(data: dict[str, Any]) -> str:
    return json.dumps(data, allow_nan=False, separators=(",", ":"))


def _resource(name: str) -> str:
    return (resources("sparse_dict.analysis.features") / name).read_text(encoding="utf-8")
