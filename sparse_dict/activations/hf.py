"""Causal language models of Hugging Face's transformers, read and changed by forward hooks.

The forward pass is left as soon as the last site is known. By short name they are known for models
built like GPT-2, GPT-NeoX (Pythia) and Llama (Mistral, Qwen); any module's input or output can be
named by its path. Text is packed into whole contexts, so there is no padding on either side, and no
token of it that a hook could read.
"""

import difflib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from sparse_dict.config.sites import SITES, Site
from sparse_dict.errors import UserError
from sparse_dict.lm.interface import Follow, Seen

# Where each family keeps its blocks; its final norm; and within a block the modules of which a
# short name means the input or the output: attn_out, resid_mid, mlp_pre, mlp_post and mlp_out (of a
# gated MLP, mlp_pre is the gate before the non-linearity, and mlp_post what it lets through).
# resid_pre and resid_post are the block's own.
FAMILIES = {
    "transformer.h": (
        "transformer.ln_f", "attn:out", "ln_2:in", "mlp.c_fc:out", "mlp.c_proj:in", "mlp:out",
    ),
    "gpt_neox.layers": (
        "gpt_neox.final_layer_norm", "attention:out", "post_attention_layernorm:in",
        "mlp.dense_h_to_4h:out", "mlp.dense_4h_to_h:in", "mlp:out",
    ),
    "model.layers": (
        "model.norm", "self_attn:out", "post_attention_layernorm:in", "mlp.gate_proj:out",
        "mlp.down_proj:in", "mlp:out",
    ),
}  # fmt: skip
# Norms of what a sublayer adds (Gemma 2, OLMo 2): there the table's attn_out, mlp_out and resid_mid
# are something else.
POST_NORMS = ("pre_feedforward_layernorm", "post_feedforward_layernorm")
WRITTEN = {
    "attn_out": ("attention", "post_attention_layernorm"),
    "mlp_out": ("MLP", "post_feedforward_layernorm"),
}


LOGITS = 1 << 26  # computed at a time: 256 MiB of float32


class Model:
    """A model in evaluation mode, read and changed by hooks."""

    def __init__(self, model: Any) -> None:
        self.model = model

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.model.parameters()).device

    @property
    def reentrant(self) -> bool:
        """No: a hook does not know whose forward pass it is called in."""
        return False

    @property
    def n_layers(self) -> int:
        """How many layers its config speaks of, 0 if it does not say."""
        return n_layers(self.model.config)

    @property
    def final_norm(self) -> nn.Module:
        """The norm between the residual stream and the unembedding, of the families alone."""
        family = _family(self.model)
        assert family is not None
        return self.model.get_submodule(FAMILIES[family][0])

    @property
    def unembedding(self) -> Tensor:
        """A row for each id of the vocabulary, (n_vocab, d_model)."""
        weight: Tensor = self.model.get_output_embeddings().weight
        return weight

    def read(self, tokens: Tensor, sites: Sequence[Site]) -> list[Tensor]:
        """What each of `sites` computes, float32 (batch, n_ctx, d); stops behind the last.

        Raises:
            UserError: the model has no such site, or what is there is no row for each token.
        """
        found: dict[Site, Tensor] = {}

        def keep(site: Site, value: Tensor) -> None:
            # A copy, since later modules may write into it.
            found.setdefault(site, value.to(torch.float32, copy=True))
            if len(found) == len({*sites}):
                raise Seen

        with suppress(Seen):
            self._run(tokens, {site: partial(keep, site) for site in sites})
        if missing := [site for site in sites if site not in found]:
            raise UserError(f"harvest: a forward pass does not reach {missing[0]}")
        return [found[site] for site in sites]

    def split(
        self, tokens: Tensor, targets: Tensor, sites: Sequence[Site]
    ) -> tuple[list[Tensor], Follow]:
        """What `sites` compute, and what leads from other values there to the loss.

        The second part takes as many contexts at a time as LOGITS allow. Blocks before the first
        site are not run again, unless a site has no short name.
        """
        sites = [short_name(self.model, site) for site in sites]
        layers = [-1 if site.layer is None else site.layer for site in sites]
        first = max(0, min(layers))
        before = self._blocks()[:first]
        start = Site("resid_pre", first)
        asked = [*sites, start] if before and start not in sites else sites
        forms: list[bool] = []  # whether a block hands on a tuple, which differs by version
        for block in before[:1]:
            handle = block.register_forward_hook(lambda *a: forms.append(isinstance(a[2], tuple)))
        found = self.read(tokens, asked)
        if before:
            handle.remove()
        step = max(1, LOGITS // (tokens.shape[1] * len(self.unembedding)))

        def follow(values: Sequence[Tensor]) -> Tensor:
            given = [*values, *found[len(sites) :]]
            losses = []
            with _passed_by(before, forms == [True]):
                for i in range(0, len(tokens), step):
                    instead = {
                        site: partial(_instead, value[i : i + step])
                        for site, value in zip(asked, given, strict=True)
                    }
                    logits = self._run(tokens[i : i + step], instead).logits
                    wanted = targets[i : i + step]  # (contexts, n_ctx)
                    flat = logits.float().flatten(0, 1)
                    each = F.cross_entropy(flat, wanted.flatten(), reduction="none")
                    losses.append(each.view(wanted.shape).mean(1))
            return torch.cat(losses)

        return found[: len(sites)], follow

    def written(self, site: Site, rows: Tensor) -> Tensor | None:
        """What activations `rows` (n, d) add to the residual stream, or None; see `interface`."""
        site = short_name(self.model, site)
        if site.layer is None or site.name == "mlp_pre":
            return None
        if site.name != "mlp_post":
            return rows
        if any(hasattr(self._blocks()[site.layer], name) for name in POST_NORMS):
            return None
        down, _ = locate(self.model, site)
        rows = rows.to(self.unembedding.dtype)
        written: Tensor = down(rows) - down(torch.zeros_like(rows))  # less the bias
        return written.float()

    def _blocks(self) -> list[nn.Module]:
        """The blocks of a model of one of the families; of another, none."""
        family = _family(self.model)
        return [] if family is None else [*self.model.get_submodule(family).children()]

    def _run(self, tokens: Tensor, at: Mapping[Site, Callable[[Tensor], Tensor | None]]) -> Any:
        """A forward pass; what `at` returns for a site, unless None, is what it goes on with."""
        with ExitStack() as hooks:
            for site, change in at.items():
                hooks.callback(self._hook(site, tokens, change).remove)
            # Every token counts: without this, one that is also the padding is warned about.
            mask = torch.ones_like(tokens)
            return self.model(input_ids=tokens, attention_mask=mask, use_cache=False)

    def _hook(
        self, site: Site, tokens: Tensor, change: Callable[[Tensor], Tensor | None]
    ) -> RemovableHandle:
        module, is_input = locate(self.model, site)

        def changed(value: Any) -> Tensor | None:
            if not isinstance(value, Tensor) or value.shape[:2] != tokens.shape or value.ndim != 3:
                what = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
                raise UserError(f"harvest: {site} is {what}, not one row for each token")
            new = change(value)
            if new is None or site.name != "resid_mid":
                return new
            # What the norm reads goes on beside it as well: the one tensor is changed for both.
            value.copy_(new)
            return None

        def before(_: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
            name = next(iter(kwargs), "")
            new = changed(args[0] if args else kwargs.get(name))
            if new is None:
                return None
            return ((new, *args[1:]), kwargs) if args else (args, {**kwargs, name: new})

        def after(_: nn.Module, _args: Any, output: Any) -> Any:
            several = isinstance(output, tuple) and output
            new = changed(output[0] if several else output)
            return (new, *output[1:]) if several and new is not None else new

        if is_input:
            return module.register_forward_pre_hook(before, with_kwargs=True)
        return module.register_forward_hook(after)


def _instead(new: Tensor, value: Tensor) -> Tensor:
    return new.to(value.dtype)


@contextmanager
def _passed_by(blocks: Sequence[nn.Module], in_tuple: bool) -> Iterator[None]:
    """Let `blocks` hand on what they read, as it is or in a tuple."""

    def forward(x: Tensor, *_: Any, **__: Any) -> Any:
        return (x,) if in_tuple else x

    for block in blocks:
        block.forward = forward
    try:
        yield
    finally:
        for block in blocks:
            del block.forward  # which uncovers the class's own


def locate(model: nn.Module, site: Site) -> tuple[nn.Module, bool]:
    """The module that `site` means, and whether its input is meant rather than its output.

    Raises:
        UserError: there is none, or the short name has no meaning in this architecture.
    """
    if site.layer is None:
        path, _, end = site.name.partition(":")
        return _module(model, path, site), end == "in"
    names, family = {name for name, _ in model.named_modules()}, _family(model)
    if family is None or f"{family}.{site.layer}" not in names:
        raise UserError(
            f"harvest: {site}: short names are for models built like GPT-2, GPT-NeoX or Llama; "
            f"give the path of a module of {type(model).__name__}, such as {_example(names)}"
        )
    block = model.get_submodule(f"{family}.{site.layer}")
    parallel = getattr(block, "use_parallel_residual", False)
    normed = any(hasattr(block, name) for name in POST_NORMS)
    if site.name == "resid_mid" and (parallel or normed):
        why = "attention and MLP are parallel" if parallel else "the norms lie elsewhere"
        raise UserError(f"harvest: {site} does not exist in this {type(model).__name__}: {why}")
    if site.name in WRITTEN and normed:
        part, norm = WRITTEN[site.name]
        raise UserError(
            f"harvest: {site}: this {type(model).__name__} normalises what the {part} adds; "
            f"give a module's path, such as {family}.{site.layer}.{norm}"
        )
    path, _, end = _places(family)[site.name].partition(":")
    return _module(model, f"{family}.{site.layer}.{path}".rstrip("."), site), end == "in"


def short_name(model: nn.Module, site: Site) -> Site:
    """The short name that means the place that `site` names by a path; `site` if there is none."""
    path, _, end = site.name.partition(":")
    for family in FAMILIES:
        if match := re.fullmatch(rf"{re.escape(family)}\.(\d+)\.?(.*)", path):
            for name, place in _places(family).items():
                with suppress(UserError):
                    short = Site(name, int(match[1]))
                    if place == f"{match[2]}:{end or 'out'}" and locate(model, short):
                        return short
    return site


def _family(model: nn.Module) -> str | None:
    names = {name for name, _ in model.named_modules()}
    return next((name for name in FAMILIES if f"{name}.0" in names), None)


def _places(family: str) -> dict[str, str]:
    """What each short name means within a block: a module's path and its input or output."""
    _, *inner = FAMILIES[family]
    return dict(zip(SITES, (":in", *inner, ":out"), strict=True))


def _module(model: nn.Module, path: str, site: Site) -> nn.Module:
    modules = dict(model.named_modules())
    if path in modules:
        return modules[path]
    near = difflib.get_close_matches(path, modules, n=1)
    meant = f"did you mean {near[0]}?" if near else f"there is {_example(set(modules))}"
    raise UserError(f"harvest: {site}: {type(model).__name__} has no module {path}; {meant}")


def _example(names: set[str]) -> str:
    return max(sorted(names), key=lambda name: name.count("."))


def n_layers(config: Any) -> int:
    """How many layers a model's config speaks of, 0 if it does not say."""
    return getattr(config.get_text_config(), "num_hidden_layers", None) or 0
