"""Analyses are chosen by name: a file of `conf/analysis`, a section of the config, a setting."""

from dataclasses import fields
from pathlib import Path
from types import NoneType
from typing import Any, get_args, get_type_hints

import hydra
import pytest

from sparse_dict.config import AnalyzeConfig
from sparse_dict.launch import stage

ROOT = Path(__file__).resolve().parent.parent
CHOICES = {path.stem for path in (ROOT / "conf" / "analysis").glob("*.yaml")}
EXPERIMENTS = sorted(path.stem for path in (ROOT / "conf/analyze/experiment").glob("*.yaml"))


def composed(*overrides: str) -> AnalyzeConfig:
    with hydra.initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        config: AnalyzeConfig = stage.typed(hydra.compose("analyze", list(overrides)))
    return config


def on(config: AnalyzeConfig) -> set[str]:
    return {name for name in CHOICES if getattr(config, name) is not None}


def test_every_choice_has_a_section_and_every_section_a_choice():
    types: dict[str, Any] = get_type_hints(AnalyzeConfig)
    optional = {f.name for f in fields(AnalyzeConfig) if NoneType in get_args(types[f.name])}
    assert optional == CHOICES


def test_all_analyses_are_on_if_nothing_is_said():
    assert on(composed()) == CHOICES


def test_a_list_turns_on_what_it_names_and_nothing_else():
    config = composed("analysis=[heatmap,contexts]", "contexts.top=20")
    assert on(config) == {"heatmap", "contexts"}
    assert config.contexts is not None
    assert (config.contexts.top, config.contexts.spread) == (20, 5)
    assert on(composed("analysis=truth")) == {"truth"}
    assert on(composed("analysis=[]")) == set()


def test_one_is_turned_off_by_null():
    assert on(composed("interp=null", "contexts=null")) == CHOICES - {"interp", "contexts"}


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_an_experiments_choice_composes_and_gives_way_to_the_command_line(experiment: str):
    assert on(composed(f"experiment={experiment}"))
    assert on(composed(f"experiment={experiment}", "analysis=[ridge]")) == {"ridge"}


def test_the_toy_experiment_asks_nothing_of_a_language_model():
    chosen = on(composed("experiment=toy"))
    assert not chosen & {"contexts", "loss_recovered", "interp"}
    assert {"claims", "truth"} <= chosen
