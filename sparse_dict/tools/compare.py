"""`python -m sparse_dict.compare A B`: how far do two dictionaries agree?

A and B are folders of dictionaries: ours, or of SAELens, dictionary_learning or sparsify, or names
on the Hugging Face hub. With --activations their codes on the same rows are compared too.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sparse_dict.activations.store import Activations
from sparse_dict.analysis.measures.mcs import match_codes, normalised
from sparse_dict.analysis.measures.two_dictionaries import one_to_one, one_way
from sparse_dict.errors import UserError
from sparse_dict.sae import imported
from sparse_dict.sae.folder import Dictionary
from sparse_dict.tools import ending

CODE_ROWS = 16_384  # the last ones of the activations
THRESHOLD = 0.9  # above which a cosine or a correlation is high


def main(argv: Sequence[str] | None = None) -> int:
    """Print the comparison."""
    parser = argparse.ArgumentParser(
        "python -m sparse_dict.compare", description="how far do two dictionaries agree?"
    )
    parser.add_argument("a", help="a dictionary's folder, or OWNER/REPOSITORY/FOLDER on the hub")
    parser.add_argument("b", help="another one")
    parser.add_argument("--activations", type=Path, metavar="DIR", help="compare codes, too")
    parser.add_argument("--json", action="store_true", help="print JSON")
    given = parser.parse_args(argv)
    both = [(imported.read_any(path), path, n) for n, path in (("A", given.a), ("B", given.b))]
    (smaller, *small), (larger, *large) = sorted(both, key=lambda one: len(one[0].b_enc))
    found = compare(smaller, larger)
    if given.activations:
        found["codes"] = of_codes(smaller, larger, given.activations)
    if given.json:
        for key, (path, _) in {"smaller": small, "larger": large}.items():
            found[key] = {"dictionary": path, **found[key]}
        sys.stdout.write(json.dumps(found, indent=2) + "\n")
    else:
        sys.stdout.write(table((small[1], large[1]), found, len(smaller.W_enc)))
    return 0


def compare(smaller: Dictionary, larger: Dictionary) -> dict[str, Any]:
    """Agreement of two dictionaries of the same activations: either way, and one to one."""
    widths = len(smaller.W_enc), len(larger.W_enc)
    if widths[0] != widths[1]:
        raise UserError(
            f"one dictionary is of activations {widths[0]} wide, the other {widths[1]}: to compare "
            "models, give analyze.py sae_dir=[STUDY/sae,STUDY/sae]"
        )
    return {
        "smaller": one_way(smaller.W_dec, larger.W_dec, THRESHOLD),
        "larger": one_way(larger.W_dec, smaller.W_dec, THRESHOLD),
        **one_to_one((smaller.W_enc.T, smaller.W_dec), (larger.W_enc.T, larger.W_dec)),
    }


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
        "above": int((correlation > THRESHOLD).sum()),
        "cosine": float(cosine.mean()),
    }


def table(names: tuple[str, str], found: dict[str, Any], d_in: int) -> str:
    """The comparison as text; `names` are those of the smaller and the larger dictionary."""
    lines = [f"{'':<44}{'here':>9}{'random':>9}"]

    def line(text: str, here: str, random: str = "") -> None:
        lines.append(f"{text:<44}{here:>9}{random:>9}".rstrip())

    ways = found["smaller"], found["larger"]
    for name, other, way in zip(names, names[::-1], ways, strict=True):
        line(f"MMCS of {name} in {other}", f"{way['mmcs']:.3f}", f"{way['random_mmcs']:.3f}")
        above = f"features of {name} above {THRESHOLD} in {other}, of {way['features']}"
        line(above, f"{way['above']}", f"{way['random_above']:.1f}")
    line("PW-MCC, one to one", f"{found['pw_mcc']:.3f}", f"{found['random_pw_mcc']:.3f}")
    line("shared fraction, encoder and decoder", f"{found['shared_fraction']:.3f}")
    if codes := found.get("codes"):
        line("correlation of codes, one to one", f"{codes['correlation']:.3f}")
        line(f"  features with one above {THRESHOLD}", f"{codes['above']}")
        line("  cosine of these pairs, mean", f"{codes['cosine']:.3f}")
    small, large = (f"{way['features']} features ({n})" for way, n in zip(ways, names, strict=True))
    return "\n".join([f"{small} and {large} in {d_in} dimensions", "", *lines]) + "\n"


if __name__ == "__main__":
    ending(main)
