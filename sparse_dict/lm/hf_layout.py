"""Where a model of transformers has the places that the short names of sites mean: measured.

One forward pass of a few tokens shows what each module reads and gives. A name then means the
module for which what it promises is true: resid_pre + attn_out = resid_mid and resid_mid + mlp_out
= resid_post, or in parallel blocks resid_pre + attn_out + mlp_out = resid_post.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

CONTEXTS, LENGTH = 2, 7  # of the tokens that are read
VALUES = 2048  # of each tensor, about as many are compared
ATTENTION = "att"  # what the paths of attentions have in common


Part = tuple[str, float]  # a place, and what its value is multiplied by in a sum


@dataclass(frozen=True)
class Block:
    """One block of a model."""

    places: dict[str, str]  # of each short name it has: a module's path and ":in" or ":out"
    adds: bool  # whether it is known to leave the residual stream as it is, and to add to it
    # Path of the MLP's last matrix, and by what its output is multiplied before it is added to the
    # residual stream; None where it is not added as it is, or unknown.
    down: Part | None = None


@dataclass(frozen=True)
class Layout:
    """Where a model's places are."""

    path: str = ""  # of the list of its blocks; empty if there is no such list
    blocks: tuple[Block, ...] = ()
    # Path of the norm between the last block and the unembedding (empty if there is none) and the
    # factor of the logits; None if something else lies there.
    head: tuple[str, float] | None = None


@torch.inference_mode()
def measure(model: Any) -> Layout:
    """The layout of a causal language model of transformers; FloatingPointError if not finite."""
    seen, logits = _everything(model)
    if not logits.isfinite().all():
        raise FloatingPointError
    lists = [name for name, module in model.named_modules() if isinstance(module, nn.ModuleList)]
    path = max(lists, key=lambda name: _chained(seen, name), default="")
    if not (n := _chained(seen, path)):
        return Layout()
    blocks = tuple(_Search(model, seen, f"{path}.{i}").block() for i in range(n))
    outside = {k: v for k, v in seen.items() if not k.startswith(f"{path}.")}
    return Layout(path, blocks, _head(model, outside, seen[f"{path}.{n - 1}:out"], logits))


def read_by(args: Any, kwargs: Mapping[str, Any]) -> Any:
    """The first of what a module is given."""
    return args[0] if args else next(iter(kwargs.values()), None)


def given_by(output: Any) -> Any:
    """The first of what a module gives."""
    return output[0] if isinstance(output, (tuple, list)) and output else output


def by_token(value: Any, tokens: Tensor) -> Tensor | None:
    """A view of `value` (contexts, length, d) if it is that, or a row for each of all `tokens`."""
    if isinstance(value, Tensor) and (value.ndim, value.shape[:2]) == (3, tokens.shape):
        return value
    if isinstance(value, Tensor) and value.ndim == 2 and len(value) == tokens.numel():
        return value.view(*tokens.shape, -1)
    return None


def adds_up(whole: Tensor, *parts: Tensor, dtype: torch.dtype) -> Tensor:
    """Whether `whole` (..., n) is the sum of `parts`, but for the rounding of each in `dtype`."""
    info = torch.finfo(dtype)
    exact = torch.stack(torch.broadcast_tensors(*parts)).double()
    bound = 2 * info.eps * (exact.abs().sum(0) + info.smallest_normal)
    return ((exact.sum(0) - whole).abs() <= bound).all(-1)


def sample(value: Tensor) -> Tensor:
    """Some values of (CONTEXTS, LENGTH, d), float64 (n,) on the CPU: not every GPU has float64.

    The first position is left out: its activations can be so large that no others count.
    """
    step = max(1, value.shape[-1] * CONTEXTS * (LENGTH - 1) // VALUES)
    return value[:, 1:, ::step].cpu().double().flatten()


def _everything(model: Any) -> tuple[dict[str, Tensor], Tensor]:
    """What each module reads and gives (CONTEXTS, LENGTH, d), in order, and the logits.

    Modules that run several times are left out.
    """
    device = next(model.parameters()).device  # tokens that every vocabulary has
    tokens = torch.arange(3, 3 + CONTEXTS * LENGTH, device=device).view(CONTEXTS, LENGTH)
    seen: dict[str, Tensor] = {}
    times: Counter[str] = Counter()

    def keep(place: str, value: Any) -> None:
        times[place] += 1
        if (rows := by_token(value, tokens)) is not None:
            seen[place] = rows.clone()  # since later modules may write into it

    def before(name: str) -> Callable[..., None]:
        return lambda _, args, kwargs: keep(f"{name}:in", read_by(args, kwargs))

    def after(name: str) -> Callable[..., None]:
        return lambda _, __, output: keep(f"{name}:out", given_by(output))

    with ExitStack() as hooks:
        for name, module in model.named_modules():
            handle = module.register_forward_pre_hook(before(name), with_kwargs=True)
            hooks.callback(handle.remove)
            hooks.callback(module.register_forward_hook(after(name)).remove)
        mask = torch.ones_like(tokens)
        logits = model(input_ids=tokens, attention_mask=mask, use_cache=False).logits
    return {place: value for place, value in seen.items() if times[place] == 1}, logits


def _chained(seen: Mapping[str, Tensor], path: str) -> int:
    """How many modules of a list there are, if each reads what the one before gives; or 0."""
    n = 0
    while f"{path}.{n}:in" in seen and f"{path}.{n}:out" in seen:
        if n and not torch.equal(seen[f"{path}.{n - 1}:out"], seen[f"{path}.{n}:in"]):
            return 0
        n += 1
    return n


def _head(
    model: Any, outside: Mapping[str, Tensor], last: Tensor, logits: Tensor
) -> tuple[str, float] | None:
    """What `Layout.head` says; `outside` is what modules outside the blocks read and give."""
    unembedding = model.get_output_embeddings()
    name = next((name for name, module in model.named_modules() if module is unembedding), None)
    if unembedding is None or f"{name}:out" not in outside:
        return None
    read, given = outside[f"{name}:in"], outside[f"{name}:out"]
    between = {"": last} | {
        place.removesuffix(":in"): outside[place.removesuffix("in") + "out"]
        for place, value in outside.items()
        if place.endswith(":in") and place.removesuffix("in") + "out" in outside
        if torch.equal(value, last)
    }
    factor = _factor(given, logits)
    if factor is None:  # a cap on the logits keeps their order
        order = given.argsort(-1)
        factor = 1.0 if (logits.gather(-1, order).diff() >= 0).all() else None
    for norm, value in between.items():
        if norm != name and factor and (scale := _factor(value, read)):
            return norm, factor * scale
    return None


def _factor(value: Tensor, multiple: Tensor) -> float | None:
    if value.shape != multiple.shape:
        return None
    whole = sample(multiple)
    found = _multiples(torch.zeros_like(whole), sample(value)[None], whole, multiple.dtype)
    return next((factor for _, factor in found), None)


def _multiples(
    base: Tensor, values: Tensor, whole: Tensor, dtype: torch.dtype
) -> Iterator[tuple[int, float]]:
    """Which rows of `values` (n, d), times a number, `base` needs to be `whole`; and the number."""
    rest = whole - base
    factors = (values @ rest) / values.square().sum(-1).clamp(min=torch.finfo(values.dtype).tiny)
    plain = adds_up(whole, base, values, dtype=dtype)
    scaled = adds_up(whole, base, factors[:, None] * values, dtype=dtype)
    for i in torch.nonzero(plain | scaled).flatten().tolist():
        if factor := 1.0 if plain[i] else float(factors[i]):
            yield i, factor


class _Search:
    """The search for the places of one block, of which `seen` are what all modules read and give.

    A place is taken by the shortest path, of equally short ones the first to run.
    """

    def __init__(self, model: nn.Module, seen: Mapping[str, Tensor], path: str) -> None:
        self.path = path
        self.ends = {"resid_pre": f"{path}:in", "resid_post": f"{path}:out"}
        post = seen[f"{path}:out"]
        self.dtype = post.dtype
        self.inner = {k: v for k, v in seen.items() if k.startswith(f"{path}.")}  # in their order
        self.modules = dict(model.get_submodule(path).named_modules(prefix=path))
        self.wide = [place for place, value in self.inner.items() if value.shape == post.shape]
        self.pre, self.post = (sample(seen[place]) for place in self.ends.values())
        values = [sample(self.inner[place]) for place in self.wide]
        self.values = torch.stack(values) if values else self.post.new_empty((0, len(self.post)))

    def block(self) -> Block:
        places, mid = dict(self.ends), ""
        attention: Part | None = None
        mlp: Part | None = None
        if one_by_one := self._one_after_the_other():
            mid, attention, mlp = one_by_one
            if adds := attention is not None:
                places["resid_mid"] = mid
        elif parallel := self._side_by_side():
            (attention, mlp), adds = parallel, True
        else:
            adds = self._part(self.pre, self.post) is not None
        # what is multiplied before it is added is given by no module, and not all have an attention
        if attention and attention[1] == 1 and any(map(self._attends, self._until(attention[0]))):
            places["attn_out"] = attention[0]
        if mlp and mlp[1] == 1:
            places["mlp_out"] = mlp[0]
        down = self._last_matrix(mid, mlp, known=mlp is not None or adds)
        if down is None:
            return Block(places, adds)
        places["mlp_post"] = f"{down}:in"
        if bend := self._before_the_bend(down):
            places["mlp_pre"] = bend
        as_it_is = mlp and torch.equal(self._value(f"{down}:out"), self._value(mlp[0]))
        return Block(places, adds, (down, mlp[1]) if mlp and as_it_is else None)

    def _one_after_the_other(self) -> tuple[str, Part | None, Part] | None:
        found = []
        for i, place in enumerate(self.wide):
            mid = self.values[i]
            if place.endswith(":out") or torch.equal(mid, self.pre) or torch.equal(mid, self.post):
                continue
            if added := self._part(mid, self.post, slice(i + 1, None)):
                first = self._part(self.pre, mid, slice(0, i))
                found.append((first is None, place.count("."), i, (place, first, added)))
        return min(found)[-1] if found else None

    def _side_by_side(self) -> tuple[Part, Part] | None:
        found = []
        for i, place in enumerate(self.wide):
            if not self._attends(place):
                continue
            fit = adds_up(self.post, self.pre, self.values[i], self.values, dtype=self.dtype)
            for j in torch.nonzero(fit).flatten().tolist():
                other = self.wide[j]
                if not self._attends(other):
                    found.append((place.count(".") + other.count("."), i, j))
        if not found:
            return None
        _, i, j = min(found)
        return (self.wide[i], 1.0), (self.wide[j], 1.0)

    def _part(self, base: Tensor, whole: Tensor, among: slice = slice(None)) -> Part | None:
        wide = self.wide[among]
        found = [
            (factor != 1, wide[i].count("."), i, factor)
            for i, factor in _multiples(base, self.values[among], whole, self.dtype)
        ]
        if not found:
            return None
        *_, i, factor = min(found)
        return wide[i], factor

    def _last_matrix(self, mid: str, mlp: Part | None, known: bool) -> str | None:
        """The path of the last matrix of the MLP, if the MLP gives what that matrix gives.

        `mid` lies before the MLP, `mlp` is what it adds, as far as they are known, or `known` what
        all adds.
        """
        before = self._until(mid) if mid else []
        if not mlp:
            attention = [place for place in self.inner if self._attends(place)]
            if known or not attention:
                return None
            before = self._until(attention[-1])
        for place in reversed([place for place in self.wide if place not in before]):
            path = place.removesuffix(":out")
            weight = getattr(self.modules.get(path), "weight", None)
            if weight is None or weight.ndim != 2 or self._attends(path):
                continue
            if f"{path}:in" not in self.inner:
                continue
            whole = f"{self.path}.{self._within(path).split('.')[0]}:out"
            ends = [whole] if whole in self.wide else []
            ends += [mlp[0]] if mlp else []
            given = self._value(place)
            return path if any(torch.equal(given, self._value(end)) for end in ends) else None
        return None

    def _before_the_bend(self, down: str) -> str | None:
        """What the MLP's non-linearity reads, if each value decides the one of the same column.

        `down` then reads what it gives, or that times another value, as of half of what one matrix
        gives.
        """
        post = self.inner[f"{down}:in"]
        earlier = {place: self.inner[place] for place in self._until(f"{down}:in")}
        same = [place for place, value in earlier.items() if value.shape == post.shape]
        k = post.shape[-1]
        others = [torch.ones_like(post), *(earlier[place] for place in same)]
        for value in earlier.values():
            if value.shape[-1] == 2 * k:
                others += [value[..., :k], value[..., k:], value[..., ::2], value[..., 1::2]]
        for place in same:
            path = place.removesuffix(":out")
            read = earlier.get(f"{path}:in")
            if read is None or read.shape != post.shape or torch.equal(read, earlier[place]):
                continue
            if any(True for _ in self.modules[path].parameters()):
                continue
            products = (sample(earlier[place]) * sample(other) for other in others)
            if any(adds_up(sample(post), product, dtype=self.dtype) for product in products):
                return next(p for p in same if torch.equal(earlier[p], read))
        return None

    def _value(self, place: str) -> Tensor:
        return self.values[self.wide.index(place)]

    def _until(self, place: str) -> list[str]:
        places = list(self.inner)
        return places[: places.index(place) + 1]

    def _attends(self, place: str) -> bool:
        return ATTENTION in self._within(place)

    def _within(self, place: str) -> str:
        return place.removeprefix(f"{self.path}.")
