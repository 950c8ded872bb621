"""What simpler bases reach at matched sparsity, beside the dictionaries."""

from sparse_dict.analysis import simple
from sparse_dict.analysis.claims import Claim, Statement, verdict
from sparse_dict.analysis.context import Analysis, Context
from sparse_dict.analysis.measures.bases import LABELS, most_rows
from sparse_dict.analysis.report.curves import curves
from sparse_dict.analysis.report.page import MISSING, Section, Table
from sparse_dict.config import BaselinesConfig
from sparse_dict.errors import UserError
from sparse_dict.storage import files

RECONSTRUCT = Statement(
    "reconstruct_better",
    "Dictionaries reconstruct better than the best simple basis at equal sparsity",
    "-",
    "-",
    "FVU of the best of neurons, PCA, ICA and NMF, read off at the L0 of each dictionary at the "
    "chosen L1, less that of the dictionary, averaged over sizes: holds if the 95 % interval (over "
    "seeds, with fewer than three over rows) lies above 0, does not hold if below.",
    says=None,
)


def section(context: Context) -> Section:
    """Baselines beside the dictionaries; `baselines.csv` and `baselines_matched.csv`."""
    title, folder = "Simpler bases", context.folder
    try:
        found = context.bases
    except UserError as error:
        return Section(title, [MISSING.format(error)])
    front = found.front.drop(columns="method")
    files.write_text(folder / "baselines.csv", front.to_csv(index=False))
    files.write_text(folder / "baselines_matched.csv", found.dictionaries.to_csv(index=False))
    half, n = found.rows
    most = most_rows(context.study.d_in)
    sampled = f" (ICA and, of wide rows, NMF: on {most:,} of them)" if half > most else ""
    left_out = set(context.settings(BaselinesConfig).methods) - found.bases.keys()
    text = (
        f"Each basis was fitted on {half:,} rows{sampled} and has its codes cut to the k largest "
        "of a row; the codes are projections for neurons, random directions and PCA (orthogonal), "
        "those of the unmixing matrix for ICA, non-negative ones for NMF. Each also has an offset, "
        "not counted as a code: the mean row, for NMF the smallest value of each neuron. "
        "Dictionaries have none, and L1 shrinks their codes. FVU of bases and all kurtosis are of "
        f"{n:,} held-out rows; FVU and L0 of dictionaries are of all their evaluation rows."
    )
    if left_out:
        named = " and ".join(LABELS[method] for method in sorted(left_out))
        text += f" {named} would take too long on rows of {context.study.d_in:,} values."
    picture = context.draw(
        "baselines",
        curves(
            found.dictionaries, found.front, "fvu", "FVU: share of variance unexplained",
            "Reconstruction by dictionaries and by simpler bases",
        ),
        "Simpler bases at matched sparsity",
        "Towards the lower left is better. A dictionary's codes vary in number from row to row, a "
        "basis keeps k on each. Values above 1.05 are cut: ICA's and NMF's directions are not "
        "orthogonal, so few of their codes may fit worse than none.",
    )  # fmt: skip
    shown = {"mmcs_between_halves": "MMCS between halves of the rows"}
    summary = Table("Baselines", found.summary.rename(columns=shown))
    seeds = (
        "MMCS between halves compares the directions that two disjoint halves of the rows give "
        "(plain maximum, opposite directions being the same but for NMF); the neuron basis is "
        "fixed, and random directions show what chance gives. For dictionaries, where "
        "there are several seeds, the table below has the MMCS with the next seed on the same "
        "rows; this is another measure, since it does not vary the sample. "
        "Kurtosis is the median over features of the excess kurtosis of all codes, 0 for a "
        "normal law: a basis is privileged if it is high."
    )
    table = found.dictionaries.drop(columns=["dict_size", "l1", "level", "seed", "family"])
    columns = {f"fvu_{m}": f"FVU {LABELS[m]}" for m in found.bases}
    columns["mmcs_between_seeds"] = "MMCS between seeds (same rows)"
    if found.dictionaries["mmcs_between_seeds"].isna().all():
        table = table.drop(columns="mmcs_between_seeds")
    matched = Table(
        "Dictionaries, and each basis with as many codes (between whole k: some rows with either)",
        table.rename(columns=columns), fold=len(table) > 12,
    )  # fmt: skip
    return Section(title, [text, picture, seeds, summary, matched])


def claims(context: Context) -> list[Claim]:
    """Whether dictionaries reconstruct better than the best simple basis."""
    try:
        found = simple.reconstruction(context)
    except UserError as error:
        return [RECONSTRUCT.undecided(str(error))]
    ours = f"FVU {found.ours:.3f}, {found.theirs:.3f} of {found.basis}"
    return [RECONSTRUCT.decided(ours, found.less, verdict(found.less, 0))]


ANALYSIS = Analysis("baselines", section, (RECONSTRUCT,), claims)
