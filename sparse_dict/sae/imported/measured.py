"""`metrics.json` of a dictionary that was not trained here, but measured here."""

import time
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparse_dict.activations.store import Activations
from sparse_dict.machine import runtime
from sparse_dict.sae.evaluate import evaluate
from sparse_dict.sae.folder import Dictionary
from sparse_dict.sae.rows import check_evaluation_rows

EVAL_ROWS = 65_536


def measured(
    dictionary: Dictionary,
    activations: Activations,
    kind: str,
    made: dict[str, Any],
    *,
    l1: float = 0.0,
    seed: int = 0,
) -> tuple[dict[str, Any], NDArray[np.int64]]:
    """The metrics of a dictionary on the last rows of raw activations, and its `fire_count`."""
    started = time.perf_counter()
    rows = min(activations.rows, EVAL_ROWS)
    check_evaluation_rows(activations, rows)
    start = activations.rows - rows
    (found,) = evaluate([dictionary], [(activations, activations)], start, runtime.device("cpu"))
    named = {"activation": kind, "tied": False, "l1_scaling": "none", "l1": l1}
    named["dict_size"] = len(dictionary.b_enc)
    sae = named | ({} if dictionary.k is None else {"k": dictionary.k})
    metrics = {
        **named,
        "seed": seed,
        "d_in": activations.d_in,
        **found.metrics(),
        "activations_scale": 1.0,
        "seconds": time.perf_counter() - started,
        "config": {"seed": seed, "sae": sae, **made},
        "fingerprints": {"activations": activations.fingerprint},
    }
    return metrics, found.fire_count
