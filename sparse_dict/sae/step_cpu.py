"""One optimiser step of many dictionaries on the CPU, over active entries only (`kernel.c`).

Each dictionary's batch is cut into chunks of rows, dealt alternately to two tasks with gradients
of their own. That number is fixed, and a task runs in one thread and touches one dictionary: so
the result does not depend on how many threads there are or what else is trained.
"""

import ctypes
import os
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue
from types import TracebackType
from typing import Self

import torch
from torch import Tensor

from sparse_dict.sae import dead_features, kernel
from sparse_dict.sae.codes import SELECTION
from sparse_dict.sae.schedule import Hyper
from sparse_dict.sae.state import State, Stats

CHUNK = SELECTION  # 256 rows: a chunk's residuals and inputs stay in the second-level cache
BLOCK = 512  # features whose encoder products are made, then scanned, at a time
PARTS = 2


class _Scratch:
    """The buffers of one running task."""

    def __init__(self, width: int, max_size: int) -> None:
        entries = max_size * CHUNK + kernel.LANES
        self.products = torch.empty(BLOCK * CHUNK)
        self.products_bf16 = torch.empty(BLOCK * CHUNK, dtype=torch.bfloat16)
        self.residual = torch.empty(CHUNK, width)
        self.rows = torch.empty(entries, dtype=torch.int32)
        self.codes = torch.empty(entries)
        self.starts = torch.empty(max_size + 1, dtype=torch.int64)
        self.floor = torch.empty(CHUNK)  # one for each row: what TopK chooses by


class _Gradients:
    """Gradients of one dictionary, in `PARTS` parts."""

    def __init__(self, state: State) -> None:
        self.dec = torch.zeros(PARTS, *state.W_dec.shape)
        self.enc = self.dec if state.architecture.sae.tied else torch.zeros_like(self.dec)
        self.threshold = torch.zeros(PARTS, state.dict_size)
        self.floors: list[list[float]] = [[] for _ in range(PARTS)]  # of the chunks, in order
        self.b = torch.zeros(PARTS, state.dict_size)
        self.fired = torch.zeros(PARTS, state.dict_size, dtype=torch.int64)


class SparseStep:
    """Computes steps for a fixed list of dictionaries; use as a context manager."""

    def __init__(self, library: ctypes.CDLL, states: list[State], d_in: int) -> None:
        self.library = library
        self.states = states
        self.d_in = d_in
        self._gradients = [_Gradients(state) for state in states]
        self._W_bf16 = [
            state.W_enc.bfloat16() if state.architecture.sae.precision == "bf16" else None
            for state in states
        ]
        threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
        threads = min(max(threads, 1), PARTS * len(states))
        largest = max(state.dict_size for state in states)
        self._scratch: SimpleQueue[_Scratch] = SimpleQueue()
        for _ in range(threads):
            self._scratch.put(_Scratch(states[0].W_dec.shape[1], largest))
        self._torch_threads = torch.get_num_threads()
        self._pool = ThreadPoolExecutor(threads)

    def __enter__(self) -> Self:
        torch.set_num_threads(1)  # the tasks are the parallelism
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._pool.shutdown(cancel_futures=True)
        torch.set_num_threads(self._torch_threads)

    def __call__(self, x: Tensor, hypers: list[Hyper | None], seen: int) -> None:
        """Train every dictionary whose hyper is not None on batch `x` (batch, width).

        `seen` counts the rows seen with this batch; features active in it are marked with it.
        Each state's sums grow by what was true before the update.
        """
        live = [i for i, hyper in enumerate(hypers) if hyper is not None]
        live.sort(key=lambda i: -self.states[i].dict_size)  # long tasks first
        low = x.bfloat16() if any(self._W_bf16[i] is not None for i in live) else None
        tasks = [(i, part) for i in live for part in range(PARTS)]
        sums = [Stats() for _ in self.states]
        parts = self._pool.map(lambda t: self._accumulate(x, low, t[0], t[1], hypers), tasks)
        for (i, _), part_sums in zip(tasks, parts, strict=True):
            sums[i].add(part_sums)
        list(self._pool.map(lambda i: self._optimise(i, x, hypers, seen), live))
        for i in live:
            self.states[i].add_stats(sums[i])

    def _accumulate(
        self, x: Tensor, low: Tensor | None, i: int, part: int, hypers: list[Hyper | None]
    ) -> Stats:
        """Gradients of every `PARTS`-th chunk of the batch."""
        state, gradients, hyper = self.states[i], self._gradients[i], hypers[i]
        assert hyper is not None
        sums = Stats()
        log_threshold = state.params.get("log_threshold")
        thresholds = None if log_threshold is None else log_threshold.exp()
        band = hyper.numbers.get("bandwidth", 0.0) / 2
        scratch = self._scratch.get()
        try:
            chunks = range(part * CHUNK, len(x), PARTS * CHUNK)
            for start in chunks:
                rows = x[start : start + CHUNK]
                rows_low = low[start : start + CHUNK] if low is not None else None
                l1, active = self._encode(i, part, rows, rows_low, thresholds, band, scratch)
                sums.l1 += l1
                sums.active += active
                sums.rows += len(rows)
                sums.squared_error += self.library.squared_error(
                    scratch.residual.data_ptr(), len(rows)
                )
                self.library.backward(
                    rows.data_ptr(), scratch.residual.data_ptr(), state.W_dec.data_ptr(),
                    scratch.rows.data_ptr(), scratch.codes.data_ptr(), scratch.starts.data_ptr(),
                    _pointer(thresholds), state.dict_size, 2 / (len(x) * self.d_in),
                    hyper.numbers["l1"] / len(x), hyper.numbers.get("l0", 0.0) / len(x), band,
                    gradients.enc[part].data_ptr(), gradients.dec[part].data_ptr(),
                    gradients.b[part].data_ptr(), gradients.threshold[part].data_ptr(),
                )  # fmt: skip
        finally:
            self._scratch.put(scratch)
        return sums

    def _encode(
        self,
        i: int,
        part: int,
        rows: Tensor,
        rows_low: Tensor | None,
        thresholds: Tensor | None,
        band: float,
        scratch: _Scratch,
    ) -> tuple[float, int]:
        """Codes and residual of one chunk into `scratch`; the sum of codes and their number."""
        state, n = self.states[i], len(rows)
        l1, active = ctypes.c_double(0.0), ctypes.c_int64(0)
        fired = self._gradients[i].fired[part]
        exact = rows_low is not None and self._W_bf16[i] is not None
        self.library.start_residual(rows.data_ptr(), n, scratch.residual.data_ptr())
        chosen = state.architecture.sae.activation in ("topk", "batch_topk")
        if chosen:
            everything = self._products(i, slice(0, state.dict_size), rows, rows_low, None)
            self._choose(i, part, everything, scratch)
        end = 0
        for first in range(0, state.dict_size, BLOCK):
            block = slice(first, min(first + BLOCK, state.dict_size))
            if chosen:
                products = everything[block]
            else:
                products = self._products(i, block, rows, rows_low, scratch)
            end = self.library.encode_block(
                rows.data_ptr(), products.data_ptr(),
                state.W_enc[block].data_ptr() if exact and not chosen else None,
                state.b[block].data_ptr(), state.W_dec[block].data_ptr(),
                _pointer(thresholds[block] if thresholds is not None else None), band,
                scratch.floor.data_ptr() if chosen else None,
                block.stop - first, n, end, scratch.residual.data_ptr(), scratch.rows.data_ptr(),
                scratch.codes.data_ptr(), scratch.starts[first:].data_ptr(),
                fired[block].data_ptr(), ctypes.addressof(l1), ctypes.addressof(active),
            )  # fmt: skip
        return l1.value, active.value

    def _products(
        self, i: int, block: slice, rows: Tensor, rows_low: Tensor | None, scratch: _Scratch | None
    ) -> Tensor:
        """The encoder's products (features of the block, rows), in `scratch` if it is given."""
        size, n = block.stop - block.start, len(rows)
        products = torch.empty(size, n) if scratch is None else scratch.products[: size * n]
        products = products.view(size, n)
        W_low = self._W_bf16[i]
        if W_low is None or rows_low is None:
            return torch.mm(self.states[i].W_enc[block], rows.T, out=products)
        if scratch is None:
            return products.copy_(torch.mm(W_low[block], rows_low.T))
        low = scratch.products_bf16[: size * n].view(size, n)
        return products.copy_(torch.mm(W_low[block], rows_low.T, out=low))

    def _choose(self, i: int, part: int, products: Tensor, scratch: _Scratch) -> None:
        """The smallest code that each row keeps, into `scratch.floor`."""
        state, (size, n) = self.states[i], products.shape
        if state.architecture.sae.activation == "topk":
            heaps = torch.empty(n * state.architecture.sae.k)
            self.library.row_floors(
                products.data_ptr(), state.b.data_ptr(), size, n, state.architecture.sae.k,
                heaps.data_ptr(), scratch.floor.data_ptr(),
            )  # fmt: skip
            return
        positive = (products + state.b[:, None]).relu_().flatten()
        keep = min(state.architecture.sae.k * n, positive.numel())
        smallest = float(positive.kthvalue(positive.numel() - keep + 1).values)
        scratch.floor[:n] = max(smallest, 1e-30)
        self._gradients[i].floors[part].append(smallest)

    def _optimise(self, i: int, x: Tensor, hypers: list[Hyper | None], seen: int) -> None:
        """Adam and renormalisation of one dictionary; its gradients become zero.

        With `project_gradient` the decoder's gradient first loses its part along each feature
        (Bricken et al. 2023, "Towards Monosemanticity", appendix on the autoencoder's training).
        """
        state, gradients, hyper = self.states[i], self._gradients[i], hypers[i]
        assert hyper is not None
        corrections = 1 - hyper.beta1**hyper.step, 1 - hyper.beta2**hyper.step
        adam = hyper.lr, hyper.beta1, hyper.beta2, hyper.eps, *corrections
        if state.architecture.sae.dead == "auxk":
            dead = state.inactive(seen)
            enc, dec, b = dead_features.auxiliary_gradients(state, x, dead, self.d_in)
            gradients.enc[0][dead] += enc
            gradients.dec[0][dead] += dec
            gradients.b[0][dead] += b
        m_enc = state.m.get("W_enc", state.m["W_dec"])
        v_enc = state.v.get("W_enc", state.v["W_dec"])
        self.library.optimise(
            state.dict_size, state.W_enc.data_ptr(), state.W_dec.data_ptr(), state.b.data_ptr(),
            gradients.enc.data_ptr(), gradients.dec.data_ptr(), gradients.b.data_ptr(),
            gradients.dec.stride(0), gradients.b.stride(0),
            m_enc.data_ptr(), v_enc.data_ptr(), state.m["W_dec"].data_ptr(),
            state.v["W_dec"].data_ptr(), state.m["b"].data_ptr(), state.v["b"].data_ptr(),
            state.architecture.sae.project_gradient, *adam,
        )  # fmt: skip
        if (log_threshold := state.params.get("log_threshold")) is not None:
            gradients.threshold *= log_threshold.exp()  # d/d log t = t d/dt
            self.library.optimise_vector(
                state.dict_size, log_threshold.data_ptr(), gradients.threshold.data_ptr(),
                state.m["log_threshold"].data_ptr(), state.v["log_threshold"].data_ptr(), *adam,
            )  # fmt: skip
        for floors in gradients.floors:
            state.follow_floors(floors)
            floors.clear()
        state.last_fired[gradients.fired.any(dim=0)] = seen
        gradients.fired.zero_()
        if (
            state.architecture.sae.dead == "resample"
            and hyper.step % state.architecture.sae.resample_every == 0
        ):
            dead_features.resample(state, x, state.inactive(seen), hyper.step)
        W_low = self._W_bf16[i]
        if W_low is not None:
            W_low.copy_(state.W_enc)


def _pointer(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()
