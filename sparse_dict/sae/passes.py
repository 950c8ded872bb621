"""One pass over the activations: the dictionaries that share it are trained, measured, written."""

from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from sparse_dict import tracking
from sparse_dict.activations.store import MANIFEST, Activations
from sparse_dict.config import TrainSAEConfig
from sparse_dict.config.sites import SITES
from sparse_dict.errors import UserError
from sparse_dict.machine import runtime
from sparse_dict.sae import ensemble, guidance
from sparse_dict.sae import folder as folders
from sparse_dict.sae.evaluate import Evaluation, evaluate, on_raw
from sparse_dict.sae.member import Member
from sparse_dict.sae.naming import end_values, run_name
from sparse_dict.sae.rows import training_rows
from sparse_dict.sae.schedule import total_steps
from sparse_dict.sae.selection import Selection
from sparse_dict.sae.state import State
from sparse_dict.sae.strategy import FreezePerturb
from sparse_dict.sae.view import View
from sparse_dict.storage.files import read_json, write_csv


@dataclass
class Job:
    """A dictionary that is to be trained."""

    config: TrainSAEConfig
    folder: Path
    record: dict[str, Any]  # what decides its result


def train(jobs: list[Job], activations: Activations) -> list[dict[str, Any] | UserError]:
    """Train dictionaries that share a pass, evaluate and write them.

    Returns:
        Metrics or error of each, in the order given.
    """
    first = jobs[0].config
    device = runtime.device(first.device)
    runtime.allocator()
    eval_start = training_rows(activations, first.training.eval_rows, first.training.batch_size)
    view = View.of(first.activations, activations)
    with ExitStack() as stack:
        openers = [partial(opened, job, activations) for job in jobs]
        runs = stack.enter_context(tracking.together(openers))
        members = []
        for job, run in zip(jobs, runs, strict=True):
            guide = guidance.read(job.config.sae, Path(job.config.lm_dir), activations)
            state = State.initial(job.config, activations.d_in, device, guide)
            pair = None
            if job.config.sae.strategy == "freeze_perturb":
                pair = FreezePerturb.beside(state, job.config, activations.d_in)
            chosen = Selection.of(state, job.config, guide)
            members.append(Member(job.config, job.folder, job.record, run, state, pair, chosen))
        steps = set()
        for member in members:
            try:
                steps.add(member.load_checkpoint())
            except UserError as error:
                member.error = error
        trained = [member for member in members if member.error is None]
        if trained:
            ensemble.train(trained, activations, view, steps.pop())
        whole = [member for member in members if member.error is None]
        dictionaries = [on_raw(member.state, activations.d_in, view) for member in whole]
        evaluations = evaluate(dictionaries, activations, eval_start, device)
        for member, dictionary, numbers in zip(whole, dictionaries, evaluations, strict=True):
            metrics = _metrics(member, numbers, activations, view, len(trained))
            write_csv(member.folder / folders.HISTORY, member.history)
            folders.write(
                member.folder, dictionary, numbers.fire_count, metrics, _hook(activations)
            )
            member.run.summary(end_values(metrics))
            member.run.made("dictionary", member.folder / folders.METRICS)
        for member in members:
            if member.error is not None:
                member.run.finish(exit_code=1)
        return [member.error or read_json(member.folder / folders.METRICS) for member in members]


def opened(job: Job, activations: Activations) -> tracking.Run:
    """The run of a dictionary, which says what it is trained on."""
    name, prints = run_name(asdict(job.config)), {"activations": activations.fingerprint}
    run = tracking.open_run(job.config, "train_sae", name, job.folder, "activations", prints)
    if activations.manifest is not None:
        run.used("activations", activations.folder / MANIFEST)
    return run


def _metrics(
    member: Member, numbers: Evaluation, activations: Activations, view: View, together: int
) -> dict[str, Any]:
    """What `metrics.json` says of a dictionary; errors and codes are in its own, scaled units."""
    config = member.config
    return {
        "dict_size": config.sae.dict_size,
        "l1": config.sae.l1,
        "l1_scaling": config.sae.l1_scaling,
        "tied": config.sae.tied,
        "activation": config.sae.activation,
        "seed": config.seed,
        "d_in": activations.d_in,
        "mse": float((numbers.mse / view.scale**2).mean()),
        "fvu": float((numbers.mse / view.scale**2).mean()) / view.seen_variance,
        "l0": numbers.l0,
        "l1_norm": numbers.l1 / view.unit,
        "dead": int((numbers.fire_count == 0).sum()),
        "eval_rows": numbers.rows,
        "n_activations": total_steps(config) * config.training.batch_size,
        "activations_scale": view.unit,
        "seconds": member.seconds,
        "trained_together": together,
        "record": member.record,
        "config": asdict(config),
        "fingerprints": {"activations": activations.fingerprint},
    }


def _hook(activations: Activations) -> str:
    """TransformerLens' name of the site, for SAELens' metadata."""
    if activations.manifest is None or not {"layer", "site"} <= activations.manifest.keys():
        return "unknown"
    site = SITES.get(activations.manifest["site"])
    return f"blocks.{activations.manifest['layer']}.{site}" if site else "unknown"
