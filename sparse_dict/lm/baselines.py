"""What a model without context, and one that sees a single token, reach on the same text."""

import numpy as np
from numpy.typing import NDArray

from sparse_dict.text.tokens import TokenStream

Tokens = NDArray[np.int64]

FIT_TOKENS = 20_000_000  # counts of more text change the losses little and take memory


class Ngrams:
    """Unigram and bigram counts of a token stream, at most its first `FIT_TOKENS`."""

    def __init__(self, stream: TokenStream, n_vocab: int) -> None:
        self.n_vocab = n_vocab
        self.fitted_tokens = min(len(stream), FIT_TOKENS)
        tokens = stream.window(0, self.fitted_tokens)
        self.count: Tokens = np.bincount(tokens, minlength=n_vocab)
        # first * n_vocab + second, sorted
        pairs, counts = np.unique(tokens[:-1] * n_vocab + tokens[1:], return_counts=True)
        self._pairs, self._pair_counts = pairs, counts
        first = pairs // n_vocab
        self._followed = np.bincount(first, weights=counts, minlength=n_vocab)
        self._followers = np.bincount(first, minlength=n_vocab)  # distinct ones

    def unigram(self, tokens: Tokens) -> NDArray[np.float64]:
        """Probability of each token by its frequency, each count raised by one."""
        return (self.count[tokens] + 1) / (self.count.sum() + self.n_vocab)

    def bigram(self, before: Tokens, tokens: Tokens) -> NDArray[np.float64]:
        """Probability of each token given the one before it, interpolated with `unigram`.

        Witten and Bell (1991), method C: a token with T distinct followers in c occurrences gives
        them c / (c + T) of its probability and the unigram distribution the rest.
        """
        codes = before * self.n_vocab + tokens
        where = np.searchsorted(self._pairs, codes)
        where[where == len(self._pairs)] = 0
        seen = np.where(self._pairs[where] == codes, self._pair_counts[where], 0)
        c, t = self._followed[before], self._followers[before]
        # A token that nothing ever followed leaves all to the unigram distribution.
        return (seen + np.where(c == 0, 1, t) * self.unigram(tokens)) / np.where(c == 0, 1, c + t)


def losses(train: TokenStream, n_vocab: int, windows: Tokens) -> dict[str, float]:
    """Mean loss in nats of both on the targets of `windows`, (n, n_ctx + 1) of validation text."""
    ngrams = Ngrams(train, n_vocab)
    before, targets = windows[:, :-1].ravel(), windows[:, 1:].ravel()
    return {
        "unigram": float(-np.log(ngrams.unigram(targets)).mean()),
        "bigram": float(-np.log(ngrams.bigram(before, targets)).mean()),
        "fitted_tokens": ngrams.fitted_tokens,
    }
