"""Causal language models of Hugging Face's transformers: their sites, text and identity.

Sites are read by forward hooks, and the forward pass is left as soon as the last one is known. By
short name they are known for models built like GPT-2, GPT-NeoX (Pythia) and Llama (Mistral, Qwen);
any module's input or output can be named by its path. Text is packed into whole contexts, so there
is no padding on either side, and no token of it that a hook could read.
"""

import difflib
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from huggingface_hub import constants, hf_hub_download
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from sparse_dict.config import HFModel
from sparse_dict.config.sites import SITES, Site
from sparse_dict.errors import MALFORMED, UserError, one_line
from sparse_dict.lm.interface import Follow, OpenLM, Seen
from sparse_dict.machine.ahead import aside
from sparse_dict.machine.network import reachable
from sparse_dict.storage import files
from sparse_dict.text.bpe import bytes_by_character

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


BYTES = bytes_by_character()  # of tokenizers that show each byte as a character
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
        return _n_layers(self.model.config)

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
            total = torch.zeros((), device=tokens.device)
            with _passed_by(before, forms == [True]):
                for i in range(0, len(tokens), step):
                    instead = {
                        site: partial(_instead, value[i : i + step])
                        for site, value in zip(asked, given, strict=True)
                    }
                    logits = self._run(tokens[i : i + step], instead).logits
                    wanted = targets[i : i + step].flatten()
                    total += F.cross_entropy(logits.float().flatten(0, 1), wanted, reduction="sum")
            return total / targets.numel()

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


class Tokenizer:
    """A model's own fast tokenizer, as `text.tokens.prepare` wants it.

    Nothing is added to a text: no beginning of sequence, no truncation, no padding. The name of a
    special token in a text is ordinary text.

    Attributes:
        n_vocab: ids in all.
        eot: id of the end of sequence, which follows each document.
        dtype: smallest of uint16 and uint32 that holds every id.
        fingerprint: identifies the vocabulary and how text is split.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._backend = tokenizer.backend_tokenizer
        self._backend.no_padding()
        self._backend.no_truncation()
        self._backend.encode_special_tokens = True
        self.eot = int(tokenizer.eos_token_id)
        self.n_vocab = max([self.eot, *tokenizer.get_vocab().values()]) + 1
        self.dtype = np.dtype(np.uint16 if self.n_vocab <= 2**16 else np.uint32)
        described: str = self._backend.to_str()
        self.fingerprint = files.fingerprint([described, self.eot])
        self._special = {*self._backend.get_added_tokens_decoder()}
        # Each byte is written as a character; or else spaces as low lines, and bytes as <0x0A>.
        self._by_byte = '"ByteLevel"' in json.dumps(json.loads(described)["decoder"])

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Ids of each text, `dtype` (n,), without end of sequence; on all cores."""
        encoded = self._backend.encode_batch_fast(list(texts), add_special_tokens=False)
        return [np.array(item.ids, self.dtype) for item in encoded]

    def token_bytes(self, token: int) -> bytes:
        """The bytes that `token` stands for; of a special one, its name."""
        text: str = self._backend.id_to_token(token) or f"[{token}]"  # ids may have gaps
        if token in self._special:
            return text.encode()
        if self._by_byte:
            return b"".join(bytes([BYTES[c]]) if c in BYTES else c.encode() for c in text)
        byte = re.fullmatch(r"<0x([0-9A-F]{2})>", text)
        return bytes([int(byte[1], 16)]) if byte else text.replace("\u2581", " ").encode()


def check(lm: HFModel, sites: Sequence[Site]) -> None:
    """Test by the model's ``config.json`` alone whether it is there and is large enough.

    Raises:
        UserError: it is not, it has no such layer, or takes no contexts of `lm.n_ctx`.
    """
    config = _config(lm).get_text_config()
    n_layers = _n_layers(config)
    for site in sites:
        if n_layers and site.layer is not None and site.layer >= n_layers:
            raise UserError(
                f"harvest: {site} does not exist: {lm.name_or_path} has layers 0 to {n_layers - 1}"
            )
    longest = getattr(config, "max_position_embeddings", None)
    if longest and lm.n_ctx > longest:
        raise UserError(f"lm.n_ctx={lm.n_ctx}: {lm.name_or_path} takes {longest} tokens at most")


def fingerprint(lm: HFModel) -> str:
    """What identifies the weights: the files of a folder, the commit of a name on the hub.

    Raises:
        UserError: there are none that can be read.
    """
    folder = _folder(lm)
    if not folder.is_dir():
        return files.fingerprint([lm.name_or_path, commit(lm)])
    paths = [folder / "config.json", *sorted(folder.glob("*.safetensors"))]
    if len(paths) == 1:
        raise UserError(f"{folder} holds no .safetensors: other weights are not read")
    return files.fingerprint([[path.name, files.sha256_file(path)] for path in paths])


def commit(lm: HFModel) -> str | None:
    """The commit that a name on the hub stands for; None for a folder."""
    if _folder(lm).is_dir():
        return None
    with _named(lm):
        path = hf_hub_download(
            lm.name_or_path, "config.json", revision=lm.revision, local_files_only=not _online()
        )
    return Path(path).parent.name  # of the cache: snapshots/<commit>


def source(lm: HFModel) -> Path | str:
    """What there is to see of the model: a file of its folder, or its page on the hub."""
    folder = _folder(lm)
    if folder.is_dir():
        return folder / "config.json"
    return f"https://huggingface.co/{lm.name_or_path}"


def load(lm: HFModel, device: torch.device) -> Model:
    """The model in evaluation mode.

    Raises:
        UserError: it cannot be loaded.
    """
    with _named(lm):
        load = partial(AutoModelForCausalLM.from_pretrained, dtype=getattr(torch, lm.dtype))
        model = aside(partial(load, **_source(lm), use_safetensors=True))
    return Model(model.eval().to(device))


def opened(lm: HFModel, device: torch.device) -> OpenLM:
    """The model on `device`, with its tokenizer.

    Raises:
        UserError: as `load` and `load_tokenizer`.
    """
    return OpenLM(load(lm, device), load_tokenizer(lm), lm.n_ctx)


def load_tokenizer(lm: HFModel) -> Tokenizer:
    """The model's tokenizer.

    Raises:
        UserError: it cannot be loaded, is no fast one, or knows no end of sequence.
    """
    with _named(lm):
        tokenizer = aside(partial(AutoTokenizer.from_pretrained, **_source(lm)))
    if getattr(tokenizer, "backend_tokenizer", None) is None:
        raise UserError(f"{lm.name_or_path} has no fast tokenizer (tokenizer.json)")
    if tokenizer.eos_token_id is None:
        raise UserError(f"the tokenizer of {lm.name_or_path} has no end of sequence")
    return Tokenizer(tokenizer)


def _source(lm: HFModel) -> dict[str, Any]:
    """What transformers is to load, and from where: without a network, from its cache at once."""
    folder = _folder(lm)
    return {
        "pretrained_model_name_or_path": str(folder) if folder.is_dir() else lm.name_or_path,
        "revision": lm.revision,
        "trust_remote_code": False,
        "local_files_only": folder.is_dir() or not _online(),
    }


def _folder(lm: HFModel) -> Path:
    return Path(lm.name_or_path).expanduser()


@cache
def _online() -> bool:
    return not constants.HF_HUB_OFFLINE and reachable(constants.ENDPOINT)


def _n_layers(config: Any) -> int:
    return getattr(config.get_text_config(), "num_hidden_layers", None) or 0


def _config(lm: HFModel) -> Any:
    with _named(lm):
        return aside(partial(AutoConfig.from_pretrained, **_source(lm)))


@contextmanager
def _named(lm: HFModel) -> Iterator[None]:
    """Make one line of what transformers raises about a model that it cannot load."""
    try:
        yield
    # What is malformed in a file comes as any of these, a missing optional library as the last.
    except (OSError, RuntimeError, ImportError, *MALFORMED) as error:
        raise UserError(f"lm.name_or_path={lm.name_or_path}: {one_line(error)}") from None
