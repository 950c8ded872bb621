"""The schemas of `hydra/launcher=`: ensemble, joblib, ray, submitit_local, submitit_slurm."""

from dataclasses import dataclass
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING

PLUGIN = "hydra_plugins.sparse_dict_launcher"
SHARES = f"{PLUGIN}.share_launchers."


@dataclass
class EnsembleConf:
    """All jobs in one process."""

    _target_: str = f"{PLUGIN}.ensemble_launcher.EnsembleLauncher"


@dataclass
class ShareConf(EnsembleConf):
    """What all launchers share that split the jobs among several processes."""

    _target_: str = MISSING
    n_shares: int = MISSING  # at most; each is trained as one ensemble


@dataclass
class JoblibConf(ShareConf):
    """Processes of this machine."""

    _target_: str = SHARES + "JoblibLauncher"
    gpus: int = MISSING  # share i sees GPU i modulo this number only; 0: all see all


@dataclass
class RayConf(ShareConf):
    """Tasks of a Ray cluster."""

    _target_: str = SHARES + "RayLauncher"
    address: str | None = MISSING  # of the cluster; null starts one on this machine
    num_cpus: float | None = MISSING  # of a share; null, for this machine: its part of the cores
    num_gpus: float = MISSING  # of a share


@dataclass
class SubmititConf(ShareConf):
    """What submitit's executors share."""

    folder: str = MISSING  # where submitit keeps what it sends, and the workers' output
    timeout_min: int = MISSING


@dataclass
class SubmititLocalConf(SubmititConf):
    """Processes of this machine, as Slurm would run them."""

    _target_: str = SHARES + "SubmititLocalLauncher"
    gpus: int = MISSING  # share i sees GPU i modulo this number only; 0: all see all


@dataclass
class SubmititSlurmConf(SubmititConf):
    """Slurm jobs: the options of sbatch, null where the cluster's own default holds."""

    _target_: str = SHARES + "SubmititSlurmLauncher"
    max_num_timeout: int = MISSING  # how often a share that ran out of time is queued again
    partition: str | None = MISSING
    account: str | None = MISSING
    qos: str | None = MISSING
    constraint: str | None = MISSING
    gpus_per_node: int | None = MISSING
    cpus_per_task: int | None = MISSING
    mem_gb: float | None = MISSING
    setup: list[str] = MISSING  # shell commands before the worker starts
    additional_parameters: dict[str, Any] = MISSING  # any other option of sbatch


def store() -> None:
    """Make them known to Hydra; ``conf/hydra/launcher/`` holds the values."""
    config_store = ConfigStore.instance()
    config_store.store(group="hydra/launcher", name="ensemble", node=EnsembleConf)
    for name, node in {
        "joblib": JoblibConf,
        "ray": RayConf,
        "submitit_local": SubmititLocalConf,
        "submitit_slurm": SubmititSlurmConf,
    }.items():
        config_store.store(group="schema/launcher", name=name, node=node)
