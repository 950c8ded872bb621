"""Loss recovered by dictionaries, and by simpler bases (`analysis/reconstruction_loss.py`)."""

import numpy as np
import pandas as pd

from sparse_dict.analysis.context import Analysis, Context
from sparse_dict.analysis.measures.bases import LABELS
from sparse_dict.analysis.reconstruction_loss import MEAN, ORIGINAL, ZERO, recovered
from sparse_dict.analysis.report.curves import curves
from sparse_dict.analysis.report.page import MISSING, Section, Table
from sparse_dict.errors import UserError
from sparse_dict.storage import files


def section(context: Context) -> Section:
    """Loss recovered by dictionaries, and by the baselines where these are on."""
    title = "The model's loss with reconstructed activations"
    try:
        losses, what = context.losses
    except UserError as error:
        return Section(title, [MISSING.format(error)])
    found = dict(losses)
    original, zero, mean = (found.pop(label) for label in (ORIGINAL, ZERO, MEAN))
    rows = [
        {
            **entry.identity,
            "l0": float(entry.metrics["l0"]),
            "loss": found.pop(entry.name),
        }
        for entry in context.study.entries
    ]
    others = [
        {"baseline": LABELS[method], "l0": int(k), "loss": loss}
        for label, loss in found.items()
        for method, _, k in [label.partition(":")]
    ]
    dictionaries = pd.DataFrame(rows).drop(columns="axis")
    simpler = pd.DataFrame(others, columns=["baseline", "l0", "loss"])
    for frame in (dictionaries, simpler):
        for name, ablated in (("mean", mean), ("zero", zero)):
            values = [recovered(loss, original, ablated) for loss in frame["loss"]]
            frame[f"recovered_{name}"] = np.array(values, dtype=float)
    both = pd.concat([dictionaries, simpler], ignore_index=True)
    files.write_text(context.folder / "loss_recovered.csv", both.to_csv(index=False))

    text = (
        "The activation that the dictionaries were trained on is replaced at every position, and "
        f"the cross-entropy taken on {what}. It is {original:.4f} nats as the model is, "
        f"{mean:.4f} with the mean activation and {zero:.4f} with zero. Recovered is "
        "(CE ablated - CE reconstructed) / (CE ablated - CE original): 1 is perfect, 0 as bad as "
        "the ablation."
    )
    result = Section(title, [text])
    if mean > original:
        shown = both["recovered_mean"].clip(-0.5, 1.5)
        low, high = float(min(0, shown.min())), float(max(1, shown.max())) + 0.02
        result.blocks.append(
            context.draw(
                "loss_recovered",
                curves(
                    dictionaries, simpler, "recovered_mean", "loss recovered, of mean-ablation",
                    "Loss recovered by reconstructions", (low, high),
                ),
                "Loss recovered",
                "Towards the upper left is better: the same loss with fewer active codes.",
            )
        )  # fmt: skip
    columns = ["dictionary", "l0", "loss", "recovered_mean", "recovered_zero"]
    result.blocks.append(Table("Dictionaries", dictionaries[columns], fold=len(dictionaries) > 12))
    if len(simpler):
        result.blocks.append(Table("Baselines", simpler.rename(columns={"l0": "k"}), fold=True))
    return result


ANALYSIS = Analysis("loss_recovered", section)
