import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from sparse_dict.lm.loss import linear_cross_entropy


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
@settings(max_examples=60, deadline=None)
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
