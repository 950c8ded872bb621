"""How dictionaries are compared, which analyses there are, and the settings of those that have any.

Settings' values are in ``conf/analysis/NAME.yaml``.
"""

import importlib
import os
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from omegaconf import MISSING

from sparse_dict.config.ranges import (
    Checked,
    between,
    counts,
    even,
    not_negative,
    one_of,
    positive,
    some_of,
)  # fmt: skip
from sparse_dict.errors import UserError, hide, one_line

BASELINES = ("neurons", "random", "pca", "ica", "nmf")


@dataclass
class ComparisonConfig(Checked, section="comparison"):
    """How dictionaries are compared, in every analysis."""

    matching: str = one_of("max", "hungarian", "correlation")  # how a feature finds its partner
    against: str = one_of("next", "next_two", "all_larger")  # in which larger dictionaries
    features: str = one_of("all", "alive")  # which features count
    threshold: float = between(-1, 1, "[]")  # an MCS above it is called high
    block_rows: int = positive()  # features compared at a time; bounds the memory
    match_limit: int = positive()  # size above which seeds are not matched
    max_fvu: float = positive()  # the highest FVU of the level that main figures show
    # which of several, such as 2/mlp_post or "2/resid_mid to 2/mlp_out"
    site: str | None = None


# What conf/analyze.yaml says, for `open_study`: an installed package has no conf/.
STANDARD_COMPARISON = ComparisonConfig("max", "next", "all", 0.9, 2048, 2048, 0.25)


@dataclass
class NoSettings:
    """An analysis that has no settings of its own."""


@dataclass
class BaselinesConfig(Checked, section="baselines"):
    """Simpler bases that dictionaries are measured against."""

    methods: list[str] = some_of(*BASELINES)  # which
    rows: int = positive()  # to fit, and half as many to measure
    ks: list[int] = counts()  # codes kept in a row


@dataclass
class LossRecoveredConfig(Checked, section="loss_recovered"):
    """The language model's loss with reconstructed activations."""

    tokens: int = positive()  # of held-out text
    ks: list[int] = counts()  # codes kept in a row


@dataclass
class EffectsConfig(Checked, section="effects"):
    """How the language model's loss changes without a feature."""

    features: int = positive()  # measured at most
    contexts: int = positive()  # of each feature
    n_tokens: int = positive()  # searched for contexts
    minutes: float = positive()  # after which it stops; the same command goes on


@dataclass
class ContextsConfig(Checked, section="contexts"):
    """Which features are shown with the text that they are active on, and how much of it."""

    # NAME/INDEX of a dictionary's folder or size, or "neuron"; null: some of each kind
    features: list[str] | None = MISSING
    per_group: int = positive()  # top MCS, low MCS, random, outliers, dead
    n_tokens: int = positive()  # read again to find contexts; or own rows
    top: int = positive()  # contexts with the highest activations
    spread: int = not_negative()  # contexts at evenly spaced quantiles
    width: int = positive()  # tokens shown on either side
    # MODULE:FUNCTION that makes a text or picture of an own row
    show: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in self.features or []:
            owner, _, index = name.rpartition("/")
            if not (owner and index.isascii() and index.isdigit()):
                raise UserError(f"contexts.features must hold NAME/INDEX, not {name!r}")

    def function(self) -> Callable[[str, int], Any] | None:
        """What `show` names, sought where the user stands, too."""
        if self.show is None:
            return None
        module, _, name = self.show.partition(":")
        sys.path.append(str(Path.cwd()))
        try:
            return getattr(importlib.import_module(module), name)
        except Exception as error:
            why = one_line(error, named=True)
            raise UserError(f"contexts.show={self.show}: {why}") from None
        finally:
            sys.path.pop()


@dataclass
class ConsensusConfig(Checked, section="consensus"):
    """What recurs over seeds, and whether the other half of the seeds gives the same."""

    cosine: float = between(0, 1)  # below it two clusters stay apart
    share: float = between(0, 1, "[)")  # of the seeds that a cluster exceeds
    halves: int = positive()  # pairs of halves, at most
    tokens: int = positive()  # of held-out text, for the language model's loss


NAME = re.compile(r"[A-Z][A-Z_]*")  # of a variable; what is no such name may be a key
KEY = re.compile(r"\b(sk|pk|hf|gsk|xai|nvapi)[-_]\w{8,}|AIza\w{20,}")  # as providers make them
LOOPBACK = ("localhost", "127.0.0.1", "::1")


@dataclass
class InterpConfig(Checked, section="interp"):
    """Explanations of features by a chat model, and how well they predict; null base_url: off."""

    base_url: str | None = MISSING  # an OpenAI-compatible endpoint, such as http://host:8000/v1
    model: str | None = MISSING  # as the endpoint calls it
    api_key_env: str | None = MISSING  # environment variable of the key
    price_in: float | None = not_negative()  # of a million tokens of prompt; null: 0, only here
    price_out: float | None = not_negative()  # of a million tokens of answer; likewise
    max_cost: float = not_negative()  # never exceeded, all runs together; in the prices' currency
    per_group: int = positive()  # features explained of each group and baseline
    baselines: list[str] = some_of(*BASELINES)  # bases that are explained as well
    rows: int = positive()  # to fit these
    n_tokens: int = positive()  # read again for excerpts
    width: int = positive()  # tokens of an excerpt
    examples: int = positive()  # excerpts for an explanation
    simulate: int = even()  # held-out excerpts simulated
    detect: int = even()  # held-out excerpts to tell apart
    parallel: int = positive()  # requests at a time
    timeout_s: float = positive()  # seconds for a request
    retries: int = not_negative()  # of a request

    def __post_init__(self) -> None:
        super().__post_init__()
        name = self.api_key_env
        if name is not None and name not in os.environ and not NAME.fullmatch(name):
            hide(name)
            raise UserError("interp.api_key_env must name a variable that is set, not hold a key")
        if self.base_url is None:
            return
        try:
            parts = urlsplit(self.base_url)
            host, _ = parts.hostname, parts.port
        except ValueError:
            host = None
        more = (parts.username, parts.query, parts.fragment) if host else ()
        if not host or parts.scheme not in ("http", "https") or any(more) or KEY.search(parts.path):
            hide(self.base_url)
            raise UserError("interp.base_url must be http(s)://HOST/PATH, without key or query")
        if not self.model:
            raise UserError("interp.model must name the model that interp.base_url is to use")
        prices = (self.price_in, self.price_out)
        if None in prices and host not in LOOPBACK:
            raise UserError("interp.price_in and price_out must be given for a server elsewhere")
        if any(prices) and not self.max_cost > 0:
            raise UserError("interp.max_cost must be positive where tokens have a price")


# All analyses in the report's order, each with its settings. NAME is a choice of the group
# `analysis`, a section of the config (null: off) and the module `analysis/sections/NAME.py`.
ANALYSES: dict[str, type[Any]] = {
    "claims": NoSettings,  # the post's claims, each with a value, an interval and a verdict
    "heatmap": NoSettings,  # MMCS with larger dictionaries, by size and sparsity (figure 1)
    "histograms": NoSettings,  # MCS of each size, tests of bimodality (figures 2, 3, 3.5)
    "sizes": NoSettings,  # numbers of features found again, and without an analogue, by size
    "agreement": NoSettings,  # features found again in larger dictionaries and by other seeds
    "rows": NoSettings,  # agreement of other initial values, other rows, and both
    "consensus": ConsensusConfig,  # what recurs over seeds, as a dictionary; split halves
    "splits": NoSettings,  # what features of one size become in the next, in every seed
    "elsewhere": NoSettings,  # dictionaries of other sites of the harvest, and of other studies
    "crosscoders": NoSettings,  # features that several sites, or two models, share or have alone
    "ridge": NoSettings,  # the best L1 by dictionary size (figures 4, 5)
    "undertraining": NoSettings,  # agreement against activations seen, from snapshots
    "sparsity": NoSettings,  # effective neurons of features (figure 6)
    "frontier": NoSettings,  # reconstruction against sparsity
    "baselines": BaselinesConfig,
    "loss_recovered": LossRecoveredConfig,
    "families": NoSettings,  # kinds of dictionaries side by side at equal size and equal L0
    "effects": EffectsConfig,  # the loss without a feature, against how often it recurs
    "truth": NoSettings,  # toy activations: agreement with the features that made them
    "contexts": ContextsConfig,
    "interp": InterpConfig,
}
