"""Stage 3: which dictionaries are still to train, which together, and what is written of them."""

import logging
from collections import defaultdict
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from sparse_dict import tracking
from sparse_dict.activations.side_by_side import open_all
from sparse_dict.activations.store import Activations
from sparse_dict.config import TrainSAEConfig, identity
from sparse_dict.errors import UserError, printable
from sparse_dict.machine import runtime
from sparse_dict.sae import architectures, interventions, schedule, usefulness
from sparse_dict.sae import folder as folders
from sparse_dict.sae.rows import check_evaluation_rows, training_rows
from sparse_dict.sae.run_names import run_name
from sparse_dict.sae.scaling import Data, settled
from sparse_dict.storage import lock
from sparse_dict.storage.files import fingerprint, read_json
from sparse_dict.storage.output import Output

log = logging.getLogger(__name__)

Outcome = dict[str, Any] | Exception


@dataclass(eq=False)
class Job:
    """A dictionary that is to be trained."""

    config: TrainSAEConfig  # settled: see `scaling.settled`
    folder: Path
    record: dict[str, Any]  # what decides its result
    step: int = 0  # optimiser steps that its checkpoint has behind it


def _made_from(folder: Path) -> dict[str, Any] | None:
    """Config and activations that `folder`'s dictionary was made of, finished or not."""
    if (folder / folders.METRICS).exists():
        there = read_json(folder / folders.METRICS).get("record")
        return there if isinstance(there, dict) else {}
    meta = folders.read_checkpoint_meta(folder)
    return None if meta is None else dict(meta["record"])


OUTPUT = Output("train_sae", None, folders.METRICS, _made_from)

# Once per process: these cost a pass over the activations, or over their last rows.
_opened = cache(open_all)
_check_last = cache(lambda seen, site, rows: check_evaluation_rows(seen.at(site), rows))


@cache
def _damage(activations: Activations) -> UserError | None:
    try:
        activations.verify()
    except UserError as error:
        return error
    return None


def _record(config: TrainSAEConfig, activations: Activations) -> dict[str, Any]:
    return {"config": identity.record(config), "activations": activations.fingerprint}


def check(config: TrainSAEConfig, folder: Path) -> None:
    """Raise `UserError` if `config` cannot be trained in `folder`; writes nothing."""
    architectures.of(config.sae)
    runtime.check_device(config.device)
    tracking.check(config.tracking)
    schedule.check(config)
    activations = _opened(*config.activations_dirs)
    config = settled(config, activations)
    training_rows(activations, config.training.eval_rows, config.training.batch_size)
    data = Data.of(config, activations)
    _check_last(activations, config.sae.target or config.sae.site, config.training.eval_rows)
    for intervention in interventions.of(config.sae, Path(config.lm_dir), data.x):
        intervention.check()
    OUTPUT.is_finished(folder, _record(config, activations), config)
    _check_companions(folder, activations)


def _check_companions(folder: Path, activations: Activations) -> None:
    """Refuse `folder` beside dictionaries of other activations: they could not be compared."""
    for path in sorted(folder.parent.glob(f"*/{folders.METRICS}")):
        try:
            there = read_json(path)["fingerprints"]["activations"]
        except (UserError, KeyError, TypeError):
            continue
        if there != activations.fingerprint:
            raise UserError(
                f"{folder.parent} holds dictionaries of other activations: choose another name="
            )
        return


def weight(config: TrainSAEConfig) -> int:
    """A dictionary's part of the work of a pass: features that are trained for it."""
    return config.sae.dict_size * (1 + sum(kind.others for kind in interventions.asked(config.sae)))


def objective(metrics: dict[str, Any]) -> tuple[float, float]:
    """What a sweeper such as Optuna minimises: the error, and the number of active features."""
    return metrics["fvu"], metrics["l0"]


def run(config: TrainSAEConfig) -> dict[str, Any]:
    """Train one dictionary in Hydra's output folder; returns its metrics."""
    from hydra.core.hydra_config import HydraConfig

    folder = Path(HydraConfig.get().runtime.output_dir)
    (outcome,) = train_many([config], [folder])
    if isinstance(outcome, Exception):
        raise outcome
    show({folder: asdict(config)}, {})
    return outcome


def train_many(configs: list[TrainSAEConfig], folders_: list[Path]) -> list[Outcome]:
    """Train a dictionary per config, those that can share a pass together; outcomes in order.

    Finished ones are skipped, interrupted ones go on. One that fails, or in whose folder another
    process works, leaves the others alone.
    """
    from sparse_dict.sae import passes  # torch, which checking jobs does not need

    outcomes: dict[int, Outcome] = {}
    waiting: dict[Job, int] = {}
    with ExitStack() as locks:
        for i, (config, folder) in enumerate(zip(configs, folders_, strict=True)):
            try:
                locks.enter_context(lock.holding(folder))
                activations = _opened(*config.activations_dirs)
                config = settled(config, activations)
                job = Job(config, folder, _record(config, activations))
                if finished := OUTPUT.is_finished(folder, job.record, config):
                    outcomes[i] = metrics = dict(folders.read_metrics(folder))
                elif damage := _damage(activations):
                    raise damage
                elif meta := folders.read_checkpoint_meta(folder):
                    job.step = meta["step"]
                OUTPUT.begin(folder)
                if not finished:
                    waiting[job] = i
                    continue
                log.info("%s is already trained", folder)
                # what was left when a process died after it had written a dictionary's last file
                (folder / folders.CHECKPOINT).unlink(missing_ok=True)
                if tracking.remembered(folder):
                    with passes.opened(job, activations) as run:
                        passes.ended(run, job, metrics)
            except UserError as error:
                outcomes[i] = error
        groups = _passes(waiting)
        for number, group in enumerate(groups, start=1):
            if len(groups) > 1:
                log.info("pass %d of %d: %d dictionaries", number, len(groups), len(group))
            results = passes.train(group, _opened(*group[0].config.activations_dirs))
            outcomes.update(zip(map(waiting.__getitem__, group), results, strict=True))
    return [outcomes[i] for i in range(len(configs))]


def _passes(jobs: Iterable[Job]) -> list[list[Job]]:
    """Jobs that can be trained together: at one time they are at the same batch."""
    together: dict[str, list[Job]] = defaultdict(list)
    for job in jobs:
        config = job.config
        training = replace(config.training, rows="all", rows_seed=0)
        shared = [config.activations_dir, asdict(training), config.device, job.step]
        together[fingerprint(shared)].append(job)
    return list(together.values())


def show(jobs: Mapping[Path, Mapping[str, Any]], failed: Mapping[Path, Exception]) -> None:
    """Log a table of what was trained, by folder and config; a name is what varies in the grid."""
    lines, found = [f"{'FVU':>7} {'L0':>7} {'dead':>6} {'seconds':>8}  dictionary"], []
    for folder, config in jobs.items():
        if folder in failed:
            lines.append(f"{'failed':>31}  {run_name(config)}: {failed[folder]}")
            continue
        m = folders.read_metrics(folder)
        found.append(m)
        numbers = f"{m['fvu']:>7.4f} {m['l0']:>7.2f} {m['dead']:>6} {m['seconds']:>8.1f}"
        lines.append(f"{numbers}  {run_name(config)}")
    log.info("\n".join(["dictionaries", *map(printable, lines)]))
    probes = all(config["tracking"]["job_type"] == "probe" for config in jobs.values())
    if not probes and (line := usefulness.warning(found)):  # a probe says itself what to take
        log.warning("%s", line)
