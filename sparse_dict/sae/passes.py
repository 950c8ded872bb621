"""One pass over the activations: the dictionaries that share it are trained, measured, written."""

from collections import defaultdict
from contextlib import ExitStack
from dataclasses import asdict
from functools import partial
from typing import Any

import torch

from sparse_dict import tracking
from sparse_dict.activations.store import MANIFEST, Activations
from sparse_dict.errors import UserError
from sparse_dict.machine import runtime
from sparse_dict.machine.threads import balanced
from sparse_dict.sae import ensemble
from sparse_dict.sae import folder as folders
from sparse_dict.sae.evaluate import Evaluation, evaluate, on_raw
from sparse_dict.sae.origin import of_activations
from sparse_dict.sae.rows import training_rows
from sparse_dict.sae.run_names import end_values, run_name
from sparse_dict.sae.scaling import Data
from sparse_dict.sae.schedule import total_steps
from sparse_dict.sae.stage import Job, weight
from sparse_dict.sae.trainee import Trainee
from sparse_dict.storage.files import fingerprint, read_json, write_csv


def train(own: list[Job], activations: Activations) -> list[dict[str, Any] | UserError]:
    """Train dictionaries that share a pass, evaluate and write them; metrics or error of each."""
    runtime.allocator()
    runtime.steady_products()
    training = own[0].config.training
    eval_start = training_rows(activations, training.eval_rows, training.batch_size)
    with ExitStack() as stack:
        openers = [partial(opened, job, activations) for job in own]
        runs = dict(zip(own, stack.enter_context(tracking.together(openers)), strict=True))
        trainees: dict[Job, Trainee] = {}
        groups = []
        for device, seeing_the_same in parts(own):
            data = Data.of(seeing_the_same[0].config, activations)
            group = [Trainee.begun(job, runs[job], data, device) for job in seeing_the_same]
            trainees |= zip(seeing_the_same, group, strict=True)
            groups.append([trainee for trainee in group if trainee.error is None])
        trained = sum(map(len, groups))
        if trained:
            ensemble.train([group for group in groups if group], own[0].step)
        whole = [trainees[job] for job in own if trainees[job].error is None]
        dictionaries = [on_raw(t.state, t.data.x_scaling, t.data.y_scaling) for t in whole]
        read = [(t.data.x, t.data.y) for t in whole]
        evaluations = evaluate(dictionaries, read, eval_start, runtime.device(own[0].config.device))
        for trainee, dictionary, numbers in zip(whole, dictionaries, evaluations, strict=True):
            metrics = _metrics(trainee, numbers, activations.fingerprint, trained)
            folder, sae = trainee.job.folder, trainee.config.sae
            write_csv(folder / folders.HISTORY, trainee.history)
            hook_out = of_activations(activations, sae.target).hook if sae.target else None
            folders.write(
                folder, dictionary, numbers.fire_count, metrics,
                of_activations(activations, sae.site).hook, hook_out,
            )  # fmt: skip
            ended(trainee.run, trainee.job, metrics)
        for trainee in trainees.values():
            if trainee.error is not None:
                trainee.run.finish(exit_code=1)
        return [trainees[job].error or read_json(job.folder / folders.METRICS) for job in own]


def opened(job: Job, activations: Activations) -> tracking.Run:
    """The run of a dictionary, which says what it is trained on."""
    name, prints = run_name(asdict(job.config)), {"activations": activations.fingerprint}
    run = tracking.open_run(job.config, "train_sae", name, job.folder, "activations", prints)
    for folder in activations.folders if activations.manifest is not None else ():
        run.used("activations", folder / MANIFEST)
    return run


def ended(run: tracking.Run, job: Job, metrics: dict[str, Any]) -> None:
    """Tell the run of a dictionary that is written."""
    run.summary(end_values(metrics))
    weights = [job.folder / name for name in (folders.WEIGHTS, folders.CONFIG)]
    sent = weights if job.config.tracking.upload == "weights" else []
    run.made("dictionary", job.folder / folders.METRICS, *sent)


def _metrics(
    trainee: Trainee, numbers: Evaluation, activations: str, together: int
) -> dict[str, Any]:
    config, data = trainee.config, trainee.data
    return {
        "dict_size": config.sae.dict_size,
        "l1": config.sae.l1,
        "l1_scaling": config.sae.l1_scaling,
        "tied": config.sae.tied,
        "activation": config.sae.activation,
        "seed": config.seed,
        "d_in": data.x.d_in,
        **({} if data.x is data.y else {"d_out": data.y.d_in}),
        **numbers.metrics(data.y_scaling.scale, data.y_scaling.unit),
        "n_activations": total_steps(config) * config.training.batch_size,
        "activations_scale": data.x_scaling.unit,
        "seconds": trainee.seconds,
        "trained_together": together,
        "record": trainee.job.record,
        "config": asdict(config),
        "fingerprints": {"activations": activations},
    }


def parts(jobs: list[Job]) -> list[tuple[torch.device, list[Job]]]:
    """Jobs of a pass by device, about the same work on each, and by what they see."""
    devices = training_devices(jobs[0].config.device)
    loads = [weight(job.config) for job in jobs]
    seen: dict[tuple[torch.device, str], list[Job]] = defaultdict(list)
    for device, share in zip(devices, balanced(loads, len(devices)), strict=False):
        for job in (jobs[i] for i in share):
            training, sae = job.config.training, job.config.sae
            rows, columns = [training.rows, training.rows_seed], [sae.site, sae.target]
            sees = fingerprint([rows, columns, asdict(job.config.activations)])
            seen[device, sees].append(job)
    return [(device, own) for (device, _), own in seen.items()]


def training_devices(name: str) -> list[torch.device]:
    """Every GPU for ``cuda``, and for ``auto`` if that chooses cuda; else the device named."""
    device = runtime.device(name)
    if device.type == "cuda" and device.index is None:
        return [torch.device("cuda", i) for i in range(torch.cuda.device_count())]
    return [device]
