"""From a trained state to the dictionary on raw activations, and its numbers on held-out rows."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from sparse_dict.activations.store import Activations, Moments
from sparse_dict.sae.folder import Dictionary
from sparse_dict.sae.module import TorchDictionary
from sparse_dict.sae.scaling import Scaling, undone
from sparse_dict.sae.state import State

READ = 4096  # rows read at a time
CODES = 1 << 20  # codes made at a time: at most 4 MiB, whatever the dictionary's size


def on_raw(state: State, x: Scaling, y: Scaling) -> Dictionary:
    """The trained dictionary for raw activations, neither centred nor scaled."""
    p = {name: tensor.cpu() for name, tensor in state.whole.items()}
    floor = 0.0 if state.batch_floor is None else float(state.batch_floor)
    return undone(state.architecture.export(p, y.unit, floor), x, y)


@dataclass
class Evaluation:
    """A dictionary's numbers on rows that it was not trained on."""

    mse: npt.NDArray[np.float64]  # (d_out,) mean over rows, raw units
    variance: npt.NDArray[np.float64]  # (d_out,) of what is reconstructed, on the same rows
    l0: float  # active features in a row
    l1: float  # sum of codes in a row, raw units
    fire_count: npt.NDArray[np.int64]  # (dict_size,) rows on which each feature was active
    rows: int

    def metrics(
        self, scale: npt.NDArray[np.float64] | float = 1.0, unit: float = 1.0
    ) -> dict[str, float]:
        """As `metrics.json` has them: errors in units of `scale` (d_out,), codes of `unit`."""
        mse, variance = (float((part / scale**2).mean()) for part in (self.mse, self.variance))
        return {
            "mse": mse,
            "variance": variance,
            "fvu": mse / variance,
            "l0": self.l0,
            "l1_norm": self.l1 / unit,
            "dead": int((self.fire_count == 0).sum()),
            "eval_rows": self.rows,
        }


@torch.inference_mode()
def evaluate(
    dictionaries: list[Dictionary],
    data: list[tuple[Activations, Activations]],
    start: int,
    device: torch.device,
) -> list[Evaluation]:
    """Numbers of every dictionary on the rows from `start` to the end, read once."""
    modules = [TorchDictionary(d).to(device) for d in dictionaries]
    last = data[0][0].rows if data else start
    rows = last - start
    l1 = np.zeros(len(modules))
    error = [np.zeros(y.d_in) for _, y in data]
    moments = {y: Moments(y.d_in) for _, y in data}
    fired = [torch.zeros(len(d.b_enc), dtype=torch.int64, device=device) for d in dictionaries]
    for first in range(start, last, READ):
        stop = min(first + READ, last)
        rows_of = {a: a.read(first, stop) for both in data for a in {*both}}
        for y, seen in moments.items():
            seen.add(rows_of[y])
        read = {a: torch.from_numpy(found).to(device) for a, found in rows_of.items()}
        for i, module in enumerate(modules):
            together = max(1, CODES // len(module.b_enc))
            parts = (read[a].split(together) for a in data[i])
            for x, wanted in zip(*parts, strict=True):
                codes = module.encode(x)  # (rows, dict_size)
                residual = module.decode(codes) - wanted
                if module.W_skip is not None:
                    residual += x @ module.W_skip
                error[i] += residual.square().sum(0, dtype=torch.float64).cpu().numpy()
                l1[i] += float(codes.sum(dtype=torch.float64))
                fired[i] += (codes > 0).sum(dim=0)
    return [
        Evaluation(
            mse=error[i] / rows,
            variance=moments[data[i][1]].variance,
            l0=float(fired[i].sum()) / rows,
            l1=l1[i] / rows,
            fire_count=fired[i].cpu().numpy(),
            rows=rows,
        )
        for i in range(len(modules))
    ]
