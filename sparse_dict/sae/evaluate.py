"""From a trained state to the dictionary on raw activations, and its numbers on held-out rows."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from sparse_dict.activations.store import Activations
from sparse_dict.sae.folder import Dictionary
from sparse_dict.sae.state import State
from sparse_dict.sae.view import View

READ = 4096  # rows read at a time
CODES = 1 << 20  # codes made at a time: at most 4 MiB, whatever the dictionary's size


def on_raw(state: State, d_in: int, view: View) -> Dictionary:
    """The trained dictionary for activations as they are, not as `view` shows them."""
    p = {name: tensor.cpu() for name, tensor in state.whole(d_in).items()}
    floor = 0.0 if state.batch_floor is None else float(state.batch_floor)
    return view.undone(state.architecture.export(p, view.unit, floor))


@dataclass
class Evaluation:
    """A dictionary's numbers on rows that it was not trained on."""

    mse: npt.NDArray[np.float64]  # (d_in,) mean over rows, raw units
    l0: float  # active features in a row
    l1: float  # sum of codes in a row, raw units
    fire_count: npt.NDArray[np.int64]  # (dict_size,) rows on which each feature was active
    rows: int


@torch.inference_mode()
def evaluate(
    dictionaries: list[Dictionary], activations: Activations, start: int, device: torch.device
) -> list[Evaluation]:
    """Numbers of every dictionary on the rows from `start` to the end, read once."""
    weights = [
        tuple(torch.from_numpy(a).to(device) for a in (d.W_enc, d.b_enc, d.W_dec, d.b_dec))
        for d in dictionaries
    ]
    rows = activations.rows - start
    l1 = np.zeros(len(weights))
    error = np.zeros((len(weights), activations.d_in))
    fired = [torch.zeros(len(d.b_enc), dtype=torch.int64, device=device) for d in dictionaries]
    for first in range(start, activations.rows, READ):
        read = activations.read(first, min(first + READ, activations.rows))
        everything = torch.from_numpy(read).to(device)
        for i, (W_enc, b_enc, W_dec, b_dec) in enumerate(weights):
            for x in everything.split(max(1, CODES // len(b_enc))):
                codes = dictionaries[i].activate(torch.addmm(b_enc, x, W_enc))  # (rows, dict_size)
                residual = torch.addmm(b_dec, codes, W_dec) - x
                error[i] += residual.square().sum(0, dtype=torch.float64).cpu().numpy()
                l1[i] += float(codes.sum(dtype=torch.float64))
                fired[i] += (codes > 0).sum(dim=0)
    return [
        Evaluation(
            mse=error[i] / rows,
            l0=float(fired[i].sum()) / rows,
            l1=l1[i] / rows,
            fire_count=fired[i].cpu().numpy(),
            rows=rows,
        )
        for i in range(len(weights))
    ]
