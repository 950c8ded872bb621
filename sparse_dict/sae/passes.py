"""One pass over the activations: the dictionaries that share it are trained, measured, written."""

from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from sparse_dict import tracking
from sparse_dict.activations.store import MANIFEST, Activations
from sparse_dict.config import TrainSAEConfig
from sparse_dict.config.sites import SITES, parse
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
from sparse_dict.sae.sides import Sides
from sparse_dict.sae.state import State
from sparse_dict.sae.strategy import FreezePerturb
from sparse_dict.storage.files import fingerprint, read_json, write_csv


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
    sides = _sides(jobs, activations)
    with ExitStack() as stack:
        openers = [partial(opened, job, activations) for job in jobs]
        runs = stack.enter_context(tracking.together(openers))
        members = []
        for job, run, seen in zip(jobs, runs, sides, strict=True):
            guide = guidance.read(job.config.sae, Path(job.config.lm_dir), seen.x.activations)
            state = State.initial(job.config, seen.x.width, device, seen.y.width, guide)
            pair = None
            if job.config.sae.strategy == "freeze_perturb":
                pair = FreezePerturb.beside(state, job.config)
            chosen = Selection.of(state, job.config, guide)
            members.append(
                Member(job.config, job.folder, job.record, run, seen, state, pair, chosen)
            )
        steps = set()
        for member in members:
            try:
                steps.add(member.load_checkpoint())
            except UserError as error:
                member.error = error
        trained = [member for member in members if member.error is None]
        if trained:
            ensemble.train(trained, steps.pop())
        whole = [member for member in members if member.error is None]
        dictionaries = [on_raw(m.state, m.sides.x.view, m.sides.y.view) for m in whole]
        read = [(m.sides.x.activations, m.sides.y.activations) for m in whole]
        evaluations = evaluate(dictionaries, read, eval_start, device)
        for member, dictionary, numbers in zip(whole, dictionaries, evaluations, strict=True):
            metrics = _metrics(member, numbers, activations, len(trained))
            write_csv(member.folder / folders.HISTORY, member.history)
            sae = member.config.sae
            hook_out = _hook(activations, sae.target) if sae.target else None
            folders.write(
                member.folder, dictionary, numbers.fire_count, metrics,
                _hook(activations, sae.site), hook_out,
            )  # fmt: skip
            member.run.summary(end_values(metrics))
            member.run.made("dictionary", member.folder / folders.METRICS)
        for member in members:
            if member.error is not None:
                member.run.finish(exit_code=1)
        return [member.error or read_json(member.folder / folders.METRICS) for member in members]


def _sides(jobs: list[Job], activations: Activations) -> list[Sides]:
    """What each reads and reconstructs; those that see the same share it."""
    known: dict[str, Sides] = {}
    found = []
    for job in jobs:
        sae, seen = job.config.sae, asdict(job.config.activations)
        key = fingerprint([sae.site, sae.target, seen])
        known.setdefault(key, Sides.of(job.config, activations))
        found.append(known[key])
    return found


def opened(job: Job, activations: Activations) -> tracking.Run:
    """The run of a dictionary, which says what it is trained on."""
    name, prints = run_name(asdict(job.config)), {"activations": activations.fingerprint}
    run = tracking.open_run(job.config, "train_sae", name, job.folder, "activations", prints)
    for folder in activations.folders if activations.manifest is not None else ():
        run.used("activations", folder / MANIFEST)
    return run


def _metrics(
    member: Member, numbers: Evaluation, activations: Activations, together: int
) -> dict[str, Any]:
    """What `metrics.json` says of a dictionary; errors and codes are in its own, scaled units."""
    config, x, y = member.config, member.sides.x, member.sides.y
    transcodes = x is not y
    return {
        "dict_size": config.sae.dict_size,
        "l1": config.sae.l1,
        "l1_scaling": config.sae.l1_scaling,
        "tied": config.sae.tied,
        "activation": config.sae.activation,
        "seed": config.seed,
        "d_in": x.width,
        **({"d_out": y.width} if transcodes else {}),
        **numbers.error(y.view.scale),
        "l0": numbers.l0,
        "l1_norm": numbers.l1 / y.view.unit,
        "dead": int((numbers.fire_count == 0).sum()),
        "eval_rows": numbers.rows,
        "n_activations": total_steps(config) * config.training.batch_size,
        "activations_scale": x.view.unit,
        "seconds": member.seconds,
        "trained_together": together,
        "record": member.record,
        "config": asdict(config),
        "fingerprints": {"activations": activations.fingerprint},
    }


def _hook(activations: Activations, site: str | None) -> str:
    """TransformerLens' name of a site, or of the one there is, for SAELens' metadata."""
    manifest = activations.manifest or {}
    layer, name = manifest.get("layer"), manifest.get("site")
    if site is not None:
        place = parse(site, None, "sae.site")
        layer, name = place.layer, place.name
    known = SITES.get(name) if isinstance(name, str) else None
    return "unknown" if known is None or layer is None else f"blocks.{layer}.{known}"
