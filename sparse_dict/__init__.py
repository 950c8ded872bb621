"""Train a small transformer, learn dictionaries of its activations, and compare them.

The names below are described in docs/api.md; each is imported when it is first used, so that
``import sparse_dict`` costs nothing.
"""

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sparse_dict.activations.store import Activations as Activations
    from sparse_dict.analysis.claim import Claim as Claim
    from sparse_dict.analysis.claim import Lies as Lies
    from sparse_dict.analysis.claim import Words as Words
    from sparse_dict.analysis.claim import judge as judge
    from sparse_dict.analysis.measures.mcs import max_cosine as max_cosine
    from sparse_dict.analysis.measures.mcs import mmcs as mmcs
    from sparse_dict.analysis.study import load_study as load_study
    from sparse_dict.analysis.tables import open_study as open_study
    from sparse_dict.config.sites import Site as Site
    from sparse_dict.errors import UserError as UserError
    from sparse_dict.lm.folder import load as load_lm  # noqa: F401
    from sparse_dict.sae.folder import read as load_dictionary  # noqa: F401

__version__ = "0.1.0"

# Short names for what users call by hand: `python -m sparse_dict.status` is tools/status.py.
__path__.append(str(Path(__file__).with_name("tools")))

_HOME = {
    "Activations": ("activations.store", "Activations"),
    "Claim": ("analysis.claim", "Claim"),
    "Lies": ("analysis.claim", "Lies"),
    "Words": ("analysis.claim", "Words"),
    "Site": ("config.sites", "Site"),
    "UserError": ("errors", "UserError"),
    "judge": ("analysis.claim", "judge"),
    "load_dictionary": ("sae.folder", "read"),
    "load_lm": ("lm.folder", "load"),
    "load_study": ("analysis.study", "load_study"),
    "max_cosine": ("analysis.measures.mcs", "max_cosine"),
    "mmcs": ("analysis.measures.mcs", "mmcs"),
    "open_study": ("analysis.tables", "open_study"),
}

__all__ = [*_HOME]


def __dir__() -> list[str]:
    return [*_HOME, "__version__"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, attribute = _HOME[name]
    return getattr(import_module(f"{__name__}.{module}"), attribute)
