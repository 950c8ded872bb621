"""The filter that the documents of every source pass through."""

import hashlib
from array import array
from collections.abc import Iterable, Iterator

import numpy as np

SETTLE = 2**20


def unique(texts: Iterable[str], keys: "array[int]") -> Iterator[str]:
    """`texts` in order, without blank ones and without repetitions.

    Texts that differ in white space only count as one. Lone surrogates, which no UTF-8 holds,
    become U+FFFD. A hash of each text that is given is put behind those in `keys`, which were seen
    earlier. Memory: sixteen bytes a document, and a set of the last million.
    """
    recent: set[int] = set()
    settled = np.sort(np.array(keys, np.uint64))
    for text in texts:
        try:
            normalised = " ".join(text.split()).encode()
        except UnicodeEncodeError:
            text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
            normalised = " ".join(text.split()).encode()
        if not normalised:
            continue
        key = int.from_bytes(hashlib.blake2b(normalised, digest_size=8).digest(), "little")
        place = int(settled.searchsorted(np.uint64(key)))
        if key in recent or key in settled[place : place + 1]:
            continue
        recent.add(key)
        keys.append(key)
        if len(recent) == SETTLE:
            settled = np.union1d(settled, np.fromiter(recent, np.uint64))
            recent.clear()
        yield text
