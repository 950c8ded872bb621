"""Loss recovered by dictionaries, and by simpler bases (`analysis/reconstruction_loss.py`)."""

from collections.abc import Mapping

import pandas as pd

from sparse_dict.analysis import simple
from sparse_dict.analysis.claims import Claim, Statement, verdict
from sparse_dict.analysis.context import Analysis, Context
from sparse_dict.analysis.measures.bases import LABELS
from sparse_dict.analysis.reconstruction_loss import MEAN, ORIGINAL, ZERO, Losses, recovered
from sparse_dict.analysis.report.curves import curves
from sparse_dict.analysis.report.page import MISSING, Section, Table
from sparse_dict.errors import UserError
from sparse_dict.storage import files

RECOVER = Statement(
    "recover_more",
    "Dictionaries recover more of the language model's loss than the best simple basis at equal "
    "sparsity",
    "-",
    "-",
    "Loss recovered of mean-ablation by dictionaries at the chosen L1, averaged over sizes, less "
    "that by the best of neurons, PCA, ICA and NMF at their L0: holds if the 95 % interval (over "
    "seeds, with fewer than three over contexts) lies above 0, does not hold if below.",
    says=None,
)


def section(context: Context) -> Section:
    """Loss recovered by dictionaries, and by the baselines where these are on."""
    title = "The model's loss with reconstructed activations"
    try:
        losses, what = context.losses
    except UserError as error:
        return Section(title, [MISSING.format(error)])
    found = dict(losses)
    original, zero, mean = (found.pop(label) for label in (ORIGINAL, ZERO, MEAN))
    harm = {"mean": mean, "zero": zero}
    rows = [
        {
            **entry.identity,
            "l0": float(entry.metrics["l0"]),
            **_numbers(found.pop(entry.name), original, harm),
        }
        for entry in context.study.entries
    ]
    others = [
        {"baseline": LABELS[method], "l0": int(k), **_numbers(loss, original, harm)}
        for label, loss in found.items()
        for method, _, k in [label.partition(":")]
    ]
    dictionaries = pd.DataFrame(rows).drop(columns="axis")
    simpler = pd.DataFrame(others)
    both = pd.concat([dictionaries, simpler], ignore_index=True)
    files.write_text(context.folder / "loss_recovered.csv", both.to_csv(index=False))

    text = (
        "The activation that the dictionaries were trained on is replaced at every position, and "
        f"the cross-entropy taken on {what}. It is {original.mean():.4f} nats as the model "
        f"is, {mean.mean():.4f} with the mean activation and {zero.mean():.4f} with zero. "
        "Recovered is (CE ablated - CE reconstructed) / (CE ablated - CE original): 1 is perfect, "
        f"0 as bad as the ablation. Low and high: 95 % over the {len(original):,} contexts."
    )
    result = Section(title, [text])
    if mean.mean() > original.mean():
        shown = both["recovered_mean"].clip(-0.5, 1.5)
        low, high = float(min(0, shown.min())), float(max(1, shown.max())) + 0.02
        result.blocks.append(
            context.draw(
                "loss_recovered",
                curves(
                    dictionaries, simpler if len(simpler) else None, "recovered_mean",
                    "loss recovered, of mean-ablation",
                    "Loss recovered by reconstructions", (low, high),
                ),
                "Loss recovered",
                "Towards the upper left is better: the same loss with fewer active codes.",
            )
        )  # fmt: skip
    ends = ["recovered_mean", "recovered_mean_low", "recovered_mean_high"]
    table = dictionaries[["dictionary", "l0", "loss", *ends, "recovered_zero"]]
    result.blocks.append(Table("Dictionaries", table, fold=len(dictionaries) > 12))
    if len(simpler):
        result.blocks.append(Table("Baselines", simpler.rename(columns={"l0": "k"}), fold=True))
    return result


def _numbers(loss: Losses, original: Losses, ablations: Mapping[str, Losses]) -> dict[str, float]:
    """The mean loss, and what is recovered of each ablation, with its interval."""
    row = {"loss": float(loss.mean())}
    for name, ablated in ablations.items():
        found = recovered(loss, original, ablated)
        row[f"recovered_{name}"] = found.value
        row |= {f"recovered_{name}_low": found.low, f"recovered_{name}_high": found.high}
    return row


def claims(context: Context) -> list[Claim]:
    """Whether dictionaries recover more of the loss than the best simple basis."""
    if not context.config.is_on("baselines"):
        return [RECOVER.undecided("baselines is off")]
    try:
        found = simple.loss(context)
    except UserError as error:
        return [RECOVER.undecided(str(error))]
    ours = f"{1 - found.ours:.1%} recovered, {1 - found.theirs:.1%} by {found.basis}"
    return [RECOVER.decided(ours, found.less, verdict(found.less, 0))]


ANALYSIS = Analysis("loss_recovered", section, (RECOVER,), claims)
