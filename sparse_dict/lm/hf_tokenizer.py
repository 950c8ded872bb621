"""The tokenizer of a model of Hugging Face's transformers."""

import json
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from sparse_dict.storage import files
from sparse_dict.text.bpe import bytes_by_character

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
        self.start = self._before("a")
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
        """Ids of each text, `dtype` (n,), without end of sequence; on all cores."""
        encoded = self._backend.encode_batch_fast(list(texts), add_special_tokens=False)
        return [np.array(item.ids, self.dtype) for item in encoded]

    def _before(self, text: str) -> tuple[int, ...]:
        plain, whole = (
            self._backend.encode(text, add_special_tokens=added).ids for added in (False, True)
        )
        starts = (i for i in range(len(whole)) if whole[i : i + len(plain)] == plain)
        return tuple(whole[: next(starts, 0)])

    def token_bytes(self, token: int) -> bytes:
        """The bytes that `token` stands for; of a special one, its name."""
        text: str = self._backend.id_to_token(token) or f"[{token}]"  # ids may have gaps
        if token in self._special:
            return text.encode()
        if self._by_byte:
            return b"".join(bytes([BYTES[c]]) if c in BYTES else c.encode() for c in text)
        byte = re.fullmatch(r"<0x([0-9A-F]{2})>", text)
        return bytes([int(byte[1], 16)]) if byte else text.replace("\u2581", " ").encode()
