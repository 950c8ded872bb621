"""Dictionaries of one site or study against those of another, on the same tokens.

Other studies are other layers, checkpoints or language models. All are compared after maps between
the activations, and by codes, which need none.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd

from sparse_dict.activations.side_by_side import paired
from sparse_dict.analysis import harvested
from sparse_dict.analysis.comparison import Comparison
from sparse_dict.analysis.context import Context
from sparse_dict.analysis.measures import Floats, alignment
from sparse_dict.analysis.measures.two_dictionaries import of_codes, of_directions
from sparse_dict.analysis.study import Entry, Study, everywhere, seed_groups
from sparse_dict.config.sites import RESIDUAL
from sparse_dict.errors import UserError

ROWS = 32_768  # tokens that maps are fitted and codes of two studies compared on
SEEDS = "another seed, same model"  # what the agreement of models is measured against
Row = dict[str, Any]


def measure(context: Context) -> dict[str, pd.DataFrame]:
    """Agreement with each other study after maps of activations, and of each site with the next."""
    main, own = context.comparison.main, context.comparison.shown_of()
    found: dict[str, list[Row]] = {"studies_maps": [], "studies": [], "sites": []}
    for other in context.others:
        folder = other.folder.resolve()
        name = {"study": folder.parent.name if folder.name == "sae" else folder.name}
        try:
            read = harvested.activations_of(other, context.config)
            x, y = paired(context.activations, read, ROWS)
        except UserError as error:
            found["studies_maps"].append(name | {"missing": str(error)})
            continue
        fitted, of = alignment.fit(x, y), name | {"tokens": len(x)}
        known = {key: matrix for key, (matrix, _) in fitted.items()}
        told = [of | {"map": key, "explained": share} for key, (_, share) in fitted.items()]
        found["studies_maps"] += told
        alike = [c for c in other.chains if main and (c.axis, c.level) == (main.axis, main.level)]
        shown = alike[0].entries if alike else None
        theirs = shown or Comparison(other, context.config.comparison).shown_of()
        found["studies"] += _compared(context, name, own, theirs, (x, y), known)
    if found["studies"]:
        x = context.evaluation_rows()
        found["studies"] += _another_seed(context, {"study": SEEDS}, context.study, own, x)
    every = everywhere(context.study) if context.study.beside else []
    single = [study for study in every if study.site is not None and study.target is None]
    for one, two in pairwise(single):
        x, y = context.sample_of(one), context.sample_of(two)
        own, theirs = (context.comparisons[study.at].shown_of() for study in (one, two))
        residual = RESIDUAL.issuperset(str(s.site).rpartition("/")[2] for s in (one, two))
        maps = {"identity": np.eye(one.d_in)} if residual and one.d_in == two.d_in else {}
        of = {"site": one.at, "next": two.at}
        found["sites"] += _compared(context, of, own, theirs, (x, y), maps)
        found["sites"] += _another_seed(context, of | {"next": SEEDS}, one, own, x)
    return {name: pd.DataFrame(rows) for name, rows in found.items() if rows}


def _another_seed(
    context: Context, of: Row, study: Study, own: Sequence[Entry], x: Floats
) -> Iterator[Row]:
    """The dictionaries against those of another seed that are alike but for that."""
    maps = {"identity": np.eye(study.d_in)}
    for first, second, *_ in seed_groups(study):
        if first in own:
            yield from _compared(context, of, [first], [second], (x, x), maps)


def _compared(
    context: Context, of: Row, own: Sequence[Entry], theirs: Sequence[Entry],
    rows: tuple[Floats, Floats], maps: Mapping[str, Floats],
) -> Iterator[Row]:  # fmt: skip
    """Each dictionary against the other that is nearest in size: after each map, and by codes.

    Rows begin with `of`; `maps` are (d, e); `rows` (n, d) and (n, e) are of the same tokens.
    """
    bar, limit = context.config.comparison.threshold, context.config.comparison.match_limit
    small, there = ([entry for entry in of if entry.size <= limit] for of in (own, theirs))
    for first in small if there else ():
        second = min(there, key=lambda e: abs(e.size - first.size))
        of = of | {"size": first.size, "other": second.size}
        for name, matrix in maps.items():
            mine = first.encoder @ matrix, first.decoder @ matrix
            other = second.encoder, second.decoder
            found = of_directions(mine, other, (first.alive, second.alive), bar)
            yield of | {"map": name} | found
        one, two = (e.trained.dictionary for e in (first, second))
        yield of | {"map": "codes"} | of_codes(one.encode(rows[0]), two.encode(rows[1]), bar)
