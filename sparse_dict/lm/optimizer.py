"""The language model's optimiser and its learning rate."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim.adamw import adamw

from sparse_dict.config import AdamWConfig, MuonConfig
from sparse_dict.lm.model import GPT

# Jordan et al. 2024 (kellerjordan.github.io/posts/muon): steepest at zero, so that five steps
# bring all but the very smallest singular values into [0.68, 1.13].
QUINTIC = (3.4445, -4.7750, 2.0315)
NEWTON_SCHULZ_STEPS = 5


def learning_rate(config: AdamWConfig, step: int, n_steps: int) -> float:
    """Linear warm-up, then half a cosine down to ``lr * min_lr_ratio`` at the last step."""
    warmup = round(config.warmup_fraction * n_steps)
    if step < warmup:
        return config.lr * (step + 1) / warmup
    done = (step - warmup) / max(1, n_steps - 1 - warmup)
    share = (1 + math.cos(math.pi * min(done, 1.0))) / 2
    return config.lr * (config.min_lr_ratio + (1 - config.min_lr_ratio) * share)


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Give each group `lr`, times its own factor where it has one."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("lr_factor", 1.0)


def make_optimizer(model: GPT, config: AdamWConfig) -> torch.optim.Optimizer:
    """AdamW or Muon; weight decay on matrices only."""
    hidden = [p for p in model.blocks.parameters() if p.ndim >= 2]
    tables = [model.embed.weight, model.positions.weight]
    vectors = [p for p in model.parameters() if p.ndim < 2]
    betas = config.beta1, config.beta2
    plain = {"params": vectors, "weight_decay": 0.0}
    if not isinstance(config, MuonConfig):
        decayed = {"params": tables + hidden, "weight_decay": config.weight_decay}
        return torch.optim.AdamW([decayed, plain], lr=config.lr, betas=betas, fused=True)
    return Muon(
        [
            {"params": tables, "weight_decay": config.weight_decay},
            plain,
            {
                "params": hidden,
                "weight_decay": config.weight_decay,
                "lr": config.hidden_lr,
                "lr_factor": config.hidden_lr / config.lr,
                "momentum": config.momentum,
            },
        ],
        lr=config.lr,
        betas=betas,
    )


def orthogonalised(matrices: Tensor) -> Tensor:
    """Nearly the nearest matrices with equal singular values of about one, (..., rows, columns).

    With U S V^T a matrix' singular value decomposition this is U S' V^T, S' in [0.68, 1.13] where
    a singular value is not far below the largest (Newton-Schulz iteration).
    """
    a, b, c = QUINTIC
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if tall else matrices
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-30)
    for _ in range(NEWTON_SCHULZ_STEPS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if tall else x


class Muon(torch.optim.Optimizer):
    """Muon for the groups that have a `momentum`, AdamW for the others.

    Muon (Jordan et al. 2024) steps along the orthogonalised Nesterov momentum of a matrix, which
    moves all its directions alike whatever the gradient's size; sqrt(max(1, rows / columns))
    keeps the change of a layer's outputs independent of its shape. State of a parameter:
    `momentum`, or AdamW's.
    """

    def __init__(self, groups: list[dict[str, Any]], lr: float, betas: tuple[float, float]) -> None:
        super().__init__(groups, {"lr": lr, "betas": betas, "eps": 1e-8})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One step of every parameter that has a gradient."""
        assert closure is None
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            if "momentum" in group:
                for p in parameters:
                    self._muon(p, group)
            elif parameters:
                self._adamw(parameters, group)

    def _muon(self, p: Tensor, group: dict[str, Any]) -> None:
        assert p.grad is not None
        state = self.state[p]
        if not state:
            state["momentum"] = torch.zeros_like(p)
        momentum = state["momentum"].lerp_(p.grad, 1 - group["momentum"])
        ahead = p.grad.lerp(momentum, group["momentum"])
        p.mul_(1 - group["lr"] * group["weight_decay"])
        shape = max(1.0, p.shape[0] / p.shape[1]) ** 0.5
        p.add_(orthogonalised(ahead), alpha=-group["lr"] * shape)

    def _adamw(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        for p in parameters:
            if not self.state[p]:
                self.state[p] = {
                    "step": torch.zeros((), device=p.device),
                    "exp_avg": torch.zeros_like(p),
                    "exp_avg_sq": torch.zeros_like(p),
                }
        states = [self.state[p] for p in parameters]
        adamw(
            parameters, [p.grad for p in parameters if p.grad is not None],
            [s["exp_avg"] for s in states], [s["exp_avg_sq"] for s in states], [],
            [s["step"] for s in states], fused=True, amsgrad=False, maximize=False,
            beta1=group["betas"][0], beta2=group["betas"][1], lr=group["lr"], eps=group["eps"],
            weight_decay=group["weight_decay"],
        )  # fmt: skip
