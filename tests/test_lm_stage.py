"""Stages 1 and 2 from text to shards, on a corpus of a few kilobytes."""

import csv
import json
import logging
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from damage import edited, resealed, written
from fault_study import write_corpus

from sparse_dict.activations import stage as harvest_stage
from sparse_dict.activations.store import Activations
from sparse_dict.config import (
    AdamWConfig,
    BPETokenizer,
    FilesData,
    HarvestConfig,
    HarvestStageConfig,
    LMTrainingConfig,
    ModelConfig,
    StudyLM,
    TrackingConfig,
    TrainLMConfig,
)
from sparse_dict.errors import UserError
from sparse_dict.lm import folder, stage, train
from sparse_dict.machine.interrupt import Interrupted

ROOT = Path(__file__).parent.parent
TRACKING = TrackingConfig("disabled", "p", None, [])


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    base = tmp_path_factory.mktemp("study")
    write_corpus(base / "text.jsonl")
    config = lm_config(base)
    stage.run(config)
    return base


def lm_config(base, **changes):
    values = dict(
        name="tiny", study_dir=str(base), device="cpu", seed=0, tracking=TRACKING,
        lm_dir=str(base / "lm"), cache_dir=str(base / "cache"),
        data=FilesData(0.3, str(base / "text.jsonl"), "text"),
        tokenizer=BPETokenizer(300, 100_000),
        model=ModelConfig(2, 2, 8, 16, 16),
        optimizer=AdamWConfig(1e-2, 0.1, 0.9, 0.95, 0.1, 0.1, 1.0),
        training=LMTrainingConfig(16 * 8 * 30, 8, 1, "fp32", 10, 500, 10, 10),
    )  # fmt: skip
    return TrainLMConfig(**(values | changes))


def one_harvest(**changes):
    return replace(HarvestConfig(0, "mlp_post", 100, "all", 4, 10, "float16"), **changes)


def harvest_config(base, **changes):
    values = dict(
        name="tiny", study_dir=str(base), device="cpu", seed=0, tracking=TRACKING,
        lm_dir=str(base / "lm"), activations_dir=str(base / "activations"),
        cache_dir=str(base / "cache"), data=lm_config(base).data,
        harvest=HarvestConfig(1, "mlp_post", 1_000, "validation", 4, 300, "float16"), lm=StudyLM(),
    )  # fmt: skip
    return HarvestStageConfig(**(values | changes))


def snapshot(path):
    return {str(p): p.read_bytes() for p in path.rglob("*") if p.is_file()}


def test_the_folder_of_a_language_model_is_complete_and_loads(study):
    lm = folder.load(study / "lm")
    record = lm.record
    assert record["baselines"]["unigram"] > record["baselines"]["bigram"] > 0
    assert record["losses"]["val_loss"] < np.log(300)
    assert (record["steps"], record["tokens"]) == (30, 16 * 8 * 30)
    assert record["tokens_per_second"] > 0
    rows = list(csv.DictReader((study / "lm" / "history.csv").open()))
    assert [row["step"] for row in rows] == ["10", "20", "30"]
    assert float(rows[-1]["val_loss"]) == record["losses"]["val_loss"]
    assert not (study / "lm" / "checkpoint").exists()
    assert not lm.model.training
    assert lm.tokenizer.decode(lm.tokenizer.encode_batch(["alpha beta"])[0]) == "alpha beta"


def test_the_recorded_validation_loss_is_that_of_the_loaded_model(study):
    from sparse_dict.text import tokens

    lm = folder.load(study / "lm")
    store = tokens.prepare(lm_config(study).data, lm.tokenizer, study / "cache")
    windows = train.validation_windows(store.split("validation"), 16, 500)
    loss = lm.model.loss(torch.from_numpy(windows[:, :-1]), torch.from_numpy(windows[:, 1:]))
    assert loss.item() == pytest.approx(lm.record["losses"]["val_loss"], rel=1e-5)


def test_the_same_command_again_changes_nothing(study, caplog):
    caplog.set_level(logging.INFO)
    before = snapshot(study / "lm")
    stage.run(lm_config(study, device="auto", cache_dir=str(study / "elsewhere")))
    assert "already trained" in caplog.text
    assert snapshot(study / "lm") == before
    assert not (study / "elsewhere").exists()


def test_another_config_is_refused_by_its_first_key(study):
    training = replace(lm_config(study).training, log_every=3, checkpoint_every=4)
    stage.check(lm_config(study, training=training))  # how often is logged decides nothing
    for change, message in (
        ({"seed": 1}, r"seed is 0 there, 1 now"),
        ({"model": ModelConfig(2, 2, 8, 16, 32)}, r"model\.n_ctx is 16 there, 32 now"),
        ({"training": replace(training, batch_size=9)}, r"training\.batch_size is 8 there"),
    ):
        with pytest.raises(UserError, match=message):
            stage.check(lm_config(study, **change))


def test_a_changed_corpus_is_refused(tmp_path):
    write_corpus(tmp_path / "text.jsonl")
    config = lm_config(tmp_path)
    stage.run(config)
    write_corpus(tmp_path / "text.jsonl", n=401)
    with pytest.raises(UserError, match=r"corpus\.\S+ is .* there, "):
        stage.run(config)


def test_a_stopped_run_is_unfinished_refuses_other_configs_and_goes_on(tmp_path, monkeypatch):
    write_corpus(tmp_path / "text.jsonl")
    config = lm_config(tmp_path)
    batch = train.batch

    def stop_at_12(job, step):
        if step == 12:
            signal.raise_signal(signal.SIGTERM)
        return batch(job, step)

    with monkeypatch.context() as patch:
        patch.setattr(train, "batch", stop_at_12)
        with pytest.raises(Interrupted):
            stage.run(config)
    with pytest.raises(UserError, match="not trained to the end"):
        harvest_stage.check(harvest_config(tmp_path))
    with pytest.raises(UserError, match="seed is 0 there, 5 now"):
        stage.check(lm_config(tmp_path, seed=5))
    stage.run(config)
    other = lm_config(tmp_path, lm_dir=str(tmp_path / "straight"))
    stage.run(other)
    straight = (tmp_path / "straight" / "model.safetensors").read_bytes()
    assert (tmp_path / "lm" / "model.safetensors").read_bytes() == straight


def test_a_corpus_shorter_than_a_context_is_named(tmp_path):
    write_corpus(tmp_path / "text.jsonl", n=6)
    with pytest.raises(UserError, match=r"too few for a context of 5000"):
        stage.run(lm_config(tmp_path, model=ModelConfig(1, 1, 4, 4, 5_000)))
    assert not (tmp_path / "lm").exists()


@pytest.mark.parametrize(
    ("file", "damage", "message"),
    [
        ("model.safetensors", Path.unlink, "does not exist"),
        ("model.safetensors", written(b"x"), "not the file that lm.json"),
        ("lm.json", written(b"[]"), "not a JSON object"),
        ("lm.json", edited(config={}), "lm.json has changed since it was written"),
        ("lm.json", edited(fingerprints={}), "it lacks 'fingerprints.model'"),
        ("lm.json", edited(format_version=7), "is of format version 7, and 1 is read here"),
        ("tokenizer/tokenizer.json", Path.unlink, "does not exist"),
    ],
)
def test_a_damaged_language_model_is_named(study, tmp_path, file, damage, message):
    shutil.copytree(study / "lm", tmp_path / "lm")
    damage(tmp_path / "lm" / file)
    with pytest.raises(UserError, match=message):
        folder.load(tmp_path / "lm")


def test_the_harvest_is_whole_contexts_and_a_second_one_changes_nothing(study, caplog):
    caplog.set_level(logging.INFO)
    harvest_stage.run(harvest_config(study))
    found = Activations.open(study / "activations")
    assert (found.rows, found.d_in) == (1_000 // 16 * 16, 16)
    assert found.manifest["layer"] == 1
    assert (
        found.manifest["fingerprints"]["model"]
        == folder.load(study / "lm").record["fingerprints"]["model"]
    )
    found.verify()
    before = snapshot(study / "activations")
    harvest_stage.run(harvest_config(study))
    assert "already there" in caplog.text
    assert snapshot(study / "activations") == before
    other = replace(harvest_config(study).harvest, layer=0)
    with pytest.raises(UserError, match=r"harvest\.layer is 1 there, 0 now"):
        harvest_stage.check(harvest_config(study, harvest=other))


def test_a_corpus_with_too_few_tokens_gives_what_it_holds(study, caplog, tmp_path):
    harvest = replace(harvest_config(study).harvest, n_tokens=10**7, split="all")
    target = str(tmp_path / "all")
    harvest_stage.run(harvest_config(study, harvest=harvest, activations_dir=target))
    assert "instead of harvest.n_tokens=10,000,000" in caplog.text
    rows = Activations.open(tmp_path / "all").rows
    assert rows > 4_000
    assert rows % 16 == 0
    harvest = replace(harvest, split="validation")
    harvest_stage.run(
        harvest_config(study, harvest=harvest, activations_dir=str(tmp_path / "held out"))
    )
    assert 0.1 < Activations.open(tmp_path / "held out").rows / rows < 0.5


def test_the_manifest_tells_the_columns_of_several_sites(study, tmp_path):
    harvest = replace(
        harvest_config(study).harvest, n_tokens=150, sites=["1/mlp_post", "0/resid_post"],
        skip_first=1,
    )  # fmt: skip
    config = harvest_config(study, harvest=harvest, activations_dir=str(tmp_path / "a"))
    harvest_stage.run(config)
    found = Activations.open(tmp_path / "a")
    assert found.rows == 150
    first, second = found.manifest["sites"]
    d_mlp = first["columns"][1]
    assert (first["site"], first["columns"][0]) == ("1/mlp_post", 0)
    assert (second["site"], second["columns"]) == ("0/resid_post", [d_mlp, found.d_in])
    squares = found.read(0, 150).astype(np.float64) ** 2
    assert first["rms"] == pytest.approx(np.sqrt(squares[:, :d_mlp].mean()), rel=1e-6)
    assert second["rms"] == pytest.approx(np.sqrt(squares[:, d_mlp:].mean()), rel=1e-6)
    assert set(found.manifest["config"]["harvest"]) == {
        "n_tokens", "split", "batch_size", "shard_rows", "dtype", "sites", "skip_first",
    }  # fmt: skip
    other = replace(harvest, sites=["0/resid_post"])
    with pytest.raises(UserError, match=r"harvest\.sites is \['1/mlp_post'"):
        harvest_stage.check(replace(config, harvest=other))


def test_the_manifest_tells_of_the_pre_activations_and_may_lack_it(study, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    config = harvest_config(study, activations_dir=str(tmp_path / "a"))
    harvest_stage.run(config)
    assert "pre-activations, std and linear share" in caplog.text
    path = tmp_path / "a" / "manifest.json"
    manifest = json.loads(path.read_text())
    assert [m["layer"] for m in manifest["pre_activations"]] == [1]
    assert all(m["std"] > 0 and 0 < m["linear"] <= 1 for m in manifest["pre_activations"])
    del manifest["pre_activations"]
    path.write_text(json.dumps(manifest))
    Activations.open(tmp_path / "a").verify()  # the fingerprint is the same
    harvest_stage.check(config)


def test_a_harvest_older_than_a_key_is_as_if_made_with_its_default(study, tmp_path):
    config = harvest_config(study, activations_dir=str(tmp_path / "a"))
    harvest_stage.run(config)
    recorded = Activations.open(tmp_path / "a").manifest["config"]
    assert set(recorded) == {"data", "harvest", "seed"}
    assert set(recorded["harvest"]) == {
        "layer", "site", "n_tokens", "split", "batch_size", "shard_rows", "dtype",
    }  # fmt: skip
    with pytest.raises(UserError, match=r"harvest\.skip_first is 0 there, 1 now"):
        harvest_stage.check(replace(config, harvest=replace(config.harvest, skip_first=1)))


def test_activations_of_another_model_are_refused(study, tmp_path):
    harvest_stage.run(harvest_config(study, activations_dir=str(tmp_path / "a")))
    resealed("fingerprints", model="0" * 16)(tmp_path / "a" / "manifest.json")
    with pytest.raises(UserError, match="model is '0000000000000000' there"):
        harvest_stage.check(harvest_config(study, activations_dir=str(tmp_path / "a")))


def test_the_checks_need_no_heavy_import():
    program = (
        "import sys, sparse_dict.lm.stage, sparse_dict.activations.stage;"
        "heavy = {'torch', 'datasets', 'wandb', 'numba', 'scipy', 'seaborn'} & set(sys.modules);"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
