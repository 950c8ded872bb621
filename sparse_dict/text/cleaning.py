"""The filter that the documents of every source pass through."""

import hashlib
from array import array
from collections.abc import Iterable, Iterator


def unique(texts: Iterable[str], keys: "array[int]") -> Iterator[str]:
    """`texts` in order, without blank ones and without repetitions.

    Texts that differ in white space only count as one. Lone surrogates, which no UTF-8 holds,
    become U+FFFD. A hash of each text that is given is put behind those in `keys`, which were seen
    earlier. Memory: some hundred bytes a document.
    """
    seen = {*keys}
    for text in texts:
        try:
            normalised = " ".join(text.split()).encode()
        except UnicodeEncodeError:
            text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
            normalised = " ".join(text.split()).encode()
        if not normalised:
            continue
        key = int.from_bytes(hashlib.blake2b(normalised, digest_size=8).digest(), "little")
        if key not in seen:
            seen.add(key)
            keys.append(key)
            yield text
