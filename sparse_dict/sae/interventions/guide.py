"""The language model's own weights inform a dictionary: `sae.guide` (docs/stability.md).

``init_read`` and ``init_write`` give it its initial decoder rows, ``penalty`` adds to the loss, and
``select`` keeps the features that act most and begins the others anew.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from sparse_dict.annotations import Activations, Generator, State, Tensor
from sparse_dict.config import SAEConfig
from sparse_dict.config.ranges import between, not_negative, one_of
from sparse_dict.config.sites import SITES, Site, parse
from sparse_dict.errors import UserError
from sparse_dict.sae import architectures
from sparse_dict.sae.interventions.base import Intervention, Moment
from sparse_dict.sae.loss import Fit, Numbers, Params, Term

ROWS = 1 << 16  # the last ones seen, over which a selection averages codes


@dataclass
class GuideConfig(SAEConfig):
    """Which way, and its numbers."""

    # how the model's weights inform it: docs/stability.md
    guide: str = one_of("none", "init_read", "init_write", "penalty", "select", default="none")
    guide_strength: float = not_negative(1.0)  # penalty: surcharge where there is no effect, by L1
    guide_keep: float = between(0, 1, default=0.5)  # select: share of the features that are kept
    guide_at: float = between(0, 1, default=0.25)  # select: when, as a share of the training
    guide_shuffled: bool = False  # a control: the weights' neurons in another order

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.target is not None and self.guide != "none":
            raise UserError("sae.target needs sae.guide=none")


class Guide(Intervention[GuideConfig]):
    """What the weights say of the site that the dictionary reads."""

    Config = GuideConfig

    @staticmethod
    def asked(sae: GuideConfig) -> bool:
        return sae.guide != "none"

    def check(self) -> None:
        self.site()
        if self.sae.guide == "penalty" and architectures.of(self.sae).axis.key != "l1":
            raise UserError("sae.guide=penalty needs a kind with an L1, such as sae=untied or tied")

    def site(self) -> Site:
        from sparse_dict.lm.folder import read_record

        guide, manifest, folder = self.sae.guide, self.activations.manifest, self.activations.folder
        if (
            manifest is None
            or "model" not in manifest["fingerprints"]
            or "lm" in (manifest.get("config") or {})
        ):
            raise UserError(f"sae.guide={guide} needs a model of train_lm.py, unlike {folder}")
        site = Site(str(manifest.get("site")), manifest.get("layer"))
        if self.sae.site is not None:
            site = parse(self.sae.site, None, "sae.site")
        adding = [name for name in SITES if name != "mlp_pre"]  # to the residual stream
        wanted = ["mlp_post"] if guide.startswith("init") else adding
        if site.name not in wanted:
            there = site if self.sae.site or "sites" not in manifest else "several sites"
            raise UserError(
                f"sae.guide={guide} reads {' or '.join(wanted)}, not {there} of {folder}"
            )
        model = read_record(self.lm_dir)["fingerprints"]["model"]
        if model != manifest["fingerprints"]["model"]:
            raise UserError(f"{self.lm_dir} is not the model that {folder} come from: set lm_dir")
        return site

    @property
    def found(self) -> Tensor:
        """What the weights say: directions (n, d_in), or a metric (d_in, d_in)."""
        return _read(
            self.sae.guide, self.sae.guide_shuffled, self.site(), self.lm_dir, self.activations
        )

    def begin(self, p: Params, generator: Generator) -> None:
        import torch

        if not self.sae.guide.startswith("init"):
            return
        mixed = torch.randn(len(p["W_dec"]), len(self.found), generator=generator) @ self.found
        p["W_dec"] = torch.nn.functional.normalize(mixed, dim=1)
        if self.sae.init == "aligned" and not self.sae.tied:
            p["W_enc"] = p["W_dec"].clone()

    @property
    def term(self) -> Term | None:
        if self.sae.guide != "penalty":
            return None
        return charge(self.sae.guide_strength, self.found)

    def after_step(self, states: list[State], at: Moment) -> None:
        chosen_at = max(1, round(self.sae.guide_at * at.last_step))
        if self.sae.guide == "select" and at.step == chosen_at:
            for state in states:
                self._select(state, at.before(ROWS), at.step)

    def _select(self, state: State, batches: Iterable[Tensor], step: int) -> None:
        import numpy as np
        import torch

        keep = max(1, round(self.sae.guide_keep * state.dict_size))
        loose = torch.ones(state.dict_size, dtype=torch.bool, device=state.b.device)
        loose[effects(state, batches, self.found).topk(keep).indices] = False
        seed = int(np.random.SeedSequence([state.seed, step]).generate_state(1)[0])
        drawn = state.drawn(seed)
        for name in state.per_feature:
            state.params[name][loose] = drawn[name].to(loose.device)[loose]
        state.begin_anew(loose)


@cache  # most dictionaries of a pass ask for the same
def _read(guide: str, shuffled: bool, site: Site, lm_dir: Path, activations: Activations) -> Tensor:
    import numpy as np
    import torch

    from sparse_dict.lm import folder
    from sparse_dict.sae import lm_weights

    with torch.inference_mode():
        read = lm_weights.OF.get(guide, lm_weights.metric)
        found = read(folder.load(lm_dir), site, activations)
    found = found.detach().clone()  # one that autograd may use
    if shuffled:
        order = torch.from_numpy(np.random.default_rng(0).permutation(activations.d_in))
        found = found[:, order] if guide in lm_weights.OF else found[order][:, order]
    return found


@cache  # the same object for all that are charged alike: they share a stack
def charge(strength: float, metric: Tensor) -> Term:
    """The term of the loss by which L1 becomes 1 + `strength` / (1 + gain^2) times as much."""
    on = {metric.device: metric}

    def term(p: Params, fit: Fit, numbers: Numbers) -> Tensor:
        device = p["W_dec"].device
        on[device] = on.get(device, metric).to(device)
        return numbers["l1"] * strength * surcharge(fit.encoded.codes, p["W_dec"], on[device])

    return term


def gain(W_dec: Tensor, metric: Tensor) -> Tensor:
    """How strongly directions W_dec (..., dict_size, d_in) act: root of d^T M d / d^T d."""
    squares = ((W_dec @ metric) * W_dec).sum(dim=-1) / W_dec.square().sum(dim=-1)
    return squares.clamp(min=0).sqrt()


def surcharge(codes: Tensor, W_dec: Tensor, metric: Tensor) -> Tensor:
    """What the codes of features with little effect cost beside their L1; mean over rows, (...,).

    A code costs 1 / (1 + gain^2): as much as its L1 in a direction without any effect, half of it
    in an average one. The gradient moves decoder rows too, towards what acts on the logits.
    """
    return (codes.mean(dim=-2) / (1 + gain(W_dec, metric).square())).sum(dim=-1)


def effects(state: State, batches: Iterable[Tensor], metric: Tensor) -> Tensor:
    """Of each feature, (dict_size,): its mean code on batches (batch, d_in) times its gain."""
    import torch

    codes, rows = torch.zeros_like(state.b), 0
    for x in batches:
        codes += state.architecture.encode(state.whole, x).codes.sum(0)
        rows += len(x)
    return codes / rows * gain(state.W_dec, metric.to(codes.device))
