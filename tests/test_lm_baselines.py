import itertools
from collections import Counter

import numpy as np
import pytest

from sparse_dict.lm import baselines
from sparse_dict.lm.baselines import Ngrams
from sparse_dict.text.tokens import TokenStream


def stream(tokens):
    return TokenStream([np.array(tokens, np.uint16)], np.array([0]))


def random_tokens(n, n_vocab, seed=0):
    rng = np.random.default_rng(seed)
    return np.minimum(rng.zipf(1.5, n) - 1, n_vocab - 2)  # the last token never occurs


def test_bigram_probabilities_follow_witten_and_bell():
    tokens = random_tokens(500, 12).tolist()
    ngrams = Ngrams(stream(tokens), 12)
    unigram, pairs = Counter(tokens), Counter(itertools.pairwise(tokens))
    for a in range(12):
        followers = {b for (first, b) in pairs if first == a}
        c = sum(n for (first, _), n in pairs.items() if first == a)
        for b in range(12):
            p = (unigram[b] + 1) / (500 + 12)
            wanted = (pairs[a, b] + len(followers) * p) / (c + len(followers)) if c else p
            assert ngrams.bigram(np.array([a]), np.array([b]))[0] == pytest.approx(wanted)


def test_both_are_distributions_even_after_a_token_that_was_never_seen():
    ngrams = Ngrams(stream(random_tokens(2_000, 30)), 30)
    every = np.arange(30)
    assert ngrams.unigram(every).sum() == pytest.approx(1)
    for before in every:
        assert ngrams.bigram(np.full(30, before), every).sum() == pytest.approx(1)


def test_the_bigram_beats_the_unigram_on_text_with_order_and_not_on_noise():
    rng = np.random.default_rng(0)
    chain = [0]
    for jump in rng.random(20_000):  # half of the time the successor, else anything
        chain.append((chain[-1] + 1) % 50 if jump < 0.5 else int(jump * 1e6) % 50)
    windows = np.array(chain[-1001:])[None]
    of_chain = baselines.losses(stream(chain[:-1001]), 50, windows)
    assert of_chain["unigram"] == pytest.approx(np.log(50), abs=0.02)
    assert of_chain["bigram"] < of_chain["unigram"] - 1
    noise = rng.integers(50, size=20_000)
    of_noise = baselines.losses(stream(noise[:-1001]), 50, noise[-1001:][None])
    assert abs(of_noise["bigram"] - of_noise["unigram"]) < 0.1


def test_losses_count_the_targets_of_each_window_only():
    tokens = random_tokens(300, 9)
    windows = tokens[:20].reshape(2, 10)
    ngrams = Ngrams(stream(tokens), 9)
    found = baselines.losses(stream(tokens), 9, windows)
    unigram = [ngrams.unigram(np.array([t]))[0] for row in windows for t in row[1:]]
    bigram = [
        ngrams.bigram(np.array([a]), np.array([b]))[0]
        for row in windows
        for a, b in itertools.pairwise(row)
    ]
    assert found["unigram"] == pytest.approx(-np.mean(np.log(unigram)))
    assert found["bigram"] == pytest.approx(-np.mean(np.log(bigram)))
    assert found["fitted_tokens"] == 300
