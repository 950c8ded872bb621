"""The language model's optimiser and its learning rate."""

import math
from collections import defaultdict
from typing import Any

import torch
from torch import Tensor

from sparse_dict.config import AdamWConfig, MuonConfig
from sparse_dict.lm.model import GPT

# Jordan et al. 2024 (kellerjordan.github.io/posts/muon): steepest at zero, so that five steps
# bring all but the very smallest singular values into [0.68, 1.13].
QUINTIC = (3.4445, -4.7750, 2.0315)
NEWTON_SCHULZ_STEPS = 5


def learning_rate(config: AdamWConfig, step: int, n_steps: int) -> float:
    """Linear warm-up, then half a cosine down to ``lr * min_lr_ratio`` at the end of the run."""
    warmup = round(config.warmup_fraction * n_steps)
    if step < warmup:
        return config.lr * (step + 1) / warmup
    done = (step - warmup) / max(1, round(config.cosine_runs * n_steps) - 1 - warmup)
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
        fused=True,
    )


def orthogonalised(matrices: Tensor) -> Tensor:
    """Matrices (..., rows, columns) U S V^T as U S' V^T, S' in [0.68, 1.13] (Newton-Schulz)."""
    a, b, c = QUINTIC
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if tall else matrices
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-30)
    for _ in range(NEWTON_SCHULZ_STEPS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if tall else x


class Muon(torch.optim.AdamW):
    """Muon for the groups that have a `momentum`, AdamW for the others.

    Muon (Jordan et al. 2024) steps along the orthogonalised Nesterov momentum of a matrix;
    sqrt(max(1, rows / columns)) keeps the change of a layer's outputs independent of its shape.
    torch.optim.Muon iterates in bfloat16, which changes an update by 1 % and on a CPU takes longer.
    """

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        """One step of every parameter that has a gradient; those of Muon's have none afterwards."""
        for group in self.param_groups:
            if "momentum" in group:
                alike: dict[torch.Size, list[Tensor]] = defaultdict(list)
                for p in group["params"]:
                    if p.grad is not None:
                        alike[p.shape].append(p)
                for parameters in alike.values():
                    self._muon(parameters, group)
        super().step()

    def _muon(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        """Step matrices of one shape together, since a small one would leave a device idle."""
        stacked = torch.stack([p.grad for p in parameters if p.grad is not None])  # (n, rows, cols)
        momenta = []
        for p in parameters:
            if not self.state[p]:
                self.state[p]["momentum"] = torch.zeros_like(p)
            momenta.append(self.state[p]["momentum"])
            p.grad = None  # nothing is left for AdamW to do
        momentum = torch.stack(momenta).lerp_(stacked, 1 - group["momentum"])
        torch._foreach_copy_(momenta, momentum.unbind())
        direction = orthogonalised(stacked.lerp(momentum, group["momentum"]))
        rows, columns = direction.shape[-2:]
        size = group["lr"] * max(1.0, rows / columns) ** 0.5
        torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
        torch._foreach_add_(parameters, direction.unbind(), alpha=-size)
