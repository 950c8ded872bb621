"""Causal language models of Hugging Face's transformers: their sites, text and identity.

Sites are read by forward hooks, and the forward pass is left as soon as the last one is known. By
short name they are known for models built like GPT-2, GPT-NeoX (Pythia) and Llama (Mistral, Qwen);
any module's input or output can be named by its path. Text is packed into whole contexts, so there
is no padding on either side, and no token of it that a hook could read.
"""

import difflib
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub import constants
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from sparse_dict.config import HFModel
from sparse_dict.config.sites import SITES, Site
from sparse_dict.errors import MALFORMED, UserError, one_line
from sparse_dict.machine.ahead import aside
from sparse_dict.machine.network import reachable
from sparse_dict.storage import files

# Where each family keeps its blocks, and within a block the modules of which a short name means
# the input or the output: attn_out, resid_mid, mlp_pre and mlp_post (of a gated MLP, mlp_pre is the
# gate before the non-linearity, and mlp_post what it lets through). resid_pre and resid_post are
# the block's own.
FAMILIES = {
    "transformer.h": ("attn:out", "ln_2:in", "mlp.c_fc:out", "mlp.c_proj:in"),
    "gpt_neox.layers": (
        "attention:out", "post_attention_layernorm:in", "mlp.dense_h_to_4h:out",
        "mlp.dense_4h_to_h:in",
    ),
    "model.layers": (
        "self_attn:out", "post_attention_layernorm:in", "mlp.gate_proj:out", "mlp.down_proj:in",
    ),
}  # fmt: skip
# Norms of what a sublayer adds (Gemma 2, OLMo 2): there the table's attn_out and resid_mid are
# something else.
POST_NORMS = ("pre_feedforward_layernorm", "post_feedforward_layernorm")


class _Seen(Exception):
    """All sites are known: the rest of the forward pass is not needed."""


class Model:
    """A model in evaluation mode, read by hooks."""

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

    def read(self, tokens: Tensor, sites: Sequence[Site]) -> list[Tensor]:
        """What each of `sites` computes, float32 (batch, n_ctx, d); stops behind the last.

        Raises:
            UserError: the model has no such site, or what is there is no row for each token.
        """
        found: dict[Site, Tensor] = {}

        def keep(site: Site, value: Any) -> None:
            value = value[0] if isinstance(value, tuple) and value else value
            if not isinstance(value, Tensor) or value.shape[:2] != tokens.shape or value.ndim != 3:
                what = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
                raise UserError(f"harvest: {site} is {what}, not one row for each token")
            # A copy, since later modules may write into it.
            found.setdefault(site, value.to(torch.float32, copy=True))
            if len(found) == len(sites):
                raise _Seen

        with ExitStack() as hooks:
            for site in sites:
                hooks.callback(self._hook(site, keep).remove)
            try:
                # Every token counts: without this, one that is also the padding is warned about.
                mask = torch.ones_like(tokens)
                self.model(input_ids=tokens, attention_mask=mask, use_cache=False)
            except _Seen:
                return [found[site] for site in sites]
        missing = next(site for site in sites if site not in found)
        raise UserError(f"harvest: a forward pass does not reach {missing}")

    def _hook(self, site: Site, keep: Callable[[Site, Any], None]) -> RemovableHandle:
        module, is_input = locate(self.model, site)

        def before(_: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
            keep(site, args[0] if args else next(iter(kwargs.values()), None))

        def after(_: nn.Module, _args: Any, output: Any) -> None:
            keep(site, output)

        if is_input:
            return module.register_forward_pre_hook(before, with_kwargs=True)
        return module.register_forward_hook(after)


def locate(model: nn.Module, site: Site) -> tuple[nn.Module, bool]:
    """The module that `site` means, and whether its input is meant rather than its output.

    Raises:
        UserError: there is none, or the short name has no meaning in this architecture.
    """
    if site.layer is None:
        path, _, end = site.name.partition(":")
        return _module(model, path, site), end == "in"
    names = {name for name, _ in model.named_modules()}
    family = next((name for name in FAMILIES if f"{name}.{site.layer}" in names), None)
    if family is None:
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
    if site.name == "attn_out" and normed:
        raise UserError(
            f"harvest: {site}: this {type(model).__name__} normalises what the attention adds; "
            f"give a module's path, such as {family}.{site.layer}.post_attention_layernorm"
        )
    places = dict(zip(SITES, (":in", *FAMILIES[family], ":out"), strict=True))
    path, _, end = places[site.name].partition(":")
    return _module(model, f"{family}.{site.layer}.{path}".rstrip("."), site), end == "in"


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
        self.fingerprint = files.fingerprint([self._backend.to_str(), self.eot])

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Ids of each text, `dtype` (n,), without end of sequence; on all cores."""
        encoded = self._backend.encode_batch_fast(list(texts), add_special_tokens=False)
        return [np.array(item.ids, self.dtype) for item in encoded]


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
        commit = getattr(_config(lm), "_commit_hash", None)
        return files.fingerprint([lm.name_or_path, commit or lm.revision])
    paths = [folder / "config.json", *sorted(folder.glob("*.safetensors"))]
    if len(paths) == 1:
        raise UserError(f"{folder} holds no .safetensors: other weights are not read")
    return files.fingerprint([[path.name, files.sha256_file(path)] for path in paths])


def load(lm: HFModel, device: torch.device) -> Model:
    """The model in evaluation mode.

    Raises:
        UserError: it cannot be loaded.
    """
    with _named(lm):
        load = partial(AutoModelForCausalLM.from_pretrained, dtype=getattr(torch, lm.dtype))
        model = aside(partial(load, **_source(lm), use_safetensors=True))
    return Model(model.eval().to(device))


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
