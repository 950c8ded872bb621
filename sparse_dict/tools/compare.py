"""`python -m sparse_dict.compare A B`: how far do two dictionaries agree?

A and B are folders of dictionaries: ours, or of SAELens, dictionary_learning or sparsify, or names
on the Hugging Face hub. With --activations their codes on the same rows are compared too.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from sparse_dict.activations.store import Activations
from sparse_dict.analysis.measures.mcs import match_codes, normalised
from sparse_dict.analysis.measures.two_dictionaries import Agreement, agree
from sparse_dict.errors import UserError
from sparse_dict.sae import imported
from sparse_dict.sae.folder import Dictionary
from sparse_dict.tools import ending

CODE_ROWS = 16_384  # the last ones of the activations


def main(argv: Sequence[str] | None = None) -> int:
    """Print the comparison; 1 with one line if the two cannot be compared."""
    parser = argparse.ArgumentParser(
        "python -m sparse_dict.compare", description="how far do two dictionaries agree?"
    )
    parser.add_argument("a", help="a dictionary's folder, or OWNER/REPOSITORY/FOLDER on the hub")
    parser.add_argument("b", help="another one")
    parser.add_argument("--activations", type=Path, metavar="DIR", help="compare codes, too")
    parser.add_argument("--json", action="store_true", help="print JSON")
    given = parser.parse_args(argv)
    try:
        found = {"A": imported.read_any(given.a), "B": imported.read_any(given.b)}
        names = sorted(found, key=lambda name: len(found[name].b_enc))  # the smaller one first
        smaller, larger = (found[name] for name in names)
        compared, folder = compare(smaller, larger), given.activations
        codes = of_codes(smaller, larger, folder) if folder else None
    except UserError as error:
        sys.stderr.write(f"compare: {error}\n")
        return 1
    if given.json:
        record: dict[str, Any] = asdict(compared) | ({"codes": codes} if codes else {})
        for name, key in zip(names, ("smaller", "larger"), strict=True):
            record[key] = {"dictionary": given.a if name == "A" else given.b, **record[key]}
        sys.stdout.write(json.dumps(record, indent=2) + "\n")
    else:
        sys.stdout.write(table(names, compared, len(smaller.W_enc), codes))
    return 0


def compare(smaller: Dictionary, larger: Dictionary) -> Agreement:
    """Agreement of two dictionaries of the same activations."""
    widths = len(smaller.W_enc), len(larger.W_enc)
    if widths[0] != widths[1]:
        raise UserError(
            f"one dictionary is of activations {widths[0]} wide, the other {widths[1]}: to compare "
            "models, give analyze.py sae_dir=[STUDY/sae,STUDY/sae]"
        )
    return agree((smaller.W_enc.T, smaller.W_dec), (larger.W_enc.T, larger.W_dec))


def of_codes(smaller: Dictionary, larger: Dictionary, activations_dir: Path) -> dict[str, Any]:
    """Features matched one to one by the correlation of their codes on the same rows."""
    activations = Activations.open(activations_dir)
    if activations.d_in != len(smaller.W_enc):
        raise UserError(f"{activations_dir} holds rows of {activations.d_in}")
    x = activations.read(max(activations.rows - CODE_ROWS, 0), activations.rows)
    partners, correlation = match_codes(smaller.encode(x), larger.encode(x))
    cosine = (normalised(smaller.W_dec) * normalised(larger.W_dec)[partners]).sum(1)
    return {
        "rows": len(x),
        "correlation": float(correlation.mean()),
        "above": int((correlation > 0.9).sum()),
        "cosine": float(cosine.mean()),
    }


def table(names: Sequence[str], found: Agreement, d_in: int, codes: dict[str, Any] | None) -> str:
    """The comparison as text."""
    lines = [f"{'':<44}{'here':>9}{'random':>9}"]

    def line(text: str, here: str, random: str = "") -> None:
        lines.append(f"{text:<44}{here:>9}{random:>9}".rstrip())

    for name, other, way in zip(names, names[::-1], (found.smaller, found.larger), strict=True):
        line(f"MMCS of {name} in {other}", f"{way.mmcs:.3f}", f"{way.random_mmcs:.3f}")
        line(
            f"features of {name} above 0.9 in {other}, of {way.features}", f"{way.above}",
            f"{way.random_above:.1f}",
        )  # fmt: skip
    line("PW-MCC, one to one", f"{found.pw_mcc:.3f}", f"{found.random_pw_mcc:.3f}")
    line("shared fraction, encoder and decoder", f"{found.shared_fraction:.3f}")
    if codes is not None:
        line("correlation of codes, one to one", f"{codes['correlation']:.3f}")
        line("  features with one above 0.9", f"{codes['above']}")
        line("  cosine of these pairs, mean", f"{codes['cosine']:.3f}")
    head = f"{found.smaller.features} features ({names[0]}) and {found.larger.features} "
    return "\n".join([f"{head}({names[1]}) in {d_in} dimensions", "", *lines]) + "\n"


if __name__ == "__main__":
    ending(main)
