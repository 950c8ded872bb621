"""Which kind of dictionary other seeds learn again, ReLU or TopK: part of `agreement`."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from sparse_dict.analysis.claim import TRAIN, Claim, Found, Lies, Need, Sizes, estimates, samples
from sparse_dict.analysis.sections.seeds import SETTING
from sparse_dict.analysis.tables import Tables

ALIKE_L0 = 1.5  # two kinds are compared if their L0 differ by at most this factor


def _kinds(value: str, sign: int, form: str, study: Tables) -> Found:
    """ReLU less TopK, or with `sign` -1 TopK less ReLU; BatchTopK beside."""
    pairs = study.seed_pairs[~study.seed_pairs["useless"].astype(bool)]
    every, shown, known = samples(pairs, pairs[value], SETTING), {}, {}
    for kind in ("topk", "batch_topk"):
        if found := _nearest(pairs, kind):
            own = [sample for sample in every if any(sample.size in match for match in found)]
            less = partial(_less, sides=[*zip(*found, strict=True)][::sign])
            known[kind], *both = estimates(own, less, kind == "topk")
            shown[kind] = " against ".join(form.format(one.value) for one in both)
    aside = f"; BatchTopK: {shown['batch_topk']}" if "batch_topk" in shown else ""
    if "topk" not in known:
        return Found(f"needs {KINDS.what}{aside}", need=KINDS)
    return Found(shown["topk"] + aside, estimate=known["topk"])


def _less(groups: Sizes, sides: Sequence[Sequence[Any]]) -> list[float]:
    """The mean of some groups less that of others, and both."""
    one, other = (float(np.mean([groups[of].mean() for of in side])) for side in sides)
    return [one - other, one, other]


def _nearest(pairs: pd.DataFrame, activation: str) -> list[tuple[Any, Any]]:
    """Each setting of plain untied ReLU with that of the other kind that is nearest in L0."""
    plain = pairs[(pairs["strategy"] == "plain") & ~pairs["tied"].astype(bool)]
    means = plain.groupby(["activation", *SETTING])["l0"].mean().astype(float)
    known = means.clip(lower=1e-9).map(np.log).reset_index().sort_values("l0")
    known["setting"] = [*zip(*(known[key] for key in SETTING), strict=True)]
    ours, theirs = (known[known["activation"] == kind] for kind in ("relu", activation))
    both = pd.merge_asof(
        ours, theirs, on="l0", by="size", direction="nearest", tolerance=np.log(ALIKE_L0)
    ).dropna(subset="setting_y")
    return [*zip(both["setting_x"], both["setting_y"], strict=True)]


KINDS = Need(
    "several seeds of ReLU and TopK dictionaries of similar L0",
    f"{TRAIN}sae=topk sae.k=4,8,16 seed=0,1,2",
    lambda study: bool(_nearest(study.seed_pairs, "topk")),
)
OfKinds: Callable[..., Claim] = partial(
    Claim, rule=Lies(0), needs=(), of_all=True, bars={"factor": ALIKE_L0}
)
CLAIMS = (
    OfKinds("relu_steadier_than_topk", judge=partial(_kinds, "same", 1, "{:.0%}")),
    # Abstract of arXiv 2505.20254: about .80 for TopK, as the reward of the right architecture.
    OfKinds("topk_higher_pw_mcc", judge=partial(_kinds, "cosine", -1, "{:.2f}")),
)
