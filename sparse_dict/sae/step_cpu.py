"""One optimiser step of many dictionaries on the CPU: one call of C, which has its own threads.

A dictionary's result depends neither on the number of threads nor on what else is trained.
"""

import ctypes
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Self

import torch
from torch import Tensor

from sparse_dict.machine import compiled
from sparse_dict.machine.threads import available_cores
from sparse_dict.sae.loss import SELECTION, keep_largest
from sparse_dict.sae.schedule import Hyper
from sparse_dict.sae.state import FLOOR_DECAY, State

SOURCE = Path(__file__).with_name("kernel.c")
LANES = 16  # the width is padded to a multiple of this


class DictionaryStruct(ctypes.Structure):
    """`struct dictionary` of `dictionary.h`."""

    POINTERS = (
        "W_enc", "W_dec", "b", "m_enc", "v_enc", "m_dec", "v_dec", "m_b", "v_b",
        "b_dec", "m_b_dec", "v_b_dec",
        "log_threshold", "m_threshold", "v_threshold", "batch_floor", "last_fired", "sums",
        "G_enc", "G_dec", "G_b", "G_threshold",
    )  # fmt: skip
    _fields_ = (
        *((name, ctypes.c_void_p) for name in POINTERS),
        *((name, ctypes.c_int64) for name in ("size", "k", "together")),
        *((name, ctypes.c_float) for name in ("band", "floor_pace")),
        *((name, ctypes.c_int32) for name in ("bf16", "project", "aligned")),
    )


class NumbersStruct(ctypes.Structure):
    """`struct numbers` of `dictionary.h`."""

    _fields_ = (
        *(
            (name, ctypes.c_float)
            for name in ("rate", "beta1", "beta2", "root", "eps", "scale", "penalty", "l0")
        ),
        ("added", ctypes.c_int32),
    )


def padded(width: int) -> int:
    """`width` rounded up to what the kernel takes."""
    return -(-width // LANES) * LANES


@cache
def load(width: int) -> ctypes.CDLL | None:
    """The kernel for rows of at most `width` columns; None where there is no C compiler."""
    flags = [*compiled.EXACT, "-pthread", f"-DD={padded(width)}"]
    functions = {"step_open": "pni>p", "step_run": "ppnpppnn>i", "step_close": "p"}
    return compiled.library(SOURCE, flags, **functions)


class SparseStep:
    """Computes steps for a fixed list of dictionaries of the same rows; a context manager."""

    def __init__(self, states: list[State]) -> None:
        """Tensors that are narrower than the kernel takes become parts of wider ones."""
        self.states = states
        widest = max(states[0].d_in, states[0].d_out)
        self.width, library = padded(widest), load(widest)
        assert library is not None  # who asks for this step has looked
        self.library = library
        self._gradients = [_padded(state, self.width) for state in states]
        self._table = (DictionaryStruct * len(states))(
            *(_entry(*pair) for pair in zip(states, self._gradients, strict=True))
        )
        self._numbers = (NumbersStruct * len(states))()
        self._live = (ctypes.c_int64 * len(states))()
        self._wide: dict[str, Tensor] = {}
        # Large ones first: they take longest, and small ones then fill the gaps.
        self._order = sorted(range(len(states)), key=lambda i: -states[i].dict_size)
        self._threads = available_cores()
        self._pool = ThreadPoolExecutor(self._threads)  # for what torch computes; C has its own
        self._torch_threads = torch.get_num_threads()
        self._step: int | None = None

    def __enter__(self) -> Self:
        torch.set_num_threads(1)  # its sums may depend on the number
        self._step = self.library.step_open(self._table, len(self.states), self._threads)
        if not self._step:
            raise MemoryError("no room for a step's buffers")
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)
        self.library.step_close(self._step)
        self._step = None
        torch.set_num_threads(self._torch_threads)

    def __call__(self, x: Tensor, y: Tensor, hypers: Sequence[Hyper | None], seen: int) -> None:
        """Train each dictionary with a hyper on a batch, x (batch, d_in) and y (batch, d_out).

        Each state's sums grow by the batch's values from before the update; `seen` are rows with
        this batch, with which features that are active in it are marked.
        """
        live, rows, values = [i for i in self._order if hypers[i] is not None], len(y), y.numel()
        for at, i in enumerate(live):
            hyper = hypers[i]
            assert hyper is not None
            self._live[at] = i
            self._numbers[i] = _numbers(hyper, rows, values)
        with_auxiliary = [i for i in live if self.states[i].architecture.sae.dead == "auxk"]
        list(self._pool.map(lambda i: self._add_auxiliary(i, x, y, seen), with_auxiliary))
        wide_x = self._widened("x", x)
        wide_y = wide_x if y is x else self._widened("y", y)
        done = self.library.step_run(
            self._step, self._live, len(live), self._numbers, wide_x, wide_y, len(x), seen
        )  # fmt: skip
        if not done:
            raise MemoryError("no room for a batch")

    def _widened(self, name: str, rows: Tensor) -> Tensor:
        if rows.shape[1] == self.width:
            return rows.contiguous()
        if name not in self._wide or len(self._wide[name]) < len(rows):
            self._wide[name] = rows.new_zeros(len(rows), self.width)
        self._wide[name][: len(rows), : rows.shape[1]] = rows
        return self._wide[name]

    def _add_auxiliary(self, i: int, x: Tensor, y: Tensor, seen: int) -> None:
        state, gradients = self.states[i], self._gradients[i]
        inactive = state.inactive(seen)
        for gradient in gradients.values():
            gradient.zero_()
        enc, dec, b = auxiliary_gradients(state, x, y, inactive)
        gradients["G_dec"][inactive, : state.d_out] = dec
        gradients["G_enc"][inactive, : state.d_in] += enc  # the same tensor where weights are tied
        gradients["G_b"][inactive] = b
        self._numbers[i].added = True


def _numbers(hyper: Hyper, rows: int, values: int) -> NumbersStruct:
    rate, root = hyper.corrected
    return NumbersStruct(
        rate=rate,
        beta1=hyper.beta1,
        beta2=hyper.beta2,
        root=root,
        eps=hyper.eps,
        scale=2 / values,
        penalty=hyper.numbers["l1"] / rows,
        l0=hyper.numbers.get("l0", 0.0) / rows,
    )


def _padded(state: State, width: int) -> dict[str, Tensor]:
    """Let a state's rows lie `width` values apart; returns room for gradients, named as in C."""
    for group in (state.params, state.m, state.v):
        for name, tensor in group.items():
            if name in ("W_enc", "W_dec", "b_dec") and tensor.shape[-1] != width:
                wide = tensor.new_zeros(*tensor.shape[:-1], width)
                wide[..., : tensor.shape[-1]] = tensor
                group[name] = wide[..., : tensor.shape[-1]]
    dec = state.W_dec.new_zeros(state.dict_size, width)
    gradients = {
        "G_dec": dec,
        "G_enc": dec if state.architecture.sae.tied else torch.zeros_like(dec),
        "G_b": torch.zeros_like(state.b),
    }
    if "log_threshold" in state.params:
        gradients["G_threshold"] = torch.zeros_like(state.b)
    return gradients


def _entry(state: State, gradients: dict[str, Tensor]) -> DictionaryStruct:
    sae, named = state.architecture.sae, state.tensors()
    if sae.tied:
        named |= {f"{name}_enc": named[f"{name}_dec"] for name in ("W", "m", "v")}
    tensors = named | gradients | {"sums": state.sums}
    return DictionaryStruct(
        **{name: tensor.data_ptr() for name, tensor in tensors.items()},
        size=state.dict_size,
        floor_pace=1 - FLOOR_DECAY,
        bf16=sae.precision == "bf16",
        project=sae.project_gradient,
        aligned=sae.encoder_norm,
        **state.architecture.in_c(),
    )


def auxiliary_gradients(
    state: State, x: Tensor, y: Tensor, inactive: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of `loss.auxiliary`, times its coefficient, of W_enc, W_dec, b at `inactive`."""
    W_enc, W_dec, b = state.W_enc[inactive], state.W_dec[inactive], state.b[inactive]
    g_enc, g_dec, g_b = torch.zeros_like(W_enc), torch.zeros_like(W_dec), torch.zeros_like(b)
    if not len(b):
        return g_enc, g_dec, g_b
    sae, whole = state.architecture.sae, state.whole
    scale = sae.aux_coefficient * 2 / y.numel()
    for rows, wanted in zip(x.split(SELECTION), y.split(SELECTION), strict=True):
        codes = keep_largest((rows @ W_enc.T + b).relu(), sae.aux_k)  # (rows, inactive)
        left = wanted - state.architecture.reconstruct(whole, rows)
        residual = scale * (codes @ W_dec - left)  # (rows, d_out)
        g_codes = (residual @ W_dec.T) * (codes > 0)
        g_enc.addmm_(g_codes.T, rows)
        g_dec.addmm_(codes.T, residual)
        g_b += g_codes.sum(dim=0)
    return g_enc, g_dec, g_b
