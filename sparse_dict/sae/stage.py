"""Stage 3: which dictionaries are still to train, which together, and what is written of them."""

import csv
import io
import logging
from collections import defaultdict
from contextlib import ExitStack
from dataclasses import asdict
from functools import cache, partial
from pathlib import Path
from typing import Any

from sparse_dict import tracking
from sparse_dict.activations.store import Activations
from sparse_dict.config import TrainSAEConfig, identity
from sparse_dict.config.sites import SITES
from sparse_dict.errors import UserError
from sparse_dict.machine import runtime
from sparse_dict.sae import folder as folders
from sparse_dict.sae.rows import training_rows
from sparse_dict.storage import lock
from sparse_dict.storage.files import fingerprint, read_json, write_text

log = logging.getLogger(__name__)

Outcome = dict[str, Any] | Exception

# Once per process: the moments of a foreign folder cost a pass over it.
_open = cache(Activations.open)


@cache
def _damage(activations: Activations) -> UserError | None:
    """What is wrong with the shards, which are read whole for it, once per process."""
    try:
        activations.verify()
    except UserError as error:
        return error
    return None


def _record(config: TrainSAEConfig, activations: Activations) -> dict[str, Any]:
    """What decides the result: the config's part in it, and the activations."""
    return {"config": identity.record(config), "activations": activations.fingerprint}


def check(config: TrainSAEConfig, folder: Path) -> None:
    """Raise `UserError` if `config` cannot be trained in `folder`; writes nothing.

    That includes a folder which holds a result of another config or of other activations.
    """
    runtime.check_device(config.device)
    tracking.check(config.tracking)
    activations = _open(Path(config.activations_dir))
    training_rows(activations, config.training.eval_rows, config.training.batch_size)
    if activations.rms**2 - (activations.mean**2).mean() <= 1e-12 * activations.rms**2:
        raise UserError(
            f"{activations.folder}: all rows are the same, so there is nothing to learn"
        )
    _is_finished(config, folder, activations)
    _check_companions(folder, activations)


def _check_companions(folder: Path, activations: Activations) -> None:
    """Refuse `folder` beside dictionaries of other activations: they could not be compared.

    A dictionary that cannot be read says nothing; the first that can speaks for all.
    """
    for path in sorted(folder.parent.glob(f"*/{folders.METRICS}")):
        try:
            there = read_json(path)["fingerprints"]["activations"]
        except (UserError, KeyError, TypeError):
            continue
        if there != activations.fingerprint:
            raise UserError(
                f"{folder.parent} holds dictionaries of other activations ({there} there, "
                f"{activations.fingerprint} here): choose another name= or remove them"
            )
        return


def weight(config: TrainSAEConfig) -> float:
    """A dictionary's part of an ensemble's work, by which launchers split a grid."""
    return config.sae.dict_size


def objective(metrics: dict[str, Any]) -> tuple[float, float]:
    """What a sweeper such as Optuna makes small: the error, and the number of active features."""
    return metrics["fvu"], metrics["l0"]


def _is_finished(config: TrainSAEConfig, folder: Path, activations: Activations) -> bool:
    """Whether `folder` already holds the dictionary of this config and these activations.

    Raises:
        UserError: it holds, or holds the beginning of, another one.
    """
    record = _record(config, activations)
    if (folder / folders.METRICS).exists():
        there, finished = read_json(folder / folders.METRICS).get("record"), True
    else:
        meta = folders.read_checkpoint_meta(folder)
        if meta is None:
            return False
        there, finished = meta["record"], False
    there = there if isinstance(there, dict) else {}
    identity.refuse_another(folder, there.get("config"), record["config"], config)
    own = {"activations": there.get("activations")}
    identity.refuse_another(folder, own, {"activations": record["activations"]})
    return finished


def run(config: TrainSAEConfig) -> dict[str, Any]:
    """Train one dictionary in Hydra's output folder; returns its metrics."""
    from hydra.core.hydra_config import HydraConfig

    (outcome,) = train_many([config], [Path(HydraConfig.get().runtime.output_dir)])
    if isinstance(outcome, Exception):
        raise outcome
    return outcome


def train_many(configs: list[TrainSAEConfig], folders_: list[Path]) -> list[Outcome]:
    """Train a dictionary per config, those that can share a pass together.

    Finished ones are skipped, interrupted ones go on. A dictionary that fails, or in whose folder
    another process works, gives its exception and leaves the others alone.

    Returns:
        Metrics or exception of each, in the order given.
    """
    with ExitStack() as locks:
        return _train_many(configs, folders_, locks)


def _train_many(
    configs: list[TrainSAEConfig], folders_: list[Path], locks: ExitStack
) -> list[Outcome]:
    outcomes: dict[int, Outcome] = {}
    passes: dict[str, list[int]] = defaultdict(list)
    for i, (config, folder) in enumerate(zip(configs, folders_, strict=True)):
        try:
            locks.enter_context(lock.holding(folder))
            activations = _open(Path(config.activations_dir))
            if _is_finished(config, folder, activations):
                outcomes[i] = read_json(folder / folders.METRICS)
                _finish_what_was_killed(config, folder, outcomes[i])
                log.info("%s is already trained", folder)
                continue
            if damage := _damage(activations):
                raise damage
            meta = folders.read_checkpoint_meta(folder)
        except UserError as error:
            outcomes[i] = error
            continue
        together = [config.activations_dir, config.device, asdict(config.activations)]
        step = meta["step"] if meta else 0
        passes[fingerprint([*together, asdict(config.training), step])].append(i)
    for number, indices in enumerate(passes.values(), start=1):
        if len(passes) > 1:
            log.info("pass %d of %d: %d dictionaries", number, len(passes), len(indices))
        results = _train_pass([configs[i] for i in indices], [folders_[i] for i in indices])
        outcomes.update(zip(indices, results, strict=True))
    finished = [outcomes[i] for i in range(len(configs))]
    _show(folders_, finished)
    return finished


def _finish_what_was_killed(config: TrainSAEConfig, folder: Path, metrics: Any) -> None:
    """Do what a process had still to do that died after a dictionary's last file was written."""
    (folder / folders.CHECKPOINT).unlink(missing_ok=True)
    if (folder / tracking.ID_FILE).exists():
        with tracking.open_run(config, "train_sae", folder.name, folder, "activations") as run:
            run.summary(_numbers(metrics))


def _numbers(metrics: dict[str, Any]) -> dict[str, int | float]:
    return {key: value for key, value in metrics.items() if isinstance(value, int | float)}


def _train_pass(configs: list[TrainSAEConfig], paths: list[Path]) -> list[Outcome]:
    """Train dictionaries that share a pass, evaluate and write them."""
    from sparse_dict.sae import ensemble
    from sparse_dict.sae.evaluate import evaluate, on_raw
    from sparse_dict.sae.state import State
    from sparse_dict.sae.strategy import FreezePerturb

    first = configs[0]
    activations = _open(Path(first.activations_dir))
    device = runtime.device(first.device)
    runtime.allocator()
    eval_start = training_rows(activations, first.training.eval_rows, first.training.batch_size)
    scale = ensemble.scale_of(first, activations)
    with ExitStack() as stack:
        runs = stack.enter_context(
            tracking.together(
                [
                    partial(tracking.open_run, c, "train_sae", path.name, path, "activations")
                    for c, path in zip(configs, paths, strict=True)
                ]
            )
        )
        members = []
        for config, path, run in zip(configs, paths, runs, strict=True):
            record = _record(config, activations)
            state = State.initial(config, activations.d_in, device)
            pair = None
            if config.sae.strategy == "freeze_perturb":
                pair = FreezePerturb.beside(state, config, activations.d_in)
            members.append(ensemble.Member(config, path, record, run, state, pair))
        steps = set()
        for member in members:
            try:
                steps.add(member.load_checkpoint())
            except UserError as error:
                member.error = error
        trained = [member for member in members if member.error is None]
        if trained:
            ensemble.train(trained, activations, steps.pop())
        whole = [member for member in members if member.error is None]
        dictionaries = [on_raw(member.state, activations.d_in, scale) for member in whole]
        evaluations = evaluate(dictionaries, activations, eval_start, device)
        for member, dictionary, numbers in zip(whole, dictionaries, evaluations, strict=True):
            metrics = {
                "dict_size": member.config.sae.dict_size,
                "l1": member.config.sae.l1,
                "l1_scaling": member.config.sae.l1_scaling,
                "tied": member.config.sae.tied,
                "activation": member.config.sae.activation,
                "seed": member.config.seed,
                "d_in": activations.d_in,
                "mse": numbers.mse / scale**2,
                "fvu": numbers.mse / ensemble.variance(activations),
                "l0": numbers.l0,
                "l1_norm": numbers.l1 / scale,
                "dead": int((numbers.fire_count == 0).sum()),
                "eval_rows": numbers.rows,
                "n_activations": ensemble.total_steps(first) * first.training.batch_size,
                "activations_scale": scale,
                "seconds": member.seconds,
                "trained_together": len(trained),
                "record": member.record,
                "config": asdict(member.config),
                "fingerprints": {"activations": activations.fingerprint},
            }
            _write(member, dictionary, numbers.fire_count, metrics, _hook(activations))
            member.run.summary(_numbers(metrics))
        for member in members:
            if member.error is not None:
                member.run.finish(exit_code=1)
        return [member.error or read_json(member.folder / folders.METRICS) for member in members]


def _hook(activations: Activations) -> str:
    """TransformerLens' name of the site, which is what SAELens' metadata speak of."""
    if activations.manifest is None or not {"layer", "site"} <= activations.manifest.keys():
        return "unknown"
    site = SITES.get(activations.manifest["site"])
    return f"blocks.{activations.manifest['layer']}.{site}" if site else "unknown"


def _write(
    member: Any, dictionary: folders.Dictionary, fire_count: Any, metrics: dict[str, Any], site: str
) -> None:
    table = io.StringIO()
    writer = csv.DictWriter(table, fieldnames=list(member.history[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(member.history)
    write_text(member.folder / "history.csv", table.getvalue())
    folders.write(member.folder, dictionary, fire_count, metrics, site)


def _show(paths: list[Path], outcomes: list[Outcome]) -> None:
    """Log a table of what was trained."""
    lines = [f"{'size':>6} {'l1':>9} {'FVU':>7} {'L0':>7} {'dead':>6} {'seconds':>8}  folder"]
    for path, outcome in zip(paths, outcomes, strict=True):
        if isinstance(outcome, Exception):
            lines.append(f"{'failed':>48}  {path.name}: {outcome}")
        else:
            m = outcome
            lines.append(
                f"{m['dict_size']:>6} {m['l1']:>9.2e} {m['fvu']:>7.4f} {m['l0']:>7.2f} "
                f"{m['dead']:>6} {m['seconds']:>8.1f}  {path.name}"
            )
    log.info("dictionaries\n%s", "\n".join(lines))
