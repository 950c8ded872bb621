"""Analyses are chosen by name: a line of ANALYSES, a section of the config, a module."""

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import hydra
import pytest
from analysis_study import write_study

from sparse_dict.analysis import frame, sections
from sparse_dict.analysis import stage as analysis_stage
from sparse_dict.analysis.claim import HOLDS, Claim, Found, Words
from sparse_dict.analysis.report import texts
from sparse_dict.config import ANALYSES, AnalyzeConfig, ContextsConfig, NoSettings, register
from sparse_dict.launch.jobs import typed

ROOT = Path(__file__).resolve().parent.parent
EXPERIMENTS = sorted(path.stem for path in (ROOT / "conf/analyze/experiment").glob("*.yaml"))


def composed(*overrides: str) -> AnalyzeConfig:
    with hydra.initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        config: AnalyzeConfig = typed(hydra.compose("analyze", list(overrides)))
    return config


def on(config: AnalyzeConfig) -> set[str]:
    return {name for name in ANALYSES if config.is_on(name)}


def test_an_analysis_with_settings_has_a_file_of_values_and_every_one_its_module():
    files = {path.stem for path in (ROOT / "conf" / "analysis").glob("*.yaml")}
    assert files == {name for name, kind in ANALYSES.items() if kind is not NoSettings}
    assert [analysis.name for analysis in frame.load()] == list(ANALYSES)


@pytest.fixture
def dummy(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An analysis as a contributor adds it: a module, and a line in ANALYSES."""
    well = Claim(
        "dummy", needs=(), judge=lambda _: Found("indeed", HOLDS),
        words=Words("All is well", "Always.", said="yes"),
    )  # fmt: skip
    module = ModuleType(f"{sections.__name__}.dummy")
    module.ANALYSIS = frame.Analysis(  # type: ignore[attr-defined]
        "dummy", lambda context: [f"of {len(context.study.entries)} dictionaries"], (well,)
    )
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(texts, "section", lambda name: texts.Text(name, ()))
    monkeypatch.setitem(ANALYSES, "dummy", NoSettings)
    register()
    yield
    monkeypatch.undo()
    register()


@pytest.mark.usefixtures("dummy")
def test_a_new_analysis_is_one_module_and_one_line(tmp_path: Path):
    write_study(tmp_path / "sae", sizes=(8, 16))
    where = [f"study_dir={tmp_path}", "tracking.mode=disabled"]
    verdicts = []
    for chosen in ("claims", "claims,dummy"):
        analysis_stage.run(composed(f"analysis=[{chosen}]", *where))
        claims = json.loads((tmp_path / "analysis" / "claims.json").read_text())["claims"]
        (claim,) = (claim for claim in claims if claim["key"] == "dummy")
        verdicts.append((claim["verdict"], claim["ours"]))
    assert verdicts == [("undecided", "dummy is off"), ("holds", "indeed")]
    assert "of 2 dictionaries" in (tmp_path / "analysis" / "report.html").read_text()


def test_all_analyses_are_on_if_nothing_is_said():
    assert on(composed()) == set(ANALYSES)


def test_a_list_turns_on_what_it_names_and_nothing_else():
    config = composed("analysis=[heatmap,contexts]", "contexts.top=20")
    assert on(config) == {"heatmap", "contexts"}
    contexts = config.settings(ContextsConfig)
    assert contexts is not None
    assert (contexts.top, contexts.spread) == (20, 5)
    assert on(composed("analysis=truth")) == {"truth"}
    assert on(composed("analysis=[]")) == set()


def test_one_is_turned_off_by_null():
    assert on(composed("interp=null", "contexts=null")) == set(ANALYSES) - {"interp", "contexts"}


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_an_experiments_choice_composes_and_gives_way_to_the_command_line(experiment: str):
    assert on(composed(f"experiment={experiment}"))
    assert on(composed(f"experiment={experiment}", "analysis=[ridge]")) == {"ridge"}


def test_the_toy_experiment_asks_nothing_of_a_language_model():
    chosen = on(composed("experiment=toy"))
    assert not chosen & {"contexts", "loss_recovered", "interp"}
    assert {"claims", "truth"} <= chosen


def test_every_section_figure_and_claim_has_one_text_and_every_text_is_of_one():
    headings, stated = (
        [(level, key) for level, key, _ in texts.HEADING.findall(page.read_text())]
        for page in (texts.FIGURES, texts.CLAIMS)
    )
    assert len(headings) == len({*headings})
    claims = [claim for analysis in frame.load() for claim in analysis.claims]
    assert stated == [("##", claim.key) for claim in claims]  # in the order of the report
    for claim in claims:
        words = Words.of(claim)
        assert words.claim
        assert not {*"{}"} & {*words.number}
    sources = [path.read_text() for path in texts.FIGURES.parent.rglob("*.py")]
    drawn = {key for level, key in headings if level == "###"}
    for key in drawn:
        assert any(f'"{key}' in source for source in sources), key
    named = {name for source in sources for name in re.findall(r'\.figure\(\s*f?"(\w+)"', source)}
    assert named <= drawn
    assert {key for level, key in headings if level == "##"} == {*ANALYSES}
