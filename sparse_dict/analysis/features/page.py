"""The page of features with their contexts, and the few of them that the report shows.

Both hold their data as JSON and the same script that draws it; neither needs a network.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sparse_dict.analysis.features.chosen import ASKED, LOW, NEURONS, OUTLIER, RANDOM, TOP
from sparse_dict.analysis.features.top_contexts import Feature, Gallery, Stretch
from sparse_dict.analysis.measures.effective_neurons import simpson_neurons
from sparse_dict.analysis.report import page as report
from sparse_dict.analysis.report.page import Markup
from sparse_dict.analysis.study import Entry
from sparse_dict.storage import files

PAGE = "features.html"
DATA = "features.json"  # what the page draws, for notebooks and others
SCALE = 255  # activations are written as integers, a feature's largest as this
IN_REPORT = {TOP: 2, RANDOM: 1, LOW: 1, OUTLIER: 2}  # how many of each
FOLDER = Path(__file__).parent


def write(gallery: Gallery, folder: Path) -> None:
    """Write PAGE and DATA to `folder`."""
    files.write_text(folder / PAGE, page(gallery))
    data = payload(gallery, gallery.features, ())
    text = json.dumps(data, allow_nan=False, separators=(",", ":"))
    files.write_text(folder / DATA, text + "\n")


def page(gallery: Gallery) -> str:
    """The searchable page of all features."""
    drawn = _drawn("browse", gallery, gallery.features, ())
    return report.page("Features and their text", drawn.html, [drawn.style], [drawn.script])


def sample(gallery: Gallery) -> Markup:
    """What the report shows: a few features beside the neurons nearest to them."""
    shown = pick(gallery.features)
    near = {found[0] for f in shown if (found := f.chosen.nearest())}
    neurons = [f for f in gallery.features if f.chosen.entry is None and f.chosen.index in near]
    return _drawn("sample", gallery, [*shown, *(f for f in neurons if f not in shown)], shown)


def pick(features: Sequence[Feature]) -> list[Feature]:
    """Up to six features for the report: those asked for, or of the largest size with an MCS."""
    asked = [f for f in features if ASKED in f.chosen.groups]
    if asked:
        return asked[:6]
    sized = [(f.chosen.entry.size, f) for f in features if f.chosen.entry is not None and f.top]
    sized = [(size, f) for size, f in sized if np.isfinite(f.chosen.mcs)] or sized
    largest = max((size for size, _ in sized), default=0)
    # first those of a single group
    known = sorted((f for n, f in sized if n == largest), key=lambda f: len(f.chosen.groups))
    found: list[Feature] = []
    for group, count in IN_REPORT.items():
        found += [f for f in known if group in f.chosen.groups and f not in found][:count]
    return found


def payload(
    gallery: Gallery, features: Sequence[Feature], shown: Sequence[Feature]
) -> dict[str, Any]:
    """What the script draws; `shown` are those that the report puts on the left."""
    source = gallery.source
    entries = list(dict.fromkeys(f.chosen.entry for f in features))
    neurons = {f.chosen.index: i for i, f in enumerate(features) if f.chosen.entry is None}
    words = source.words({token for f in features for token in f.tokens})
    number = {token: i for i, token in enumerate(words)}

    def context(found: Stretch, largest: float) -> list[Any]:
        values = np.rint(found.values / largest * SCALE).astype(int).tolist()
        return [[number[token] for token in found.tokens.tolist()], values, found.peak]

    def described(feature: Feature) -> dict[str, Any]:
        chosen, decoder = feature.chosen, feature.chosen.decoder(source.columns[-1][1])
        squares, neuron = decoder.astype(np.float64) ** 2, chosen.nearest()
        shares = [squares[a:b].sum() / max(squares.sum(), 1e-30) for a, b in source.columns]
        return {
            "dictionary": entries.index(chosen.entry),
            "index": chosen.index,
            "groups": chosen.groups,
            "mcs": round(chosen.mcs, 4) if np.isfinite(chosen.mcs) else None,
            "effective": round(float(simpson_neurons(decoder[None])[0]), 3),
            "shares": [round(float(share), 4) for share in shares],
            "density": feature.density,
            "dead": bool(feature.dead),
            "largest": feature.largest,
            "histogram": feature.histogram.tolist(),
            "top": [context(c, feature.largest) for c in feature.top],
            "spread": [context(c, feature.largest) for c in feature.spread],
            "promoted": [[number[token], round(v, 4)] for token, v in feature.promoted],
            "demoted": [[number[token], round(v, 4)] for token, v in feature.demoted],
            "partner": chosen.partner and [chosen.partner[0], round(chosen.partner[1], 4)],
            "neuron": neuron and [neurons[neuron[0]], round(neuron[1], 3)],
            "shown": feature in shown,
        }

    sites = map(str, source.place.sites or ("rows",))
    return {
        "scale": SCALE,
        "unit": gallery.unit,
        "what": "row" if gallery.of_rows else "token",
        "sites": [[site, *ends] for site, ends in zip(sites, source.columns, strict=True)],
        "vocabulary": [*words.values()],
        "dictionaries": [
            {
                "name": e.name if e else NEURONS,
                "size": e and e.size,
                "label": _label(e, gallery.unit),
            }
            for e in entries
        ],
        "features": [described(feature) for feature in features],
    }


def _label(entry: Entry | None, unit: str) -> str:
    if entry is None:
        return f"{unit.capitalize()}s"
    kind = f", {entry.family}" if entry.family else ""
    return f"{entry.size} features, {entry.setting}, seed {entry.seed}{kind}"


def _drawn(
    view: str, gallery: Gallery, features: Sequence[Feature], shown: Sequence[Feature]
) -> Markup:
    """How to read a feature, and data for the script's function `view`, which draws it."""
    template = report.templates(FOLDER).get_template("features.html.jinja")
    data = payload(gallery, features, shown)
    html = template.render(view=view, gallery=gallery, data=data, page=PAGE)
    style, script = (
        (FOLDER / name).read_text(encoding="utf-8") for name in ("features.css", "features.js")
    )
    return Markup(html, style, script, PAGE)
