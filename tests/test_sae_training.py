"""Whole trainings: passes, folders, resumption, failures, memory."""

import json
import logging
import os
import signal
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import stopped_at_once
from rounding import rounding
from sae_helpers import begun, config_in, results, sparse_rows

from sparse_dict import tracking
from sparse_dict.activations.writer import ShardWriter
from sparse_dict.errors import UserError
from sparse_dict.machine.interrupt import Interrupted
from sparse_dict.sae import ensemble, folder, stage, step_cpu
from sparse_dict.sae.interventions import Moment
from sparse_dict.sae.interventions.freeze_perturb import FreezePerturb
from sparse_dict.sae.state import State
from sparse_dict.storage import tensor_files

D_IN = 24
ROWS = 5000


@pytest.fixture
def activations_dir(tmp_path: Path) -> Path:
    """A foreign folder of two .npy files whose rows are far from unit RMS."""
    path = tmp_path / "activations"
    path.mkdir()
    x = 7 * sparse_rows(ROWS, D_IN).numpy()
    np.save(path / "a.npy", x[:2000])
    np.save(path / "b.npy", x[2000:].astype(np.float64))
    return path


def test_a_dictionary_on_disk_is_the_one_in_memory_on_raw_activations(activations_dir, tmp_path):
    config = config_in(activations_dir, training={"n_activations": 20_000}, lr=3e-3)
    (metrics,) = stage.train_many([config], [tmp_path / "sae"])
    assert isinstance(metrics, dict)
    trained = folder.read(tmp_path / "sae")
    np.testing.assert_allclose(
        np.linalg.norm(trained.dictionary.W_dec, axis=1), 1, rtol=rounding(D_IN)
    )
    held_out = 7 * sparse_rows(ROWS, D_IN).numpy()[-config.training.eval_rows :]
    codes = trained.dictionary.encode(held_out)
    residual = trained.dictionary.decode(codes) - held_out
    wanted = (residual**2).mean() / held_out.var(axis=0).mean()
    assert metrics["fvu"] == pytest.approx(wanted, rel=1e-4)
    assert metrics["fvu"] == metrics["mse"] / metrics["variance"]
    assert metrics["l0"] == pytest.approx((codes > 0).sum(axis=1).mean(), rel=1e-3)
    assert metrics["dead"] == int((trained.fire_count == 0).sum())
    assert metrics["fvu"] < 0.5  # it has learned something


def test_dictionaries_trained_together_equal_those_trained_alone(activations_dir, tmp_path):
    configs = [
        config_in(activations_dir, dict_size=size, tied=tied, seed=seed)
        for size, tied, seed in [(32, False, 0), (80, False, 1), (32, True, 0)]
    ]
    frozen = {"strategy": "freeze_perturb", "freeze_above": 0.6, "lr": 1e-2}
    configs.append(config_in(activations_dir, dict_size=16, **frozen))
    configs.append(config_in(activations_dir, activation="gated"))  # by the generic step
    stage.train_many(configs, [tmp_path / f"together{i}" for i in range(len(configs))])
    for i, config in enumerate(configs):
        stage.train_many([config], [tmp_path / f"alone{i}"])
        assert results(tmp_path / f"together{i}") == results(tmp_path / f"alone{i}")


def test_an_interrupted_training_goes_on_bit_for_bit(activations_dir, tmp_path, monkeypatch):
    configs = [config_in(activations_dir, activation=kind) for kind in ("relu", "matryoshka")]
    wholes = [tmp_path / "whole relu", tmp_path / "whole matryoshka"]
    stage.train_many(configs, wholes)
    parts = [tmp_path / "relu", tmp_path / "matryoshka"]
    with stopped_at_once(monkeypatch):
        for _ in range(3):  # each run makes one step and is stopped
            with pytest.raises(Interrupted) as stopped:
                stage.train_many(configs, parts)
            assert stopped.value.code == 143
            assert not (parts[0] / folder.METRICS).exists()
    assert folder.read_checkpoint_meta(parts[1])["step"] == 3
    stage.train_many(configs, parts)
    for whole, part in zip(wholes, parts, strict=True):
        assert results(whole) == results(part)
        assert not (part / folder.CHECKPOINT).exists()


@pytest.mark.parametrize("usual", [False, True])
def test_slurms_warning_stops_with_a_checkpoint_and_then_calls_the_earlier_handler(
    activations_dir, tmp_path, monkeypatch, usual
):
    config = config_in(activations_dir, dict_size=16)
    called = []

    def requeue(number, _frame):  # as submitit does
        called.append((number, folder.read_checkpoint_meta(tmp_path / "a")["step"]))
        raise SystemExit(-1)

    log_values = ensemble._log

    def signalled(*arguments):
        log_values(*arguments)
        os.kill(os.getpid(), signal.SIGUSR2)

    monkeypatch.setattr(ensemble, "_log", signalled)
    before = signal.signal(signal.SIGUSR2, signal.SIG_DFL if usual else requeue)
    try:
        with pytest.raises(SystemExit) as ended:
            stage.train_many([config], [tmp_path / "a"])
    finally:
        signal.signal(signal.SIGUSR2, before)
    if usual:
        assert isinstance(ended.value, Interrupted)
    else:
        assert ended.value.code == -1
        assert called == [(signal.SIGUSR2, 3)]
    assert not (tmp_path / "a" / folder.METRICS).exists()


def test_a_signal_during_the_last_step_starts_no_other_pass(activations_dir, tmp_path, monkeypatch):
    first = config_in(activations_dir, dict_size=16)
    other = config_in(activations_dir, dict_size=16, training={"batch_size": 256})
    step = ensemble._Part.step

    def signalled(part, number, seen):
        step(part, number, seen)
        if number == part.last_step:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(ensemble._Part, "step", signalled)
        with pytest.raises(Interrupted):
            stage.train_many([first, other], [tmp_path / "a", tmp_path / "b"])
    assert folder.read_checkpoint_meta(tmp_path / "a")["step"] == 8
    assert folder.read_checkpoint_meta(tmp_path / "b") is None
    stage.train_many([first, other], [tmp_path / "a", tmp_path / "b"])
    stage.train_many([first], [tmp_path / "whole"])
    assert results(tmp_path / "a") == results(tmp_path / "whole")


def test_a_malformed_checkpoint_fails_its_own_dictionary_alone(
    activations_dir, tmp_path, monkeypatch
):
    configs = [config_in(activations_dir, dict_size=size) for size in (16, 24)]
    paths = [tmp_path / "bad", tmp_path / "good"]
    with stopped_at_once(monkeypatch), pytest.raises(Interrupted):
        stage.train_many(configs, paths)
    path = paths[0] / folder.CHECKPOINT
    arrays = tensor_files.read_checkpoint(path)
    arrays["b"] = arrays["b"][:-1].copy()
    tensor_files.write_checkpoint(path, arrays, folder.read_checkpoint_meta(paths[0]))
    bad, good = stage.train_many(configs, paths)
    assert isinstance(bad, UserError)
    assert "malformed" in str(bad)
    assert good["trained_together"] == 1
    (again,) = stage.train_many(configs[:1], paths[:1])  # with nobody left to train
    assert isinstance(again, UserError)


def test_a_run_that_was_killed_after_its_last_file_gets_its_summary_later(
    activations_dir, tmp_path, monkeypatch
):
    config, path = config_in(activations_dir, dict_size=16), tmp_path / "a"
    (metrics,) = stage.train_many([config], [path])
    opened, summaries = [], []

    class FakeRun(tracking.Run):
        def summary(self, values):
            summaries.append(values)

    def open_run(config, job_type, name, folder, step_metric, prints):
        opened.append((job_type, name))
        return FakeRun(None, False, folder / tracking.ID_FILE)

    monkeypatch.setattr(tracking, "open_run", open_run)
    stage.train_many([config], [path])
    assert not opened  # it had finished
    (path / tracking.ID_FILE).write_text("0123456789abcdef")
    stage.train_many([config], [path])
    assert opened == [("train_sae", f"16 · L1 {config.sae.l1:g} · seed {config.seed}")]
    assert summaries[0]["fvu"] == metrics["fvu"]


def test_a_companion_that_turns_non_finite_drops_its_dictionary(
    activations_dir, tmp_path, monkeypatch
):
    beside = FreezePerturb.beside

    def broken(self, state, begin):
        (companion,) = beside(self, state, begin)
        companion.b[0] = float("nan")
        return [companion]

    monkeypatch.setattr(FreezePerturb, "beside", broken)
    (outcome,) = stage.train_many([frozen_config(activations_dir)], [tmp_path / "a"])
    assert "not finite" in str(outcome)
    assert "no checkpoint was written before it" in str(outcome)


def test_a_flipped_byte_in_a_shard_ends_the_training_before_anything_is_written(tmp_path):
    path = tmp_path / "activations"
    rows = sparse_rows(1000, D_IN).numpy()
    writer = ShardWriter(path, len(rows), D_IN, shard_rows=600, dtype="float16", seed=0)
    writer.add(rows, np.zeros((len(rows), 3), np.int32))
    writer.finish({}, {})
    shard = path / "shard-00001.npy"
    content = bytearray(shard.read_bytes())
    content[-2] ^= 1
    shard.write_bytes(content)
    (outcome,) = stage.train_many([config_in(path, dict_size=16)], [tmp_path / "a"])
    assert isinstance(outcome, UserError)
    assert str(shard) in str(outcome)
    assert not list((tmp_path / "a").glob("*.*"))


def test_jobs_that_cannot_share_a_pass_form_several_and_are_shown_in_one_table(
    activations_dir, tmp_path, caplog
):
    configs = [
        config_in(activations_dir, dict_size=size, training={"batch_size": batch_size})
        for size, batch_size in ((16, 512), (24, 256), (32, 512))
    ]
    with caplog.at_level(logging.INFO):
        paths = [tmp_path / f"d{i}" for i in range(4)]
        outcomes = stage.train_many(configs, paths[:3])
        shown = dict(zip(paths, map(asdict, [*configs, configs[0]]), strict=True))
        stage.show(shown, {paths[3]: UserError("no room")})
    assert [m["trained_together"] for m in outcomes] == [2, 1, 2]
    lines = [record.getMessage() for record in caplog.records]
    assert "pass 1 of 2: 2 dictionaries" in lines
    assert "pass 2 of 2: 1 dictionaries" in lines
    *_, shown, warned = lines
    assert warned.endswith("raise training.n_activations")  # eight steps are no training
    title, head, *table = shown.splitlines()
    assert title == "dictionaries"
    assert head.split() == ["FVU", "L0", "dead", "seconds", "dictionary"]
    assert [line.split(maxsplit=4) for line in table[:3]] == [
        [f"{m['fvu']:.4f}", f"{m['l0']:.2f}", str(m["dead"]), f"{m['seconds']:.1f}",
         f"{m['dict_size']} · L1 0.01 · seed 0"]
        for m in outcomes
    ]  # fmt: skip
    assert table[3].split(maxsplit=1) == ["failed", "16 · L1 0.01 · seed 0: no room"]


def test_snapshots_lie_at_the_end_half_and_so_on(activations_dir, tmp_path):
    config = config_in(activations_dir, training={"snapshots": 3})
    stage.train_many([config], [tmp_path / "a"])
    trained = folder.read(tmp_path / "a")
    kept = folder.read_snapshots(trained)
    assert list(kept) == [2 * 512, 4 * 512, 8 * 512]
    np.testing.assert_array_equal(kept[8 * 512], trained.dictionary.W_dec)


def frozen_config(activations_dir):
    return config_in(
        activations_dir, dict_size=16, strategy="freeze_perturb", freeze_above=0.6, lr=1e-2,
        training={"n_activations": 40 * 512},
    )  # fmt: skip


def test_freezing_keeps_convergent_features_and_moves_the_others(activations_dir):
    config = frozen_config(activations_dir)
    state = State.initial(config, D_IN, D_IN, torch.device("cpu"))
    pair = FreezePerturb(config.sae, Path(), None)
    (companion,) = pair.beside(state, lambda seed: begun(replace(config, seed=seed), D_IN))
    companion.W_dec[:5] = state.W_dec[:5]  # found by both
    before = state.W_dec.clone()
    pair.after_step([state, companion], Moment(2, 100, 0, None, None, None))
    frozen = (before @ companion.W_dec.T).amax(1) > 0.6
    assert frozen[:5].all()
    moved = (state.W_dec - before).norm(dim=1)
    assert (moved[:5] == 0).all()
    assert (moved[~pair.frozen[0]] > 0.2).all()
    torch.testing.assert_close(state.W_dec.norm(dim=1), torch.ones(16))
    state.params["W_dec"] += 1.0  # an optimiser step on everything
    pair.after_step([state, companion], Moment(3, 100, 0, None, None, None))
    assert torch.equal(state.W_dec[:5], before[:5])


def test_freeze_perturb_is_resumed_bit_for_bit(activations_dir, tmp_path, monkeypatch):
    config = frozen_config(activations_dir)
    stage.train_many([config], [tmp_path / "whole"])
    with stopped_at_once(monkeypatch):
        for _ in range(5):
            with pytest.raises(Interrupted):
                stage.train_many([config], [tmp_path / "parts"])
    stage.train_many([config], [tmp_path / "parts"])
    assert results(tmp_path / "whole") == results(tmp_path / "parts")


def test_finished_dictionaries_are_skipped_and_new_ones_trained(activations_dir, tmp_path):
    first = config_in(activations_dir, dict_size=16)
    stage.train_many([first], [tmp_path / "a"])
    before = (tmp_path / "a" / folder.METRICS).stat().st_mtime_ns
    second = config_in(activations_dir, dict_size=32)
    outcomes = stage.train_many([first, second], [tmp_path / "a", tmp_path / "b"])
    assert [outcome["dict_size"] for outcome in outcomes] == [16, 32]
    assert (tmp_path / "a" / folder.METRICS).stat().st_mtime_ns == before


def test_a_finished_folder_of_another_config_is_refused_and_names_the_key(
    activations_dir, tmp_path
):
    stage.train_many([config_in(activations_dir, dict_size=16)], [tmp_path / "a"])
    before = (tmp_path / "a" / folder.WEIGHTS).read_bytes()
    other = config_in(activations_dir, dict_size=24)
    with pytest.raises(UserError, match=r"sae\.dict_size is 16 there, 24 now"):
        stage.check(other, tmp_path / "a")
    (outcome,) = stage.train_many([other], [tmp_path / "a"])
    assert isinstance(outcome, UserError)
    assert (tmp_path / "a" / folder.WEIGHTS).read_bytes() == before


def test_a_folder_trained_on_other_activations_is_refused(activations_dir, tmp_path):
    config = config_in(activations_dir, dict_size=16)
    stage.train_many([config], [tmp_path / "a"])
    other = tmp_path / "other"
    other.mkdir()
    np.save(other / "x.npy", sparse_rows(ROWS, D_IN, seed=9).numpy())
    config = replace(config, activations_dir=str(other))
    with pytest.raises(UserError, match=r"activations is .* there"):
        stage.check(config, tmp_path / "a")
    with pytest.raises(UserError, match="holds dictionaries of other activations"):
        stage.check(config, tmp_path / "b")  # a new one in the same study
    stage.check(config, tmp_path / "another study" / "b")


def test_a_member_that_turns_non_finite_is_dropped_and_the_others_go_on(activations_dir, tmp_path):
    good = config_in(activations_dir, dict_size=16)
    bad = config_in(activations_dir, dict_size=16, lr=1e38)
    outcomes = stage.train_many([good, bad], [tmp_path / "good", tmp_path / "bad"])
    assert isinstance(outcomes[0], dict)
    assert isinstance(outcomes[1], UserError)
    assert "not finite" in str(outcomes[1])
    assert not (tmp_path / "bad" / folder.METRICS).exists()
    stage.train_many([good], [tmp_path / "alone"])
    assert results(tmp_path / "good") == results(tmp_path / "alone")


def test_more_activations_than_rows_means_several_passes(activations_dir, tmp_path):
    config = config_in(activations_dir, training={"n_activations": 3 * ROWS})
    (metrics,) = stage.train_many([config], [tmp_path / "a"])
    assert isinstance(metrics, dict)
    assert metrics["n_activations"] == 30 * 512  # rounded up to whole batches


@pytest.mark.parametrize(
    ("training", "message"),
    [
        ({"batch_size": 5000}, "too few for training.eval_rows=256 and training.batch_size=5000"),
        ({"eval_rows": 5000}, "too few"),
    ],
)
def test_a_batch_larger_than_the_data_is_refused(activations_dir, tmp_path, training, message):
    with pytest.raises(UserError, match=message):
        stage.check(config_in(activations_dir, training=training), tmp_path / "a")


@pytest.mark.parametrize("damage", ["truncate", "shape", "nan", "missing", "not json"])
def test_a_broken_folder_is_a_named_error(activations_dir, tmp_path, damage):
    from safetensors.numpy import load_file, save_file

    stage.train_many([config_in(activations_dir, dict_size=16)], [tmp_path / "a"])
    path = tmp_path / "a" / folder.WEIGHTS
    if damage == "truncate":
        path.write_bytes(path.read_bytes()[:-100])
    elif damage == "missing":
        path.unlink()
    elif damage == "not json":
        (tmp_path / "a" / folder.METRICS).write_text("{")
    else:
        tensors = load_file(path)
        if damage == "shape":
            tensors["b_enc"] = tensors["b_enc"][:-1].copy()
        else:
            tensors["W_dec"][0, 0] = np.nan
        save_file(tensors, path)
    with pytest.raises(UserError, match=str(tmp_path / "a")):
        folder.read(tmp_path / "a")


KINDS = [
    {},
    {"activation": "topk", "k": 3, "l1": 0.0},
    {"activation": "batch_topk", "k": 3, "l1": 0.0},
    {"activation": "jumprelu", "l0": 1e-3, "l1": 0.0},
    {"activation": "gated", "l1": 0.1},
    {"activation": "matryoshka", "k": 3, "l1": 0.0},
]


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_every_kind_reloads_as_what_was_trained(activations_dir, tmp_path, kind):
    (metrics,) = stage.train_many([config_in(activations_dir, **kind)], [tmp_path / "a"])
    trained = folder.read(tmp_path / "a")
    held_out = 7 * sparse_rows(ROWS, D_IN).numpy()[-256:]
    codes = trained.dictionary.encode(held_out)
    assert metrics["l0"] == pytest.approx((codes > 0).sum() / 256, rel=1e-3)
    if kind.get("activation") == "topk":
        assert ((codes > 0).sum(axis=1) <= 3).all()
    if kind.get("activation") in ("batch_topk", "matryoshka"):
        assert (codes > 0).sum() / 256 == pytest.approx(3, rel=0.2)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_saelens_opens_a_dictionary_and_computes_the_same(activations_dir, tmp_path, kind):
    sae_lens = pytest.importorskip("sae_lens")
    stage.train_many([config_in(activations_dir, **kind)], [tmp_path / "a"])
    x = 7 * sparse_rows(50, D_IN, seed=3)
    sae = sae_lens.SAE.load_from_disk(tmp_path / "a")
    ours = folder.read(tmp_path / "a").dictionary
    codes = ours.encode(x.numpy())
    torch.testing.assert_close(sae.encode(x), torch.from_numpy(codes), rtol=1e-4, atol=1e-5)
    want = torch.from_numpy(ours.decode(codes))
    torch.testing.assert_close(sae(x), want, rtol=1e-4, atol=1e-5)


def test_metrics_say_which_activations_they_come_from(activations_dir, tmp_path):
    from sparse_dict.activations.store import Activations

    stage.train_many([config_in(activations_dir)], [tmp_path / "a"])
    metrics = json.loads((tmp_path / "a" / folder.METRICS).read_text())
    fingerprint = Activations.open(activations_dir).fingerprint
    assert metrics["fingerprints"]["activations"] == fingerprint


PEAK = """
import resource, sys
from pathlib import Path
from dataclasses import asdict, replace
from sae_helpers import sae_config
from sparse_dict.sae import ensemble, evaluate, stage

BATCH = 512 if sys.argv[4] == "none" else 4096

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

def grid(steps):
    training = {"n_activations": steps * BATCH, "batch_size": BATCH, "eval_rows": 4096}
    config = sae_config(dict_size=4096, dead=sys.argv[4], training=training)
    config = replace(config, activations_dir=sys.argv[1])
    return [config, replace(config, sae=replace(config.sae, dict_size=64))]

folder = Path(sys.argv[2])
stage.train_many(grid(1)[1:], [folder / "everything is loaded"])
imports = peak()
stage.train_many(grid(int(sys.argv[3])), [folder / "large", folder / "small"])
print(peak() - imports)
"""


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("dead", ["none", "auxk", "resample"])
def test_memory_is_bounded_by_the_parameters_and_does_not_grow_with_the_training(
    activations_dir, tmp_path, dead
):
    tests = Path(__file__).parent
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tests), str(tests.parent)])}
    np.save(activations_dir / "c.npy", 7 * sparse_rows(ROWS, D_IN, seed=1).numpy())

    def peak_mib(steps: int) -> float:
        """Of a process that trains so long, above what it takes to train one small dictionary."""
        folders = [str(activations_dir), str(tmp_path / str(steps))]
        command = [sys.executable, "-c", PEAK, *folders, str(steps), dead]
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=100)
        assert done.returncode == 0, done.stderr
        return float(done.stdout)

    short = peak_mib(20)
    parameters = 4096 * (2 * step_cpu.padded(D_IN) + 1) * 4 / 2**20
    # the codes of all rows, or of a batch, would take 64, and auxk makes several such arrays
    assert short < 6 * parameters + (64 if dead == "none" else 256)
    if dead == "none":
        assert peak_mib(200) - short < 8
