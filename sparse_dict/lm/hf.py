"""Causal language models of Hugging Face's transformers, read and changed by forward hooks.

The forward pass is left as soon as the last site is known. What a short name means in a model is
measured (`hf_layout.py`); any module's input or output can be named by its path. Where a model is
read with a token that begins a text, each context begins with it; it has no row.
"""

import copy
import difflib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import cached_property, partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from sparse_dict.config.sites import SITES, Site
from sparse_dict.errors import UserError
from sparse_dict.lm import hf_layout
from sparse_dict.lm.hf_layout import Layout, by_token, given_by, read_by
from sparse_dict.lm.interface import Follow, Seen, without_division

# What is computed at a place to what the model goes on with; None: with the same.
Change = Callable[[Tensor], Tensor | None]

LOGITS = 1 << 26  # computed at a time: 256 MiB of float32


class Model:
    """A model in evaluation mode, read and changed by hooks; contexts begin with `start`."""

    reentrant = False  # a hook does not know whose forward pass it is called in

    def __init__(self, model: Any, start: Sequence[int] = ()) -> None:
        self.model = model
        self.start = tuple(start)
        self._resumes: bool | None = None  # whether blocks can be passed by; not tried yet

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @property
    def remedy(self) -> str:
        if self.model.dtype == torch.float16:
            return "float16 ends at 65,504: set lm.dtype=bfloat16"
        if self.model.dtype == torch.bfloat16:
            return "set lm.dtype=float32"
        return "its weights are damaged"

    @cached_property
    def layout(self) -> Layout:
        """Where the places are that short names mean; from one forward pass of a few tokens."""
        try:
            return hf_layout.measure(self.model)
        except FloatingPointError:
            raise UserError(f"the language model's values are not finite: {self.remedy}") from None

    def read(self, tokens: Tensor, sites: Sequence[Site]) -> list[Tensor]:
        """What each of `sites` computes, float32 (batch, n_ctx, d); stops behind the last."""
        return [value[:, len(self.start) :] for value in self._read(tokens, sites)]

    def split(
        self, tokens: Tensor, targets: Tensor, sites: Sequence[Site]
    ) -> tuple[list[Tensor], Follow]:
        sites = [self.short_name(site) for site in sites]
        layers = [-1 if site.layer is None else site.layer for site in sites]
        first = max(0, min(layers, default=0)) if self._resumes is not False else 0
        before = self._blocks()[:first] if first else []
        start = Site("resid_pre", first)
        asked = [*sites, start] if before and start not in sites else sites
        outputs: list[Any] = []  # what each of `before` hands on
        with ExitStack() as hooks:
            for block in before:
                hook = block.register_forward_hook(lambda *a: outputs.append(a[2]))
                hooks.callback(hook.remove)
            found = self._read(tokens, asked)
        step = max(1, LOGITS // (tokens.shape[1] * self.model.config.get_text_config().vocab_size))
        skip = len(self.start)

        def follow(
            values: Sequence[Tensor], of: Tensor | None = None, contexts: Tensor | None = None
        ) -> Tensor:
            which, losses = torch.arange(len(tokens)) if contexts is None else contexts, []
            with _passed_by(before, outputs):
                for i in range(0, len(which), step):
                    part, some = slice(i, i + step), which[i : i + step]
                    given = [*(v[part] for v in values), *(v[some] for v in found[len(sites) :])]
                    instead = [
                        (self.place(site), partial(_instead, value))
                        for site, value in zip(asked, given, strict=True)
                    ]
                    logits = self._run(tokens[some], instead).logits[:, skip:]
                    wanted = targets[some]  # (contexts, n_ctx)
                    flat = logits.float().flatten(0, 1)
                    each = F.cross_entropy(flat, wanted.flatten(), reduction="none")
                    losses.append(each.view(wanted.shape))
            whole = torch.cat(losses)
            return whole if of is None else whole[of]

        if before and self._resumes is None:
            whole = F.cross_entropy(self._run(tokens[:1], []).logits[0, skip:].float(), targets[0])
            near = max(1e-4, torch.finfo(self.model.dtype).eps)
            with suppress(Exception):  # what later blocks ask of earlier ones fails in many ways
                first_read = [value[:1] for value in found[: len(sites)]]
                loss = follow(first_read, contexts=torch.arange(1)).mean()
                self._resumes = bool(torch.isclose(loss, whole, rtol=near))
            if not self._resumes:
                self._resumes = False
                return self.split(tokens, targets, sites)
        return [value[:, skip:] for value in found[: len(sites)]], follow

    def direct(self, site: Site, rows: Tensor) -> Tensor:
        short, kind, layout = self.short_name(site), type(self.model).__name__, self.layout
        if short.layer is None:
            raise UserError(f"how {site} adds to the residual stream is not known")
        self.place(short)
        if short.name == "mlp_pre":
            raise UserError(f"a non-linearity follows {site}")
        behind = layout.blocks[short.layer + (short.name == "resid_post") :]
        if not all(block.adds for block in behind):
            raise UserError(f"the blocks of {kind} do not only add to the residual stream")
        if layout.head is None:
            raise UserError(f"{kind} has more than a norm between its blocks and its logits")
        if short.name == "mlp_post":
            if (down := layout.blocks[short.layer].down) is None:
                raise UserError(f"{kind} changes what the MLP of {site} gives before it adds it")
            matrix = copy.deepcopy(self.model.get_submodule(down[0])).to(rows.dtype)
            rows = down[1] * (matrix(rows) - matrix(torch.zeros_like(rows)))  # less the bias
        norm, factor = layout.head
        if norm:
            rows = without_division(self.model.get_submodule(norm), rows)
        unembedding: Tensor = self.model.get_output_embeddings().weight
        return factor * rows @ unembedding.to(rows.dtype).T

    def short_name(self, site: Site) -> Site:
        """The short name that means the place that `site` names by a path; or else `site`."""
        if site.layer is not None:
            return site
        place = site.name if ":" in site.name else f"{site.name}:out"
        for layer, block in enumerate(self.layout.blocks):
            for name, known in block.places.items():
                if known == place:
                    return Site(name, layer)
        return site

    def place(self, site: Site) -> str:
        """The path of the module that `site` means, and ":in" or ":out"."""
        if site.layer is None:
            return site.name if ":" in site.name else f"{site.name}:out"
        kind, layout = type(self.model).__name__, self.layout
        if site.layer >= len(layout.blocks):
            has = f"layers 0 to {len(layout.blocks) - 1}" if layout.blocks else "no list of blocks"
            example = _example(name for name, _ in self.model.named_modules())
            raise UserError(
                f"harvest: {site} does not exist: {kind} has {has}; give a module's path, such as "
                f"{example}"
            )
        block = layout.blocks[site.layer]
        if site.name in block.places:
            return block.places[site.name]
        why = "no module gives what the name says"
        if site.name == "resid_mid" and {"attn_out", "mlp_out"} <= block.places.keys():
            why = "attention and MLP are parallel"
        has = ", ".join(name for name in SITES if name in block.places)
        raise UserError(
            f"harvest: {site} does not exist in {kind}: {why}; layer {site.layer} has {has}, or "
            f"give a module's path, such as {block.places['resid_post'].removesuffix(':out')}"
        )

    def _blocks(self) -> list[nn.Module]:
        path = self.layout.path
        return [*self.model.get_submodule(path).children()] if path else []

    def _read(self, tokens: Tensor, sites: Sequence[Site]) -> list[Tensor]:
        found: dict[Site, Tensor] = {}

        def keep(site: Site, value: Tensor) -> None:
            # A copy, since later modules may write into it.
            found.setdefault(site, value.to(torch.float32, copy=True))
            if len(found) == len({*sites}):
                raise Seen

        with suppress(Seen):
            self._run(tokens, [(self.place(site), partial(keep, site)) for site in sites])
        if missing := [site for site in sites if site not in found]:
            raise UserError(f"harvest: a forward pass does not reach {missing[0]}")
        return [found[site] for site in sites]

    def _run(self, tokens: Tensor, at: Sequence[tuple[str, Change]]) -> Any:
        """A forward pass of contexts with `start` before them.

        What `at` returns for a place, unless None, is what the model goes on with.
        """
        if self.start:
            start = torch.tensor(self.start, device=tokens.device).expand(len(tokens), -1)
            tokens = torch.cat([start, tokens], 1)
        with ExitStack() as hooks:
            for place, change in at:
                hooks.callback(self._hook(place, tokens, change).remove)
            # Every token counts: without this, one that is also the padding is warned about.
            mask = torch.ones_like(tokens)
            return self.model(input_ids=tokens, attention_mask=mask, use_cache=False)

    def _hook(self, place: str, tokens: Tensor, change: Change) -> RemovableHandle:
        path, _, end = place.partition(":")
        module = self._module(path)

        def changed(value: Any) -> Tensor | None:
            if (rows := by_token(value, tokens)) is None:
                what = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
                raise UserError(f"harvest: {place} is {what}, not one row for each token")
            new = change(rows)
            if new is None or place not in self._between:
                return None if new is None else new.view_as(value)
            # What the norm reads goes on beside it as well: the one tensor is changed for both.
            rows.copy_(new)
            return None

        def before(_: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
            new = changed(read_by(args, kwargs))
            if new is None:
                return None
            return (
                ((new, *args[1:]), kwargs) if args else (args, kwargs | {next(iter(kwargs)): new})
            )

        def after(_: nn.Module, _args: Any, output: Any) -> Any:
            new = changed(given_by(output))
            return None if new is None else _with_first(output, new)

        if end == "in":
            return module.register_forward_pre_hook(before, with_kwargs=True)
        return module.register_forward_hook(after)

    @cached_property
    def _between(self) -> set[str]:
        return {block.places.get("resid_mid", "") for block in self.layout.blocks}

    def _module(self, path: str) -> nn.Module:
        modules = dict(self.model.named_modules())
        if path in modules:
            return modules[path]
        near = difflib.get_close_matches(path, modules, n=1)
        meant = f"did you mean {near[0]}?" if near else f"there is {_example(modules)}"
        raise UserError(f"harvest: {type(self.model).__name__} has no module {path}; {meant}")


def _instead(new: Tensor, value: Tensor) -> Tensor:
    return torch.cat([value[:, : value.shape[1] - new.shape[1]], new.to(value.dtype)], 1)


def _with_first(output: Any, new: Any) -> Any:
    several = isinstance(output, (tuple, list)) and output
    return type(output)((new, *output[1:])) if several else new


@contextmanager
def _passed_by(blocks: Sequence[nn.Module], outputs: Sequence[Any]) -> Iterator[None]:
    """Let `blocks` hand on what they read, in the form of `outputs`, which they gave before."""

    def forward(output: Any, *args: Any, **kwargs: Any) -> Any:
        return _with_first(output, read_by(args, kwargs))

    for block, output in zip(blocks, outputs, strict=True):
        block.forward = partial(forward, output)
    try:
        yield
    finally:
        for block in blocks:
            del block.forward  # which uncovers the class's own


def _example(names: Iterable[str]) -> str:
    return max(sorted(names), key=lambda name: name.count("."))
