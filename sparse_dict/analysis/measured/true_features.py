"""The features that toy activations are made of, and how much of them dictionaries found."""

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from sparse_dict.activations.toy import TRUTH
from sparse_dict.analysis.context import Context
from sparse_dict.analysis.measures import gaussian_rows
from sparse_dict.analysis.measures.intervals import Estimate, bootstrap, pearson, spearman
from sparse_dict.analysis.measures.mcs import max_cosine
from sparse_dict.analysis.tables import Tables
from sparse_dict.errors import UserError
from sparse_dict.storage import files, tensor_files


def is_toy(context: Context) -> bool:
    """Whether the features of the study's activations are known."""
    return (context.config.activations_dirs[0] / TRUTH).exists()


def read(context: Context) -> NDArray[np.float32]:
    """The true features (n_features, d_in) of the activations."""
    path, d_in = context.config.activations_dirs[0] / TRUTH, context.study.d_in
    manifest = context.activations.manifest or {"fingerprints": {}}
    if "truth" not in manifest["fingerprints"]:
        raise UserError("the features of these activations are not known, as in a toy model")
    features = tensor_files.read(path).get("features")
    if files.fingerprint(files.sha256_file(path)) != manifest["fingerprints"]["truth"]:
        raise UserError(f"{path} is not the file that the manifest describes")
    if features is None or features.dtype != np.float32 or features.shape[1:] != (d_in,):
        raise UserError(f"{path} holds no float32 directions of {d_in} dimensions")
    return features


def measure(context: Context) -> dict[str, pd.DataFrame]:
    """Agreement with the truth; MCS of each true feature with the best dictionary of each size.

    MMCS with the truth is the mean, over the *true* features, of the largest cosine with any row of
    the decoder: a dictionary gains nothing by finding a few of them many times.
    """
    settings, true = context.comparison.settings, read(context)
    decoders = {entry.name: entry.decoder for entry in context.study.entries}
    mcs = {name: max_cosine(true, rows, settings.block_rows) for name, rows in decoders.items()}
    each = pd.DataFrame(mcs, dtype=np.float64)  # a row a true feature, a column a dictionary
    like = {n: gaussian_rows.mmcs(true, rows, settings.block_rows) for n, rows in decoders.items()}
    columns = {"truth_mmcs": each.mean(), "truth_found": (each > settings.threshold).mean()}
    found = pd.DataFrame(columns | {"truth_gaussian": like})
    found = found.rename_axis("dictionary").reset_index()
    beside = ["dictionary", "family", "axis", "level", "size", "seed", "mmcs", "fvu", "l0", "dead"]
    table = context.tables.dictionaries[beside].merge(found)
    best = table.loc[table.groupby("size")["truth_mmcs"].idxmax(), ["dictionary", "size"]]
    long = each.rename_axis("true").reset_index().melt("true", None, "dictionary", "mcs")
    best = best.merge(long)
    return {"dictionaries": found, "truth": table, "truth_best": best}


def known(study: Tables) -> pd.DataFrame:
    """The dictionaries that were compared with the truth."""
    return study.dictionaries.dropna(subset="truth_mmcs")


def correlations(frame: pd.DataFrame) -> tuple[Estimate, Estimate]:
    """Pearson's and Spearman's correlation of the two MMCS, bootstrap over dictionaries."""
    pair = frame[["mmcs", "truth_mmcs"]].dropna().to_numpy(float)
    return bootstrap([pair], lambda s: pearson(s[0])), bootstrap([pair], lambda s: spearman(s[0]))
