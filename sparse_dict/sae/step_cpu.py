"""One optimiser step of many dictionaries on the CPU: one call of C, which has its own threads.

A dictionary's result depends neither on the number of threads nor on what else is trained.
"""

import ctypes
import os
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Self

import torch
from torch import Tensor

from sparse_dict.sae import dead_features
from sparse_dict.sae.codes import SELECTION
from sparse_dict.sae.kernel import Dictionary, Numbers
from sparse_dict.sae.loss import surcharges
from sparse_dict.sae.schedule import Hyper
from sparse_dict.sae.state import FLOOR_DECAY, State


class SparseStep:
    """Computes steps for a fixed list of dictionaries; use as a context manager."""

    def __init__(self, library: ctypes.CDLL, states: list[State], d_out: int) -> None:
        self.library = library
        self.states = states
        self.d_out = d_out  # columns of what is reconstructed that are not padding
        self._gradients = [_gradients(state) for state in states]
        # The table holds addresses, so the tensors must stay alive.
        self._held = [
            _tensors(state) | gradients | _prices(state)
            for state, gradients in zip(states, self._gradients, strict=True)
        ]
        self._table = (Dictionary * len(states))(
            *(_entry(state, held) for state, held in zip(states, self._held, strict=True))
        )
        self._numbers = (Numbers * len(states))()
        self._live = (ctypes.c_int64 * len(states))()
        # Large ones first: they take longest, and small ones then fill the gaps.
        self._order = sorted(range(len(states)), key=lambda i: -states[i].dict_size)
        self._threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
        self._pool = ThreadPoolExecutor(self._threads)  # for what torch computes; C has its own
        self._torch_threads = torch.get_num_threads()
        self._step: int | None = None

    def __enter__(self) -> Self:
        torch.set_num_threads(1)  # its sums may depend on the number
        self._step = self.library.step_open(self._table, len(self.states), self._threads)
        if not self._step:
            raise MemoryError("no room for a step's buffers")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._pool.shutdown(cancel_futures=True)
        self.library.step_close(self._step)
        self._step = None
        torch.set_num_threads(self._torch_threads)

    def __call__(
        self, x: Tensor, hypers: list[Hyper | None], seen: int, y: Tensor | None = None
    ) -> None:
        """Train every dictionary whose hyper is not None on batch `x` (batch, width).

        What is reconstructed is `y` (batch, width), or `x` itself.

        `seen` counts the rows seen with this batch; features active in it are marked with it.
        Each state's sums grow by the batch's values from before the update.
        """
        y = x if y is None else y
        live = [i for i in self._order if hypers[i] is not None]
        for at, i in enumerate(live):
            hyper = hypers[i]
            assert hyper is not None
            self._live[at] = i
            self._numbers[i] = self._in_numbers(hyper, len(x))
        with_auxiliary = [i for i in live if self.states[i].architecture.sae.dead == "auxk"]
        list(self._pool.map(lambda i: self._auxiliary_gradients(i, x, y, seen), with_auxiliary))
        list(self._pool.map(self._price, (i for i in live if self.states[i].architecture.priced)))
        done = self.library.step_run(
            self._step, self._live, len(live), self._numbers, x.data_ptr(), y.data_ptr(), len(x),
            seen,
        )  # fmt: skip
        if not done:
            raise MemoryError("no room for a batch")
        for state, hyper in zip(self.states, hypers, strict=True):
            sae = state.architecture.sae
            if hyper and sae.dead == "resample" and hyper.step % sae.resample_every == 0:
                dead_features.resample(state, x, state.inactive(seen), hyper.step, y)

    def _in_numbers(self, hyper: Hyper, rows: int) -> Numbers:
        return Numbers(
            rate=hyper.lr / (1 - hyper.beta1**hyper.step),
            beta1=hyper.beta1,
            beta2=hyper.beta2,
            root=(1 - hyper.beta2**hyper.step) ** -0.5,
            eps=hyper.eps,
            scale=2 / (rows * self.d_out),
            penalty=hyper.numbers["l1"] / rows,
            l0=hyper.numbers.get("l0", 0.0) / rows,
        )

    def _price(self, i: int) -> None:
        """Say what the codes of each feature cost, which its decoder row decides."""
        state, held = self.states[i], self._held[i]
        assert state.metric is not None
        share, slope = surcharges(state.W_dec, state.metric)
        strength = state.architecture.sae.guide_strength
        torch.add(1.0, share, alpha=strength, out=held["price"])
        torch.mul(slope, strength, out=held["pull"])

    def _auxiliary_gradients(self, i: int, x: Tensor, y: Tensor, seen: int) -> None:
        """Put the auxiliary loss's gradients where the step adds its own."""
        state, gradients = self.states[i], self._gradients[i]
        inactive = state.inactive(seen)
        for gradient in gradients.values():
            gradient.zero_()
        enc, dec, b = dead_features.auxiliary_gradients(state, x, inactive, self.d_out, y)
        gradients["G_dec"][inactive] = dec
        gradients["G_enc"][inactive] += enc  # the same tensor where weights are tied
        gradients["G_b"][inactive] = b
        self._numbers[i].added = True


def _gradients(state: State) -> dict[str, Tensor]:
    """Room for gradients, named as in `kernel.Dictionary`."""
    dec = torch.zeros_like(state.W_dec)
    named = {
        "G_dec": dec,
        "G_enc": dec if state.architecture.sae.tied else torch.zeros_like(dec),
        "G_b": torch.zeros_like(state.b),
    }
    if "log_threshold" in state.params:
        named["G_threshold"] = torch.zeros_like(state.b)
    return named


def _prices(state: State) -> dict[str, Tensor]:
    """Room for what codes cost, named as in `kernel.Dictionary`."""
    if not state.architecture.priced:
        return {}
    return {"price": torch.empty_like(state.b), "pull": torch.empty_like(state.W_dec)}


def _tensors(state: State) -> dict[str, Tensor]:
    """What a step changes of a state, named as in `kernel.Dictionary`."""
    named = state.tensors()
    if state.architecture.sae.tied:
        for name in ("W", "m", "v"):
            named[f"{name}_enc"] = named[f"{name}_dec"]
    return named | {"sums": state.sums}


def _entry(state: State, tensors: dict[str, Tensor]) -> Dictionary:
    sae = state.architecture.sae
    return Dictionary(
        **{name: tensor.data_ptr() for name, tensor in tensors.items()},
        size=state.dict_size,
        k=getattr(sae, "k", 0),
        together=SELECTION if state.architecture.keeps_floor else 0,
        band=getattr(sae, "bandwidth", 0.0) / 2,
        floor_pace=1 - FLOOR_DECAY,
        bf16=sae.precision == "bf16",
        project=sae.project_gradient,
        aligned=sae.encoder_norm,
    )
