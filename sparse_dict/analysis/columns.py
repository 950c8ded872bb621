"""The columns of a study's three tables; `python tests/tables.py` makes docs/tables.md of them."""

from dataclasses import dataclass

FOLDER = "tables"  # in the analysis' folder


@dataclass(frozen=True)
class Column:
    """One measurement: its name, its unit or kind, and what it is, in a line."""

    name: str
    unit: str
    text: str
    by: str = ""  # the analysis that measures it; empty: it is always there


TABLES = {
    "dictionaries": "A row a dictionary.",
    "features": "A row a feature of each dictionary.",
    "pairs": (
        "A row a feature of the first of two dictionaries that are alike in all but the seed, the "
        "rows that they were trained on, or both. Of more than five seeds the lowest five are "
        "compared, and dictionaries of up to `comparison.match_limit` features."
    ),
}
DICTIONARY = Column("dictionary", "folder", "the dictionary: its folder, relative to `sae_dir`")
COLUMNS: dict[str, tuple[Column, ...]] = {
    "dictionaries": (
        DICTIONARY,
        Column("site", "name", "where in the model it reads, and writes if that is elsewhere"),
        Column("kind", "name", "what figures call its architecture, or its settings"),
        Column("family", "settings", "what it shares with those that differ in size and sparsity"),
        Column("axis", "name", "what is swept in its family to make it sparse: l1, k or l0"),
        Column("level", "number", "the value of that"),
        Column("size", "features", "dictionary size"),
        Column("seed", "number", "of its initial values"),
        Column("rows", "name", "which rows it was trained on: all, half_a, half_b, bootstrap"),
        Column("d_in", "values", "width of its decoder rows"),
        Column("l1", "number", "L1 coefficient, whatever is swept"),
        Column("l1_scaling", "name", "what the L1 term is divided by"),
        Column("tied", "yes or no", "whether the encoder is the decoder's transpose"),
        Column("activation", "name", "its activation function"),
        Column("strategy", "name", "what is done to it in training: plain, or an intervention"),
        Column("alike", "key", "the same for those that differ in size, seed and rows alone"),
        Column("n_activations", "rows", "seen in training"),
        Column("eval_rows", "rows", "that the following were measured on"),
        Column("fvu", "share", "of variance unexplained"),
        Column("l0", "features", "active on a row, mean"),
        Column("mse", "squared units", "squared error a value of a row, mean"),
        Column("l1_norm", "units", "sum of a row's codes, mean"),
        Column("dead", "share", "of features that were never active on the evaluation rows"),
        Column("effective_neurons", "neurons", "`neurons` of its living features, mean"),
        Column("seconds", "seconds", "that its training took, with all that shared a pass"),
        Column("fault", "text", "why it explains nothing; empty if it explains something"),
        Column("chosen", "yes or no", "whether it is of the level that the main figures show"),
        Column("next_size", "features", "of the next larger dictionary; 0: there is none"),
        Column("larger", "sizes", "of the dictionaries in which its features are sought"),
        Column("counted", "features", "that have an `mcs`"),
        Column("mmcs", "cosine", "mean of `mcs` over its features"),
        Column("random_mmcs", "cosine", "the same of random directions, exact"),
        Column("gaussian_mmcs", "cosine", "of Gaussian rows of the same covariance, simulated"),
        Column("n_above", "features", "with an `mcs` above `comparison.threshold`"),
        Column("n_above_alive", "features", "the same of `mcs_alive`"),
        Column("pw_mcc", "cosine", "mean of `cosine` over its pairs of other seeds", "pairs"),
        Column("shared", "share", "of features that are `same` in these, mean", "pairs"),
        Column("truth_mmcs", "cosine", "of a toy's true features with its own, mean", "truth"),
        Column("truth_found", "share", "of these with a cosine above the threshold", "truth"),
        Column("truth_gaussian", "cosine", "what Gaussian rows of both covariances reach", "truth"),
        Column(
            "loss_recovered",
            "share",
            "of what mean-ablation does to the model's loss: 1 for a perfect reconstruction",
            "loss_recovered",
        ),
    ),
    "features": (
        DICTIONARY,
        Column("feature", "number", "its row of the decoder"),
        Column("alive", "yes or no", "whether it was active on an evaluation row"),
        Column("frequency", "share", "of evaluation rows on which it is active"),
        Column("mcs", "cosine", "with its partners in larger dictionaries, as `comparison` says"),
        Column("mcs_alive", "cosine", "the same where only features that are alive count"),
        Column("next_mcs", "cosine", "with its partner in the next size, whatever features count"),
        Column("next_mcs_alive", "cosine", "the same among features that are alive"),
        Column("partner", "number", "the nearest feature of the next larger dictionary; -1: none"),
        Column("own", "yes or no", "above the threshold in the next size, one to one"),
        Column("own_alive", "yes or no", "the same among features that are alive"),
        Column("unrelated", "yes or no", "`next_mcs` is one that 1 % of random directions exceed"),
        Column("neurons", "neurons", "effective ones of its decoder row (inverse Simpson index)"),
        Column("entropy", "nats", "of the shares that neurons have of its decoder row"),
        Column("encoder_cosine", "cosine", "of its encoder row with its decoder row"),
        Column("half_mcs", "cosine", "`next_mcs` at half of the training", "undertraining"),
        Column("half_near", "yes or no", "whether that exceeds the threshold", "undertraining"),
        Column("low_hump", "share", "1: nearer to the lower of two humps of `mcs`", "histograms"),
        Column("low_hump_alive", "share", "the same of `mcs_alive`", "histograms"),
        Column(
            "run",
            "sizes",
            "in how many larger dictionaries it is found, the next first, in a row",
            "agreement",
        ),
        Column("run_alive", "sizes", "the same among features that are alive", "agreement"),
        Column("parent", "number", "feature of the next smaller size; -1: none, or dead", "splits"),
        Column("parent_cosine", "cosine", "with the nearest feature of that size", "splits"),
        Column("parent_active", "share", "of its rows on which that is active as well", "splits"),
        Column("fate", "name", "in the next size: kept, drifted, split, absorbed, lost", "splits"),
        Column("children", "features", "of the next size whose parent it is", "splits"),
        Column("split_gain", "share", "of the error that children in its place save", "splits"),
        Column("recurs", "share", "of its dictionary's partners in `pairs` that have it", "pairs"),
        Column("ablated", "nats", "change of the model's mean loss without it", "effects"),
        Column(
            "substituted", "nats", "the same with its nearest of another seed instead", "effects"
        ),
    ),
    "pairs": (
        Column("first", "folder", "a dictionary"),
        Column("second", "folder", "one of its size that differs from it in one thing"),
        Column("differ", "name", "in what: seed, rows, both"),
        Column("feature", "number", "of the first"),
        Column("partner", "number", "of the second: decoder rows matched one to one"),
        Column("cosine", "cosine", "of the two decoder rows"),
        Column("encoder_cosine", "cosine", "of the encoder row with that it is matched with"),
        Column("same", "yes or no", "both matchings agree and both cosines exceed 0.7"),
    ),
}
