"""The compiled attention against torch's in float64."""

import torch
from conftest import torch_threads
from hypothesis import given, settings
from hypothesis import strategies as st
from rounding import assert_rounded

from sparse_dict.lm import attention


def randn(*shape, seed=0, scale=1.0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * scale


def both(function, x, upstream):
    """Value and gradient of `function` at `x` in its own dtype and in float64."""
    found = []
    for dtype in (torch.float32, torch.float64):
        at = x.to(dtype).requires_grad_()
        y = function(at)
        found.append((y.double(), torch.autograd.grad(y, at, upstream.to(dtype))[0].double()))
    return found


@given(
    batch=st.integers(1, 3),
    n=st.integers(1, 70),
    heads=st.integers(1, 3),
    width=st.sampled_from([1, 4, 8, 16]),
    seed=st.integers(0, 10_000),
    scale=st.sampled_from([0.0, 1.0, 4.0]),
    n_threads=st.integers(1, 3),
)
@settings(max_examples=40)
def test_attention_equals_that_in_float64(batch, n, heads, width, seed, scale, n_threads):
    qkv = randn(batch, n, 3, heads, width, seed=seed, scale=scale)
    with torch_threads(n_threads):
        found, right = both(attention.causal, qkv, randn(batch, n, heads, width, seed=seed + 1))
    for ours, wanted in zip(found, right, strict=True):
        assert (ours - wanted).norm() <= 1e-4 * (wanted.norm() + 1e-6)


def test_attention_with_scores_in_the_thousands_stays_exact():
    qkv = randn(2, 40, 3, 2, 8, scale=40.0)
    (y, _), (wanted, _) = both(attention.causal, qkv, torch.ones(2, 40, 2, 8))
    torch.testing.assert_close(y, wanted, rtol=1e-3, atol=1e-2)


def test_no_position_sees_a_later_one():
    qkv = randn(1, 40, 3, 2, 8)
    before = attention.causal(qkv)
    qkv[:, 25:] = 1e3
    after = attention.causal(qkv)
    assert torch.equal(after[:, :25], before[:, :25])
    assert not torch.equal(after[:, 25], before[:, 25])


def test_attention_passes_on_what_is_not_a_number():
    qkv = randn(1, 20, 3, 1, 8)
    qkv[0, 3, 1, 0, 0] = float("nan")
    y = attention.causal(qkv)
    assert y[0, :3].isfinite().all()
    assert y[0, 3:].isnan().all()


def test_wide_heads_are_left_to_torch():
    qkv = randn(1, 20, 3, 1, attention.MAX_WIDTH + 1)
    found, right = both(attention.causal, qkv, torch.ones(1, 20, 1, attention.MAX_WIDTH + 1))
    for ours, wanted in zip(found, right, strict=True):
        torch.testing.assert_close(ours, wanted, rtol=1e-4, atol=1e-5)


def test_without_a_compiler_torch_computes_the_same(monkeypatch):
    qkv = randn(1, 20, 3, 2, 8)
    y = attention.causal(qkv)
    monkeypatch.setattr(attention, "_kernel", lambda width: None)
    assert_rounded(attention.causal(qkv), y, 8 + 2 * 20)  # a score, the softmax and the mean
