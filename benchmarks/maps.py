"""What transcoders and crosscoders cost beside a dictionary of their size: CPU time of a step.

python benchmarks/maps.py outputs/demo/activations
"""

import sys
import time
from pathlib import Path
from typing import Any

import torch

from sparse_dict.activations.store import Activations
from sparse_dict.config import AdamConfig, SAEConfig
from sparse_dict.sae import architectures
from sparse_dict.sae.ensemble import make_steps
from sparse_dict.sae.schedule import Hyper
from sparse_dict.sae.state import State

SIZE, BATCH, WARM, STEPS = 512, 256, 1000, 400
COMMON: dict[str, Any] = dict(
    dict_size=SIZE, tied=False, init="independent", l1=0.0, l1_scaling="d_in", dead="none",
    aux_k=1, aux_coefficient=0.0, precision="fp32", project_gradient=False,
)  # fmt: skip
SITES = {"site": "2/mlp_post", "target": "2/mlp_out"}
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "ReLU": ("relu", {"l1": 2.56}),
    "ReLU transcoder": ("relu", {"l1": 2.56, **SITES}),
    "ReLU transcoder with a skip": ("relu", {"l1": 2.56, "skip": True, **SITES}),
    "TopK": ("topk", {"k": 8}),
    "TopK transcoder": ("topk", {"k": 8, **SITES}),
    "L1 crosscoder": ("crosscoder", {"l1": 2.56, "widths": [64, 64]}),
    "BatchTopK crosscoder": ("batch_topk_crosscoder", {"k": 8, "widths": [64, 64]}),
}


def measured(sae: SAEConfig, x: torch.Tensor) -> tuple[float, float]:
    """Milliseconds of processor time a step, and the L0 of the steps that were measured."""
    architecture = architectures.of(sae)
    config: Any = type("Config", (), {"sae": sae, "seed": 0, "training": _Training})
    state = State.initial(config, x.shape[1], x.shape[1], torch.device("cpu"))
    ((_, step),) = make_steps([state], WARM + STEPS)
    o = AdamConfig(lr=1e-3, beta1=0.9, beta2=0.999, eps=1e-8, warmup_steps=0)
    numbers = {name: float(getattr(sae, name)) for name in architecture.numbers}
    numbers["l1"] /= x.shape[1]
    with step:
        for t in range(1, WARM + STEPS + 1):
            if t == WARM + 1:
                state.sums.zero_()
                began = time.process_time()
            rows = x[(t * BATCH) % (len(x) - BATCH) :][:BATCH]
            # what is reconstructed costs the same whatever its values are
            step(rows, rows, [Hyper(o.lr, o.beta1, o.beta2, o.eps, t, numbers)], t * BATCH)
        seconds = time.process_time() - began
    stats = state.stats()
    return 1e3 * seconds / STEPS, stats.active / stats.rows


class _Training:
    dead_window, n_activations = 10**6, 10**6


def main() -> None:
    """Print a line a kind."""
    activations = Activations.open(Path(sys.argv[1]))
    x = torch.from_numpy(activations.read(0, 200_000) / activations.rms).float()
    torch.set_num_threads(1)
    sys.stdout.write(f"{SIZE} features, {x.shape[1]} wide, batches of {BATCH}\n")
    for name, (activation, own) in KINDS.items():
        kind = architectures.known()[activation].Config
        ms, l0 = measured(kind(activation=activation, **COMMON | own), x)
        sys.stdout.write(f"{name:<28}{ms:>7.2f} ms of processor time a step, L0 {l0:.1f}\n")


if __name__ == "__main__":
    main()
