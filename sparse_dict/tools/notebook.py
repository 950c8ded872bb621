"""For notebooks: a feature's contexts, drawn by circuitsvis (the extra ``notebook``).

circuitsvis treats a token as markup, asks google.com whether there is a network, and if so loads
its script from a CDN. Here tokens are escaped, and what it would show offline is always shown.
"""

import html
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sparse_dict.errors import UserError
from sparse_dict.storage import files

COLOUR = "rgb(222, 143, 5)"  # of the largest activation, as on the page of features


@dataclass(frozen=True)
class Shown:
    """What a notebook displays."""

    html: str

    def _repr_html_(self) -> str:
        return self.html


def show_feature(study: str | Path, feature: str, contexts: int = 10) -> Shown:
    """The saved contexts of a feature, the highest first, then those spread over its activations.

    Each has a line, its activation first; hovering over a token shows the feature's activation
    on it. Needs no network.

    Args:
        study: the study's folder, such as ``outputs/demo``, which ``analyze.py`` has analysed.
        feature: NAME/INDEX as in ``contexts.features``: 256/3, FOLDER/3 or neuron/5.
        contexts: how many of each kind to show, at most.
    """
    path = Path(study) / "analysis" / "features.json"
    if not path.exists():
        raise UserError(f"{path} is not there: analyze.py writes it, with analysis=[contexts]")
    data = files.read_json(path)
    saved: dict[str, Any] = {}
    for one in data["features"]:
        of = data["dictionaries"][one["dictionary"]]
        saved |= {f"{owner}/{one['index']}": one for owner in (of["name"], of["size"])}
    if feature not in saved:
        raise UserError(
            f"the contexts of {feature!r} are not saved: analyze.py contexts.features=[{feature}]"
        )
    found = saved[feature]
    try:
        from circuitsvis.tokens import colored_tokens
    except ImportError:
        raise UserError("this needs circuitsvis: pip install -e '.[notebook]'") from None

    tokens: list[str] = []
    values: list[float] = []
    unit = found["largest"] / data["scale"]
    for numbers, levels, peak in found["top"][:contexts] + found["spread"][:contexts]:
        tokens += ["\n"] * bool(tokens)
        tokens.append(f"{levels[peak] * unit:.3g}  ")
        values += [0.0] * (len(tokens) - len(values))
        tokens += [data["vocabulary"][number] for number in numbers]
        values += [level * unit for level in levels]
    label = data["dictionaries"][found["dictionary"]]["label"]
    name = f"{label}: {found['index']}, at most {found['largest']:.3g}"
    title = f"<p><b>{html.escape(name)}</b></p>\n"
    if not tokens:
        return Shown(f"{title}<p>Not active on any token that was read.</p>")
    drawn = colored_tokens(
        [html.escape(token, quote=False) for token in tokens],
        values,
        min_value=-found["largest"],  # its scale is symmetric about white
        max_value=found["largest"],
        positive_color=COLOUR,
    )
    return Shown(title + drawn.local_src)
