"""The config's section `sae`: the keys of a kind of dictionary, and those of every intervention."""

from dataclasses import make_dataclass
from functools import cache

from hydra.core.config_store import ConfigStore

from sparse_dict.config import SAEConfig
from sparse_dict.sae import architectures, interventions


@cache
def of(name: str) -> type[SAEConfig]:
    """The schema of the kind `name`."""
    kind = architectures.known()[name].Config
    more = (intervention.Config for intervention in interventions.known().values())
    return make_dataclass(kind.__name__, [], bases=(kind, *more))


def register() -> None:
    """Make the schemas known to Hydra."""
    for name in architectures.known():
        ConfigStore.instance().store(
            group="schema/sae", name=name, node=of(name), provider="sparse_dict"
        )
