"""Models of Hugging Face's transformers by their name: is it there, which is it, load it."""

import json
import logging
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub import constants, hf_hub_download
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from sparse_dict.config import HFModel
from sparse_dict.config.sites import Site
from sparse_dict.errors import MALFORMED, UserError, one_line
from sparse_dict.lm.hf import Model
from sparse_dict.lm.interface import OpenLM
from sparse_dict.machine.background import in_background, reachable
from sparse_dict.storage import files
from sparse_dict.text.tokenizer import bytes_by_character

log = logging.getLogger(__name__)

BYTES = bytes_by_character()  # of tokenizers that show each byte as a character


class Tokenizer:
    """A model's own fast tokenizer, as `text.tokens.prepare` wants it: see `Encoder`.

    Nothing is added to a text, and the name of a special token in one is ordinary text. `n_rows`
    says how many rows a model needs for the ids a text can have, `start` what the tokenizer itself
    puts before a text; `bos` is the id of the beginning of sequence, if there is one.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._backend = tokenizer.backend_tokenizer
        self._backend.no_padding()
        self._backend.no_truncation()
        self._backend.encode_special_tokens = True
        self.eot = int(tokenizer.eos_token_id)
        ids = {*tokenizer.get_vocab().values()}
        self.n_vocab = max(self.eot, *ids) + 1
        self.bos = tokenizer.bos_token_id
        plain, whole = (
            self._backend.encode("a", add_special_tokens=added).ids for added in (False, True)
        )
        starts = (i for i in range(len(whole)) if whole[i : i + len(plain)] == plain)
        self.start = tuple(whole[: next(starts, 0)])
        added = self._backend.get_added_tokens_decoder()
        unread = {i for i, token in added.items() if token.special}
        self.n_rows = max(self.eot, *self.start, *(ids - unread)) + 1
        self.dtype = np.dtype(np.uint16 if self.n_vocab <= 2**16 else np.uint32)
        described: str = self._backend.to_str()
        self.fingerprint = files.fingerprint([described, self.eot])
        self._special = {*added}
        # Each byte is written as a character; or else spaces as low lines, and bytes as <0x0A>.
        self._by_byte = '"ByteLevel"' in json.dumps(json.loads(described)["decoder"])

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        encoded = self._backend.encode_batch_fast(list(texts), add_special_tokens=False)
        return [np.array(item.ids, self.dtype) for item in encoded]

    def token_bytes(self, token: int) -> bytes:
        text: str = self._backend.id_to_token(token) or f"[{token}]"  # ids may have gaps
        if token in self._special:
            return text.encode()
        if self._by_byte:
            return b"".join(bytes([BYTES[c]]) if c in BYTES else c.encode() for c in text)
        byte = re.fullmatch(r"<0x([0-9A-F]{2})>", text)
        return bytes([int(byte[1], 16)]) if byte else text.replace("\u2581", " ").encode()


def check(lm: HFModel, sites: Sequence[Site]) -> int:
    """See by ``config.json`` and tokenizer that it is there and has all; its contexts' length."""
    with _named(lm):
        config = in_background(partial(AutoConfig.from_pretrained, **_source(lm)))
    config = config.get_text_config()
    layers = getattr(config, "num_hidden_layers", None)
    for site in sites:
        if layers and site.layer is not None and site.layer >= layers:
            raise UserError(f"harvest: no {site}: {lm.name_or_path} has layers 0 to {layers - 1}")
    longest = getattr(config, "max_position_embeddings", None)
    tokenizer = load_tokenizer(lm)
    before = len(_start(lm, tokenizer))
    if longest and lm.n_ctx + before > longest:
        raise UserError(f"lm.n_ctx={lm.n_ctx}: {lm.name_or_path} takes {longest - before} at most")
    rows = getattr(config, "vocab_size", None)
    if rows and tokenizer.n_rows > rows:
        raise UserError(f"{lm.name_or_path}: {tokenizer.n_rows} ids, rows for {rows} tokens")
    return lm.n_ctx


def prints(lm: HFModel) -> dict[str, str]:
    """The fingerprints of the language model and of its tokenizer."""
    return {"model": fingerprint(lm), "tokenizer": load_tokenizer(lm).fingerprint}


def noted(lm: HFModel) -> dict[str, str]:
    """What a harvest's manifest says of it: what a name on the hub stood for."""
    return {"lm_commit": found} if (found := commit(lm)) else {}


def with_start(lm: HFModel) -> HFModel:
    """The model with `bos` as it is meant."""
    return replace(lm, bos=bool(_start(lm, load_tokenizer(lm))))


def _start(lm: HFModel, tokenizer: Tokenizer) -> tuple[int, ...]:
    if lm.bos is False:
        return ()
    if lm.bos is None or tokenizer.start:
        return tokenizer.start
    if tokenizer.bos is None:
        raise UserError(f"lm.bos=true: {lm.name_or_path} has no token for the beginning of a text")
    return (tokenizer.bos,)


def fingerprint(lm: HFModel) -> str:
    """What identifies the weights: the files of a folder, the commit of a name on the hub."""
    folder = _folder(lm)
    if not folder.is_dir():
        return files.fingerprint([lm.name_or_path, commit(lm)])
    paths = [folder / "config.json", *sorted(folder.glob("*.safetensors"))]
    if len(paths) == 1:
        raise UserError(f"{folder} holds no .safetensors: other weights are not read")
    log.info("reading the weights in %s to know them again", folder)
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


def load(lm: HFModel, device: torch.device, start: Sequence[int] = ()) -> Model:
    """The model in evaluation mode; each context begins with `start`."""
    with _named(lm):
        load = partial(AutoModelForCausalLM.from_pretrained, dtype=getattr(torch, lm.dtype))
        model = in_background(partial(load, **_source(lm), use_safetensors=True))
    return Model(model.eval().to(device), start)


def opened(lm: HFModel, device: torch.device) -> OpenLM:
    """The model on `device`, with its tokenizer."""
    tokenizer = load_tokenizer(lm)
    if start := _start(lm, tokenizer):
        shown = "".join(tokenizer.token_bytes(token).decode() for token in start)
        log.info("each context begins with %s, which has no row; lm.bos=false: without", shown)
    log.info("loading %s in %s", lm.name_or_path, lm.dtype)
    return OpenLM(load(lm, device, start), tokenizer, lm.n_ctx)


def load_tokenizer(lm: HFModel) -> Tokenizer:
    """The model's tokenizer."""
    with _named(lm):
        tokenizer = in_background(partial(AutoTokenizer.from_pretrained, **_source(lm)))
    if getattr(tokenizer, "backend_tokenizer", None) is None:
        raise UserError(f"{lm.name_or_path} has no fast tokenizer (tokenizer.json)")
    if tokenizer.eos_token_id is None:
        raise UserError(f"the tokenizer of {lm.name_or_path} has no end of sequence")
    return Tokenizer(tokenizer)


def _source(lm: HFModel) -> dict[str, Any]:
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


@contextmanager
def _named(lm: HFModel) -> Iterator[None]:
    if _folder(lm).is_absolute() and not _folder(lm).is_dir():  # it would take that for a name
        raise UserError(f"lm.name_or_path={lm.name_or_path} does not exist")
    try:
        yield
    # What is malformed in a file comes as any of these, a missing optional library as the last.
    except (OSError, RuntimeError, ImportError, *MALFORMED) as error:
        raise UserError(f"lm.name_or_path={lm.name_or_path}: {one_line(error)}") from None
