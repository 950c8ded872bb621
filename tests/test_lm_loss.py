import math

import pytest
import torch
import torch.nn.functional as F
from conftest import torch_threads
from hypothesis import given, settings
from hypothesis import strategies as st
from rounding import assert_rounded, rounding

from sparse_dict.lm import loss
from sparse_dict.lm.loss import linear_cross_entropy
from sparse_dict.machine import compiled


def problem(n, d, v, seed, scale, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(n, d, generator=generator, dtype=dtype) * scale
    weight = torch.randn(v, d, generator=generator, dtype=dtype)
    targets = torch.randint(v, (n,), generator=generator)
    return hidden.requires_grad_(), weight.requires_grad_(), targets


@given(
    n=st.integers(1, 23),
    d=st.integers(1, 6),
    v=st.integers(2, 17),
    rows=st.integers(1, 30),
    seed=st.integers(0, 10_000),
    scale=st.sampled_from([0.0, 1.0, 300.0]),
    upstream=st.sampled_from([1.0, -0.25]),
)
@settings(max_examples=60)
def test_loss_and_gradients_equal_those_of_the_unfused_loss(n, d, v, rows, seed, scale, upstream):
    hidden, weight, targets = problem(n, d, v, seed, scale)
    expected = F.cross_entropy(hidden @ weight.T, targets)
    expected_grads = torch.autograd.grad(upstream * expected, (hidden, weight))
    loss = linear_cross_entropy(hidden, weight, targets, rows=rows)
    grads = torch.autograd.grad(upstream * loss, (hidden, weight))
    torch.testing.assert_close(loss, expected, rtol=1e-10, atol=1e-10)
    for grad, wanted in zip(grads, expected_grads, strict=True):
        torch.testing.assert_close(grad, wanted, rtol=1e-8, atol=1e-10)


def test_bfloat16_products_stay_within_their_rounding():
    hidden, weight, targets = problem(200, 16, 300, seed=1, scale=1.0, dtype=torch.float32)
    exact = F.cross_entropy(hidden @ weight.T, targets)
    wanted = torch.autograd.grad(exact, (hidden, weight))
    loss = linear_cross_entropy(hidden, weight, targets, bf16=True, rows=64)
    grads = torch.autograd.grad(loss, (hidden, weight))
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(exact.item(), rel=2e-3)
    for grad, right in zip(grads, wanted, strict=True):
        assert (grad - right).norm() < 0.02 * right.norm()


def test_logits_are_never_held_for_more_than_one_chunk():
    hidden, weight, targets = problem(64, 4, 50, seed=0, scale=1.0)
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            out = function(*args, **(kwargs or {}))
            nonlocal largest
            if isinstance(out, torch.Tensor):
                largest = max(largest, out.numel())
            return out

    with Watch():
        linear_cross_entropy(hidden, weight, targets, rows=8).backward()
    assert largest == 8 * 50


def test_without_gradients_none_are_computed():
    hidden, weight, targets = problem(8, 4, 11, seed=0, scale=1.0)
    with torch.no_grad():
        loss = linear_cross_entropy(hidden, weight, targets)
    assert not loss.requires_grad
    torch.testing.assert_close(loss, F.cross_entropy(hidden @ weight.T, targets).detach())


def test_a_frozen_weight_gets_no_gradient():
    hidden, weight, targets = problem(8, 4, 11, seed=0, scale=1.0)
    linear_cross_entropy(hidden, weight.detach(), targets).backward()
    assert weight.grad is None
    assert hidden.grad is not None


def in_float64(hidden, weight, targets):
    """Loss and gradients by torch, of the same numbers in float64."""
    exact = [x.detach().double().requires_grad_() for x in (hidden, weight)]
    loss = F.cross_entropy(exact[0] @ exact[1].T, targets)
    return loss, torch.autograd.grad(loss, exact)


BF16 = 2**-8  # how far a number may lie from the nearest one in bfloat16, as a share of it


def as_read(hidden, weight, narrow):
    """The factors of the compiled loop's logits, which are powers of two."""
    if not narrow:
        return hidden, weight
    bits = math.log2(math.e)
    return (hidden * bits).bfloat16().double() / bits, weight.bfloat16()


@pytest.fixture(scope="module", params=[False, True], ids=["fp32", "bf16"])
def bf16(request):
    if loss.load(8, request.param) is None:
        pytest.skip("no C compiler")
    return request.param


@given(
    n=st.integers(1, 150),
    d=st.sampled_from([7, 32]),
    v=st.sampled_from([1, 2, 63, 64, 65, 200]),
    seed=st.integers(0, 10_000),
    scale=st.sampled_from([0.0, 0.3, 3.0]),
    n_threads=st.integers(1, 3),
)
@settings(max_examples=25)
def test_the_compiled_loop_equals_the_loss_in_float64(bf16, n, d, v, seed, scale, n_threads):
    hidden, weight, targets = problem(n, d, v, seed, scale, torch.float32)
    narrow = bf16 and "avx512_bf16" in compiled.cpu()
    wanted, wanted_grads = in_float64(*as_read(hidden, weight, narrow), targets)
    with torch_threads(n_threads):
        loss = linear_cross_entropy(hidden, weight, targets, bf16=bf16)
    grads = torch.autograd.grad(-2 * loss, (hidden, weight))
    # Sums of d products, of v exponentials and of n rows, one after the other.
    logits = 1 + (hidden.abs() @ weight.abs().T).max().item()
    assert loss.item() == pytest.approx(wanted.item(), abs=rounding(d + v + n, logits))
    # Gradients are sums of rows, weighted by probabilities that add up to one; in bfloat16 both
    # factors are rounded, and the row that is taken off is not.
    rows = 2 * max(hidden.norm(dim=1).max().item(), weight.norm(dim=1).max().item())
    bar = rows * (rounding(d + v + n, logits) + 3 * BF16 * narrow)
    for grad, right in zip(grads, wanted_grads, strict=True):
        assert (grad + 2 * right).norm() <= bar


@pytest.mark.parametrize("size", [1e4, -1e4])
def test_extreme_logits_stay_exact(bf16, size):
    """Every target but one is e^10000 times less likely than another class, or more."""
    weight = torch.zeros(70, 8)
    weight[:, 0] = torch.linspace(0, 1, 70).bfloat16()
    hidden = torch.full((130, 8), size).bfloat16().float()
    targets = torch.arange(130) % 70
    hidden.requires_grad_()
    weight.requires_grad_()
    wanted, wanted_grads = in_float64(hidden, weight, targets)
    loss = linear_cross_entropy(hidden, weight, targets, bf16=bf16)
    assert loss.item() == pytest.approx(wanted.item(), rel=3e-3 if bf16 else rounding(8 + 70 + 130))
    # The likeliest class leads by e^100 or so: its probability is one in either type.
    for grad, right in zip(torch.autograd.grad(loss, (hidden, weight)), wanted_grads, strict=True):
        torch.testing.assert_close(grad.double(), right, rtol=1e-2, atol=1e-4 * right.abs().max())


def test_a_number_that_is_not_finite_is_noticed(bf16):
    for bad in (float("nan"), float("inf")):
        hidden, weight, targets = problem(70, 8, 100, 0, 1.0, torch.float32)
        with torch.no_grad():
            weight[3, 2] = bad
        assert not linear_cross_entropy(hidden, weight, targets, bf16=bf16).isfinite()


def test_a_target_beyond_the_classes_is_refused(bf16):
    hidden, weight, targets = problem(4, 8, 10, 0, 1.0, torch.float32)
    targets[2] = 10
    with pytest.raises(IndexError, match="10 classes"):
        linear_cross_entropy(hidden, weight, targets, bf16=bf16)


def test_without_a_compiler_torch_computes_the_same(monkeypatch):
    hidden, weight, targets = problem(90, 8, 100, 0, 1.0, torch.float32)
    by_loop = linear_cross_entropy(hidden, weight, targets)
    monkeypatch.setattr(loss, "load", lambda width, bf16: None)
    assert_rounded(linear_cross_entropy(hidden, weight, targets), by_loop, 8 + 100 + 90)
