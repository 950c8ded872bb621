"""How much of what one dictionary learned another seed learned too: part of `agreement`."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from sparse_dict.analysis.claim import TRAIN, Claim, Found, Lies, Need, Sizes, estimates, samples
from sparse_dict.analysis.context import Blocks, Context
from sparse_dict.analysis.measures.two_dictionaries import random_pw_mcc
from sparse_dict.analysis.report import figures
from sparse_dict.analysis.report.page import Table
from sparse_dict.analysis.study import LABELS, number, setting
from sparse_dict.analysis.tables import Tables

FEWEST = 15  # features of a dictionary whose thirds by frequency are compared
ALIKE_L0 = 1.5  # two kinds are compared if their L0 differ by at most this factor
SETTING = ["family", "level", "size"]


def show(context: Context) -> Blocks:
    """PW-MCC and the shared fraction of pairs of seeds."""
    study = context.tables
    pairs = study.seed_pairs
    limit = study.about.comparison["match_limit"]
    known = study.dictionaries[study.dictionaries["site"] == study.about.site]
    several = known.groupby(SETTING)["seed"].transform("nunique") > 1
    large = sorted({*known.loc[several & (known["size"] > limit), "size"]})
    if large:
        named = ", ".join(map(str, large))
        yield f"Above comparison.match_limit={limit}, so seeds were not compared: size {named}."
    if pairs.empty:
        if not large:
            yield (
                "The study has one seed for each setting, so agreement across seeds is not shown; "
                "train with -m seed=0,1,2 to see it."
            )
        return
    own = pairs[pairs["family"] == study.about.family]
    kind = f"Shown: {study.about.family}." if known["family"].nunique() > 1 else ""
    yield context.figure("agreement_seeds", draw(study, own if len(own) else pairs), kind)
    each = pairs.groupby(["dictionary", "second"], sort=False)
    ones, means = each.first(), each[["cosine", "same"]].mean()
    columns = {
        "family": ones["family"], "dict_size": ones["size"],
        "sparsity": [*map(setting, ones["axis"], ones["level"])],
        "seeds": ones["seed"].astype(str) + ", " + ones["other_seed"].astype(str),
        "l0": ones["l0"], "pw_mcc": means["cosine"], "shared_fraction": means["same"],
    }  # fmt: skip
    yield Table("Pairs of seeds", pd.DataFrame(columns), fold=pairs["dictionary"].nunique() > 12)


def draw(study: Tables, pairs: pd.DataFrame) -> Figure:
    """PW-MCC and shared fraction by size, and at the chosen level by firing frequency."""
    means = pairs.groupby(["dictionary", "second", *SETTING])[["cosine", "same"]].mean()
    rows = means.reset_index().sort_values(["level", "family", "size"])
    rows["level"] = rows["level"].map(number)
    figure, ((*left, right),) = figures.grid(1, 3, 3.6)
    look: dict[str, Any] = {"hue": "level", "palette": figures.shades(rows["level"].nunique())}
    several = rows["family"].nunique() > 1
    look |= {"style": "family", "markers": True} if several else {"marker": "o"}
    axes = figures.panels(left, rows, {"cosine": "PW-MCC", "same": "shared fraction"}, **look)
    for axis in left:
        axis.set_ylim(0, 1.03)
    figures.chance(axes["cosine"], {"random": random_pw_mcc(study.about.d_in, {*rows["size"]})})
    at_level = study.main_pairs if len(study.main_pairs) else pairs
    figures.by_frequency(right, at_level, "same", "plasma")
    right.set(xlabel="share of rows active", title="shared fraction by frequency")
    figures.below(figure, left[0], 3, f"{LABELS[pairs['axis'].iloc[0]]} (left and middle)", "left")
    return figures.below(figure, right, 2, "size (right)", "right")


# --- claims ---------------------------------------------------------------------------------------


def _thirds(f: pd.DataFrame) -> pd.DataFrame:
    """Whether features are shared, and whether they are of the upper third by frequency, or lower.

    Thirds of each pair; the middle one is nan.
    """
    of = f.groupby(["dictionary", "second"])["frequency"]
    rank, n = of.rank(method="first") - 1, of.transform("size")
    often, third = (rank >= n - n // 3).astype(float), n // 3
    outer = (n >= FEWEST) & ((rank < third) | (rank >= n - third))
    return pd.DataFrame({"same": f["same"].astype(float), "often": often.where(outer)})


def _by_third(sizes: Sizes) -> list[float]:
    """The upper third less the lower one, and both; nan where a resample has none of it."""
    parts = [[v[v[:, 1] == often, 0] for v in sizes.values()] for often in (1, 0)]
    upper, lower = (np.mean([p.sum() / (len(p) or np.nan) for p in of]) for of in parts)
    return [upper - lower, upper, lower]


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


PAIRS = Need(
    "several seeds of sizes up to comparison.match_limit", f"{TRAIN}seed=0,1,2",
    lambda study: not study.main_pairs.empty,
)  # fmt: skip
KINDS = Need(
    "several seeds of ReLU and TopK dictionaries of similar L0",
    f"{TRAIN}sae=topk sae.k=4,8,16 seed=0,1,2",
    lambda study: bool(_nearest(study.seed_pairs, "topk")),
)
OnPairs: Callable[..., Claim] = partial(Claim, of="main_pairs", needs=(PAIRS,))
OfKinds: Callable[..., Claim] = partial(
    Claim, rule=Lies(0), needs=(), of_all=True, bars={"factor": ALIKE_L0}
)
ENDS = "size == size.min() or size == size.max()"
CLAIMS = (
    OnPairs("shared_across_seeds", "same", Lies(0.5)),
    OnPairs(
        "shared_falls_with_size", "same", Lies(0), where=ENDS, sizes=2,
        number=lambda sizes: sizes[min(sizes)].mean() - sizes[max(sizes)].mean(),
    ),
    OnPairs("shared_rises_with_frequency", _thirds, Lies(0), _by_third, bars={"fewest": FEWEST}),
    OfKinds("relu_steadier_than_topk", judge=partial(_kinds, "same", 1, "{:.0%}")),
    # Abstract of arXiv 2505.20254: about .80 for TopK, as the reward of the right architecture.
    OfKinds("topk_higher_pw_mcc", judge=partial(_kinds, "cosine", -1, "{:.2f}")),
)  # fmt: skip
