"""What the tracker is told of an analysis: end values, tables and charts."""

from functools import partial
from typing import TYPE_CHECKING, Any, cast

from sparse_dict import tracking
from sparse_dict.sae.run_names import end_values, run_name

if TYPE_CHECKING:
    from sparse_dict.analysis.context import Context

# wandb's own charts over tables: the heat map of MMCS, by its one chart of coloured cells; FVU
# against L0, whose table is the study's dictionaries; and the histogram of MCS, whose table is the
# features at the level of the main figures. Each with the columns that it draws.
CHARTS = {
    "charts/mmcs": (
        "wandb/confusion_matrix/v1",
        {"Actual": "size", "Predicted": "level", "nPredictions": "mmcs"},
    ),
    "charts/fvu_l0": ("wandb/scatter/v0", {"x": "l0", "y": "fvu"}),
    "charts/mcs": ("wandb/histogram/v0", {"value": "mcs"}),
}
# By size, a curve for each level. Capitals come first in `wandb leet`, so that it opens on these.
CURVES = {"fvu": "FVU", "mmcs": "MMCS"}
MOST_FEATURES = 20_000  # rows of the table of features that is sent
# How far a dictionary agrees with larger ones and with other seeds, in its own run's summary.
AGREEMENT = ("mmcs", "n_above", "n_above_alive", "shared_fraction")


def charts(context: "Context", tracked: tracking.Run) -> None:
    """Send curves and the tables, as charts."""
    tables, every = context.tables, context.tables.dictionaries
    first = every[(every["site"] == tables.about.site)]
    first = first[first["family"] == context.study.families[0]]
    curves = first.pivot_table(index="size", columns=["axis", "level"], values=[*CURVES])
    for size, row in curves.iterrows():
        values: dict[Any, Any] = {"size": size}
        for key, value in row.dropna().items():
            name, axis, level = cast(tuple[str, str, float], key)
            values[f"{CURVES[name]}/{axis} {level:g}"] = value
        tracked.curves(values, "size")
    means = first.groupby(["size", "level"])["mmcs"].mean().dropna().reset_index()
    features = tables.joined(tables.level[tables.level["next_size"] > 0])
    if len(features) > MOST_FEATURES:
        features = features.sample(MOST_FEATURES, random_state=0).sort_index()
    for (key, chart), frame in zip(CHARTS.items(), (means, every, features), strict=True):
        rows = frame.astype(object).where(frame.notna(), None)
        tracked.table(key, list(rows.columns), rows.itertuples(index=False), chart)


def agreement(context: "Context") -> None:
    """Tell the dictionaries' own runs how far each agrees with others."""
    told = context.tables.dictionaries.set_index("dictionary")
    told = told.rename(columns={"shared": "shared_fraction"})  # as it was called in earlier runs
    sought = told["next_size"] > 0  # the largest is sought in none
    told = told.assign(**{key: told[key].where(sought) for key in ("n_above", "n_above_alive")})
    entries = context.study.entries
    openers = [
        partial(
            tracking.open_run, context.config, "train_sae", run_name(entry.metrics["config"]),
            entry.trained.folder, "activations", finished=entry.metrics["config"],
        )
        for entry in entries
    ]  # fmt: skip
    with tracking.together(openers) as runs:
        for run, entry in zip(runs, entries, strict=True):
            known: Any = told.loc[entry.name].reindex([*AGREEMENT]).dropna().to_dict()
            run.summary({**end_values(entry.metrics), **known})


def summary(context: "Context") -> dict[str, float | int | str]:
    """End values: the main level with its MMCS, the high features, the verdicts."""
    tables, claims = context.tables, context.claims
    values: dict[str, Any] = {"dictionaries": len(context.study.entries)}
    values |= {f"claims/{claim.key}": claim.verdict for claim in claims}
    values |= {f"agrees/{c.key}": c.agrees for c in claims if c.agrees is not None}
    for outcome, name in ((True, "claims_agree"), (False, "claims_differ")):
        values[name] = sum(claim.agrees is outcome for claim in claims)
    if not tables.main.empty:
        shown = tables.level[tables.level["dictionary"].isin(tables.shown["dictionary"])]
        values[f"main_{shown['axis'].iloc[0]}"] = float(shown["level"].iloc[0])
        values["mmcs"] = float(shown["mmcs"].mean())
        for key in ("n_above", "n_above_alive"):
            counts = zip(shown["size"], shown[key], strict=True)
            values |= {f"{key}/{n}": int(of) for n, of in counts}
    return values
