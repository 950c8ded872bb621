import logging.config
from pathlib import Path

import hydra
import numpy as np
import pytest
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import ConfigCompositionException
from hydra.types import RunMode
from omegaconf import OmegaConf
from sae_helpers import sparse_rows
from test_cli_errors import ROOT, run

from sparse_dict.config.identity import differences
from sparse_dict.launch import jobs
from sparse_dict.launch.explain import in_one_line
from sparse_dict.sae import interventions


def composed(*overrides: str):
    with hydra.initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return jobs.typed(hydra.compose("train_sae", list(overrides)))


@pytest.mark.parametrize("experiment", ["demo", "toy", "consistency", "strategies"])
def test_an_experiments_l1_is_for_relu_and_the_others_are_made_sparse_by_k_or_l0(experiment: str):
    assert composed(f"experiment={experiment}").sae.l1 > 0
    for kind in ("topk", "batch_topk", "jumprelu"):
        assert composed(f"experiment={experiment}", f"sae={kind}").sae.l1 == 0
    assert composed(f"experiment={experiment}", "sae=topk", "sae.l1=0.5").sae.l1 == 0.5


def test_keys_of_an_intervention_are_there_where_it_is_chosen():
    own = {key for keys in interventions.keys().values() for key in keys}
    assert len(own) == 10
    assert not own & vars(composed("sae=topk").sae).keys()
    both = composed("sae=topk", "intervention=guide_freeze_perturb", "sae.guide=select").sae
    assert own | {"k"} <= vars(both).keys()
    assert {kind.__name__ for kind in interventions.asked(both)} == {"Guide", "FreezePerturb"}
    with pytest.raises(ConfigCompositionException) as error:
        composed("sae.guide=select")
    assert in_one_line(error.value) == "no key sae.guide: it comes with intervention=guide"


def test_records_with_keys_of_an_intervention_that_did_nothing_are_those_without():
    plain = composed()
    before = {**vars(plain.sae), "guide": "none", "guide_keep": 0.5, "strategy": "plain"}
    assert differences(before, vars(plain.sae), plain.sae) == []
    assert differences({**before, "guide": "select"}, vars(plain.sae), plain.sae) == [
        "guide is 'select' there, 'none' now"
    ]


def test_what_stands_in_an_experiment_and_what_is_typed_are_one_config(tmp_path: Path):
    (tmp_path / "experiment").mkdir()
    mine = tmp_path / "experiment" / "mine.yaml"
    mine.write_text("# @package _global_\nsae:\n  dict_size: 128\n")
    there = f"hydra.searchpath=[file://{ROOT}/conf/train_sae,file://{tmp_path}]"
    assert composed(there, "experiment=mine") == composed("sae.dict_size=128")
    np.save(tmp_path / "rows.npy", sparse_rows(9, 24).numpy())
    rows = f"activations_dir={tmp_path}"
    probe = composed("experiment=probe", rows)
    assert probe.sae.dict_size == 48
    assert composed(there, rows, "experiment=[mine,probe]") == probe
    assert composed(there, rows, "experiment=[probe,mine]").sae.dict_size == 128


GRIDS = [
    "artefact", "artefact_divided", "consensus", "consensus_toy", "consistency", "halves",
    "neuron_basis", "other_model", "sites", "splits", "stability", "strategies", "toy",
    "toy_divided",
]  # fmt: skip


@pytest.mark.parametrize("experiment", GRIDS)
def test_an_experiments_grid_composes_at_both_ends_and_needs_no_m(experiment: str):
    with hydra.initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        cfg = hydra.compose("train_sae", [f"experiment={experiment}"], return_hydra_config=True)
    assert cfg.hydra.mode.name == "MULTIRUN"
    grid = {key: str(value).split(",") for key, value in cfg.hydra.sweeper.params.items()}
    for end in (0, -1):
        composed(f"experiment={experiment}", *(f"{key}={grid[key][end]}" for key in grid))


def test_a_folder_that_is_named_after_a_swept_key_is_that_of_its_own_job():
    with hydra.initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        loader = GlobalHydra.instance().config_loader()
        named, swept = "name=d${model.d_model}", "model.d_model=16,64"
        cfg = loader.load_configuration("train_lm", [named, swept], RunMode.MULTIRUN)
        composed = [loader.load_sweep_config(cfg, job) for job in jobs.grid(cfg)]
    assert [job.name for job in composed] == ["d16", "d64"]


@pytest.mark.slow  # four seconds
def test_an_experiment_with_a_grid_launches_it_without_being_told(tmp_path: Path):
    np.save(tmp_path / "x.npy", sparse_rows(600, 16).numpy())
    done = run(
        "train_sae", "experiment=consistency", "sae=untied,topk", "sae.dict_size=16",
        "training.n_activations=1024", "training.eval_rows=64", "training.batch_size=256",
        f"activations_dir={tmp_path}", f"study_dir={tmp_path / 'out'}", "tracking.mode=disabled",
        cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "out/sae").glob("*/metrics.json"))) == 2 * 3  # seeds


@pytest.mark.parametrize("name", ["train_lm", "harvest", "train_sae", "analyze"])
def test_network_libraries_log_no_line_for_each_request(name: str):
    quiet = ("httpx", "httpx2", "urllib3.connectionpool", "huggingface_hub.file_download")
    with hydra.initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        cfg = hydra.compose(name, return_hydra_config=True)
    loggers = OmegaConf.to_container(cfg.hydra.job_logging.loggers)
    logging.config.dictConfig({"version": 1, "incremental": True, "loggers": loggers})
    try:
        for library in quiet:
            assert not logging.getLogger(library).isEnabledFor(logging.INFO)
            assert logging.getLogger(library).isEnabledFor(logging.WARNING)
    finally:
        for library in loggers:
            logging.getLogger(library).setLevel(logging.NOTSET)
