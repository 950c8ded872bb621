"""The config's section `sae`: the keys of a kind of dictionary, and those of interventions."""

from dataclasses import make_dataclass
from functools import cache
from itertools import combinations

from hydra.core.config_store import ConfigStore

from sparse_dict.config import SAEConfig
from sparse_dict.sae import architectures, interventions


@cache
def of(name: str, chosen: tuple[str, ...] | None = None) -> type[SAEConfig]:
    """The schema of the kind `name` with interventions of these names; None: with all."""
    kind, known = architectures.known()[name].Config, interventions.known()
    more = (known[one].Config for one in (interventions.keys() if chosen is None else chosen))
    return make_dataclass(kind.__name__, [], bases=(kind, *more))


def register() -> None:
    """Make the schemas known to Hydra."""
    store, keyed = ConfigStore.instance(), sorted(interventions.keys(), reverse=True)
    for chosen in (some for n in range(len(keyed) + 1) for some in combinations(keyed, n)):
        group = f"schema/sae/{'_'.join(chosen) or 'none'}"
        for name in architectures.known():
            store.store(group=group, name=name, node=of(name, chosen), provider="sparse_dict")
