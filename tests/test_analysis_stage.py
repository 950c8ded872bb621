import json
import logging
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pandas as pd
import pytest
from analysis_study import (
    compared,
    config_of,
    directions,
    settings_of,
    write_dictionary,
    write_study,
)
from matplotlib.figure import Figure
from matplotlib.text import Text

from sparse_dict.analysis import frame, stage
from sparse_dict.analysis.claim import LARGER, OPEN
from sparse_dict.analysis.comparison import VARIANTS
from sparse_dict.analysis.context import Context
from sparse_dict.analysis.parts import files_in
from sparse_dict.analysis.report import figures
from sparse_dict.analysis.report import page as report
from sparse_dict.analysis.report.curves import curves
from sparse_dict.analysis.sections import heatmap, ridge
from sparse_dict.errors import UserError
from sparse_dict.storage.output import MARK
from sparse_dict.tools import verify

ROOT = Path(__file__).resolve().parent.parent


# What needs nothing but the dictionaries.
ALONE = ("claims", "heatmap", "histograms", "sizes", "agreement", "ridge", "sparsity", "frontier")


@pytest.fixture(scope="module")
def texts() -> dict[str, tuple[float, float]]:
    """Of each figure of the study that is `analysed`, its width and its smallest text."""
    return {}


@pytest.fixture(scope="module")
def analysed(
    tmp_path_factory: pytest.TempPathFactory, texts: dict[str, tuple[float, float]]
) -> Path:
    folder = tmp_path_factory.mktemp("study")
    save = figures.save

    def noted(figure: Figure, folder: Path, key: str) -> Path:
        path = save(figure, folder, key)
        shown = (t for t in figure.findobj(Text) if t.get_visible() and t.get_text())
        texts[key] = figure.get_figwidth(), min(text.get_fontsize() for text in shown)
        return path

    write_study(folder / "sae", sizes=(16, 32, 64), l1s=(0.01, 0.03, 0.1), seeds=(0, 1))
    broken = folder / "sae" / "<b>broken&"
    (broken / ".hydra").mkdir(parents=True)
    stage.check(config_of(folder, *ALONE))
    with mock.patch.object(figures, "save", noted):
        stage.run(config_of(folder, *ALONE))
    return folder / "analysis"


def test_a_run_writes_figures_as_png_and_svg_tables_claims_and_the_report(analysed: Path):
    keys = {
        "heatmap_mmcs", "high_features", "high_features_alive", "histograms", "histograms_l1",
        "random_directions",
        "sizes", "agreement_sizes", "agreement_seeds", "ridge", "effective_neurons", "frontier",
    }  # fmt: skip
    names = {path.name for path in analysed.iterdir()}
    assert names == {f"{key}.{kind}" for key in keys for kind in ("png", "svg")} | {
        "dictionaries.csv", "mmcs.csv", "claims.json", "report.html", "analysis.json", "tables",
        "humps.csv", "ridges.csv", "ridge_peaks.csv", MARK, "sections.json",
    }  # fmt: skip
    written = {path.name for path in (analysed / "tables").iterdir()}
    assert written == {f"{name}.parquet" for name in ("dictionaries", "features", "pairs")}
    claims = json.loads((analysed / "claims.json").read_text())["claims"]
    assert {claim["verdict"] for claim in claims} <= {
        "holds", "does not hold", "undecided",
    }  # fmt: skip


def test_the_report_needs_no_other_file_and_no_network(analysed: Path):
    page = (analysed / "report.html").read_text()
    links = re.findall(r'(?:src|href)\s*=\s*"([^"]{0,40})', page)
    assert links
    assert all(link.startswith("data:image/png;base64,") for link in links)
    assert not re.search(r"<script|<link|@import|url\(", page)
    assert page.count("<figure") == 12


def test_names_are_escaped_in_the_report(analysed: Path):
    page = (analysed / "report.html").read_text()
    assert "&lt;b&gt;broken&amp;: not finished" in page
    assert "<b>broken" not in page


def test_the_tables_hold_every_dictionary_and_variant(analysed: Path):
    assert len(pd.read_csv(analysed / "dictionaries.csv")) == 18
    cells = pd.read_csv(analysed / "mmcs.csv")
    assert len(cells) == 12 * 6  # two of three sizes, six plain variants
    assert cells["mmcs"].between(-1, 1.0001).all()


def test_a_later_run_leaves_nothing_of_an_earlier_one_but_what_is_not_its_own(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    write_study(tmp_path / "sae", sizes=(8, 16))
    folder = tmp_path / "analysis"
    stage.run(config_of(tmp_path, "claims", "frontier"))
    (folder / "mine.csv").write_text("mine")
    write_study(tmp_path / "sae", sizes=(32,))
    comparison = settings_of(matching="hungarian", against="all_larger")
    with caplog.at_level(logging.INFO):
        stage.run(config_of(tmp_path, "heatmap", comparison=comparison))
    record = json.loads((folder / "analysis.json").read_text())
    names = set(files_in(folder))
    assert names - {".lock", MARK} == {*record["sha256"], "analysis.json", "mine.csv"}
    assert not names & {"claims.json", "frontier.png"}
    assert "hungarian" in (folder / "mmcs.csv").read_text()
    assert caplog.messages[-1] == f"to open in a browser: {folder / 'report.html'}"
    (folder / "effects").mkdir()  # what an analysis goes on from, and what another tool left
    (folder / "effects" / "measured.json").touch()
    (folder / "stray.safetensors").touch()
    _, faults = verify.verify(tmp_path)
    strays = [fault.partition(" does not belong")[0] for fault in faults if "belong" in fault]
    assert strays == [str(folder / name) for name in ("mine.csv", "stray.safetensors")]


def test_a_part_is_made_anew_and_the_others_of_the_same_dictionaries_are_kept(
    analysed: Path, tmp_path: Path
):
    shutil.copytree(analysed.parent, tmp_path, dirs_exist_ok=True)
    folder = tmp_path / "analysis"
    before = {name: (folder / name).read_bytes() for name in files_in(folder)}
    (folder / "heatmap_mmcs.png").write_bytes(b"")
    stage.run(config_of(tmp_path, "heatmap"))
    after = {name: (folder / name).read_bytes() for name in files_in(folder)}
    changing = {"report.html", "analysis.json"}  # which hold the time that it took
    assert {name for name in before if after.get(name) != before[name]} == changing
    reports = [
        re.sub(r"analysed in \d+ s", "", found["report.html"].decode()) for found in (before, after)
    ]
    shown = [re.findall(r"<h2>.*?</h2>|<figcaption>.*?</figcaption>", text) for text in reports]
    assert shown[0] == shown[1]
    tables = [re.findall(r"<td.*?</td>", text.split("<h2>All settings")[0]) for text in reports]
    assert tables[0] == tables[1]
    leads = [re.findall(r'<p class="lead">.*?</p>', text) for text in reports]
    assert leads[0] == leads[1]
    _, faults = verify.verify(tmp_path)
    assert not any("analysis" in fault for fault in faults), faults


def test_verdicts_of_parts_that_are_kept_are_kept_too(analysed: Path, tmp_path: Path):
    shutil.copytree(analysed.parent, tmp_path, dirs_exist_ok=True)
    path = tmp_path / "analysis" / "claims.json"
    before = json.loads(path.read_text())
    stage.run(config_of(tmp_path, "claims", "frontier"))
    assert json.loads(path.read_text()) == before


def test_what_is_of_other_dictionaries_goes_with_a_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    write_study(tmp_path / "sae", sizes=(8, 16))
    stage.run(config_of(tmp_path, "heatmap", "frontier"))
    stage.run(config_of(tmp_path, "heatmap"))
    assert "removed" not in caplog.text
    write_study(tmp_path / "sae", sizes=(8,), noise=0.1)
    stage.run(config_of(tmp_path, "heatmap"))
    (line,) = [line for line in caplog.messages if line.startswith("removed")]
    assert "other dictionaries or settings: frontier.png, frontier.svg" in line
    assert not (tmp_path / "analysis" / "frontier.png").exists()


@pytest.mark.parametrize("damage", ["{", '{"frontier": 3}', None])
def test_a_kept_section_that_cannot_be_read_is_no_part(tmp_path: Path, damage: str | None):
    write_study(tmp_path / "sae", sizes=(8, 16))
    stage.run(config_of(tmp_path, "heatmap", "frontier"))
    sections = tmp_path / "analysis" / "sections.json"
    sections.write_text(damage) if damage else sections.unlink()
    stage.run(config_of(tmp_path, "heatmap"))
    assert not (tmp_path / "analysis" / "frontier.png").exists()


def test_an_error_within_a_part_is_told_and_ends_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    write_study(tmp_path / "sae", sizes=(8, 16))

    def fails(context: Context) -> Iterator[report.Block]:
        (context.folder / "half.csv").write_text("half")
        yield context.figure("ridge", figures.plt.figure())
        raise ValueError("two\nlines")

    broken = replace(ridge.ANALYSIS, show=fails)
    monkeypatch.setattr(ridge, "ANALYSIS", broken)
    with pytest.raises(UserError, match=r"parts have failed.*: ridge; hence exit code 1"):
        stage.run(config_of(tmp_path, "claims", "ridge", "frontier"))
    folder = tmp_path / "analysis"
    page = (folder / "report.html").read_text()
    assert "This part is missing: ValueError: two lines." in page
    assert (folder / "frontier.png").exists()
    assert (folder / "claims.json").exists()
    assert re.search(r'id="ridge">\n<img width="[\d.]+%" alt="[^"]*" src="data:image/png', page)
    assert not (folder / "half.csv").exists()
    assert not (folder / "ridge.png").exists()
    assert sum("ridge: this part is missing" in line for line in caplog.messages) == 1


def test_a_claim_that_cannot_be_judged_is_undecided(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    write_study(tmp_path / "sae", sizes=(8, 16))
    fails = mock.Mock(side_effect=IndexError("no such feature"))
    of = tuple(replace(claim, judge=fails, needs=()) for claim in ridge.CLAIMS)
    broken = replace(ridge.ANALYSIS, claims=of)
    monkeypatch.setattr(ridge, "ANALYSIS", broken)
    with pytest.raises(UserError, match="claims of ridge"):
        stage.run(config_of(tmp_path, "claims", "ridge"))
    claims = json.loads((tmp_path / "analysis" / "claims.json").read_text())["claims"]
    found = {claim["key"]: claim for claim in claims}
    for text in ridge.CLAIMS:
        assert found[text.key]["verdict"] == "undecided"
        assert "cannot be judged: IndexError: no such feature" in found[text.key]["ours"]


def test_an_analysis_that_fails_leaves_the_earlier_one_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    write_study(tmp_path / "sae", sizes=(8, 16))
    stage.run(config_of(tmp_path, "frontier"))
    folder = tmp_path / "analysis"
    before = {name: (folder / name).read_bytes() for name in files_in(folder)}
    monkeypatch.setattr(report, "render", mock.Mock(side_effect=OSError))
    with pytest.raises(OSError):  # noqa: PT011
        stage.run(config_of(tmp_path, "heatmap"))
    assert {name: (folder / name).read_bytes() for name in files_in(folder)} == before
    monkeypatch.undo()
    stage.run(config_of(tmp_path, "frontier"))
    assert set(files_in(folder)) == before.keys()


@pytest.mark.slow  # three seconds each
@pytest.mark.parametrize(
    ("alive", "matching"), [(0, "max"), (2, "hungarian")], ids=["none", "too few to match"]
)
def test_a_dictionary_without_a_feature_that_counts_is_left_out_and_said(
    tmp_path: Path, alive: int, matching: str
):
    for size in (8, 16, 32):
        for seed in (0, 1):
            count = np.full(size, 100)
            if size == 16:
                count[alive:] = 0
            rows = directions(size, 8, seed)
            write_dictionary(tmp_path / "sae" / f"{size},{seed}", rows, count, seed=seed)
    comparison = settings_of(features="alive", matching=matching)
    stage.run(config_of(tmp_path, *ALONE, "families", "undertraining", comparison=comparison))
    page = (tmp_path / "analysis" / "report.html").read_text()
    left_out = json.loads((tmp_path / "analysis" / "analysis.json").read_text())["left_out"]
    if alive:
        assert left_out == []
        assert "No feature counts at size 8." in page
    else:
        assert [item["name"] for item in left_out] == ["16,0", "16,1"]
        assert "16,0: none of its features is active, and comparison.features=alive" in page


def test_parts_of_a_study_of_which_no_feature_counts_say_so(tmp_path: Path):
    for size, alive in ((8, 8), (16, 2)):  # too few to match
        count = np.where(np.arange(size) < alive, 100, 0)
        write_dictionary(tmp_path / "sae" / str(size), directions(size, 8, 0), count)
    comparison = settings_of(features="alive", matching="hungarian")
    stage.run(config_of(tmp_path, "histograms", "agreement", comparison=comparison))
    assert "No feature counts at size 8." in (tmp_path / "analysis" / "report.html").read_text()


def test_a_single_dictionary_gives_a_report_that_says_what_is_missing(tmp_path: Path):
    write_dictionary(tmp_path / "sae" / "one", directions(8, 4, 0), np.full(8, 1, np.int64))
    stage.run(config_of(tmp_path, *ALONE))
    page = (tmp_path / "analysis" / "report.html").read_text()
    assert LARGER.what in page


def heat_map(context: Context) -> Figure:
    drawn = []

    def draw(key: str, figure: Any) -> None:
        figure.canvas.draw()
        drawn.append(figure)
        figures.plt.close(figure)

    context.draw = draw
    frame.measure(context)
    with figures.style():
        assert list(heatmap.show(context))
    return drawn[0]


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_every_variant_can_be_shown_and_is_named_on_the_heat_map(tmp_path: Path, variant):
    write_study(tmp_path, sizes=(8, 16, 32), d=8)
    figure = heat_map(compared(tmp_path, **asdict(variant)))
    assert str(variant) in figure.get_suptitle()


def test_every_text_of_every_figure_is_legible_in_print(
    analysed: Path, texts: dict[str, tuple[float, float]]
):
    assert len(texts) == 12
    assert all(width <= 7 and size >= 7.99 for width, size in texts.values()), texts


def test_a_sweep_over_k_has_its_heat_map_over_k_and_one_over_l1_over_l1(tmp_path: Path):
    write_study(tmp_path, sizes=(8, 16, 32), l1s=(0.01, 0.1), d=8)
    for k in (2, 4):
        for size in (8, 16, 32):
            write_dictionary(
                tmp_path / f"{k},{size}", directions(size, 8, k), np.full(size, 1, np.int64),
                activation="topk", l1=0.0, sae={"k": k},
            )  # fmt: skip
    axes = [axis for axis in heat_map(compared(tmp_path)).axes if axis.get_title()]
    labels = {
        axis.get_title(): (axis.get_xlabel(), [tick.get_text() for tick in axis.get_xticklabels()])
        for axis in axes
    }
    assert labels == {
        "activation=relu": ("L1", ["0.01", "0.1"]),
        "activation=topk": ("k", ["2", "4"]),
    }


def test_every_family_has_its_heat_map_the_study_s_first_family_first(tmp_path: Path):
    kinds = ("gelu", "jumprelu", "relu", "selu", "topk")
    for kind in kinds:
        l1s = (0.01, 0.03) if kind == "topk" else (0.03,)
        write_study(tmp_path, sizes=(8, 16), l1s=l1s, d=8, prefix=kind, extra={"activation": kind})
    context = compared(tmp_path)
    axes = [axis for axis in heat_map(context).axes if axis.get_title()]
    titles = [axis.get_title() for axis in axes]
    side_by_side = len({axis.get_position().x0 for axis in axes})
    assert titles == list(context.study.families)
    assert titles[:2] == ["activation=topk", "activation=relu"]
    assert len(titles) == len(kinds)
    assert side_by_side == 3


@pytest.mark.parametrize("highest", [3.0, 12.0, 80.0, 900.0])
def test_the_frontiers_l0_is_written_in_plain_numbers(highest: float):
    table = pd.DataFrame(
        {
            "family": "", "size": 64, "seed": 0, "level": [3.0, 2.0, 1.0],
            "l0": np.geomspace(0.7, highest, 3), "fvu": [0.3, 0.2, 0.1],
        }
    )  # fmt: skip
    with figures.style():
        figure = curves(table, None, "fvu", "")
        figure.canvas.draw()
        axis = figure.axes[0].xaxis
        low, high = sorted(axis.get_view_interval())
        shown = {
            tick.label1.get_text()
            for tick in [*axis.get_major_ticks(), *axis.get_minor_ticks()]
            if low <= tick.get_loc() <= high
        } - {""}
        figures.plt.close(figure)
    assert len(shown) >= 2
    assert all(re.fullmatch(r"[0-9.]+", text) for text in shown), shown


@pytest.mark.slow
def test_the_reports_tables_are_in_the_offline_run(tmp_path: Path):
    write_study(tmp_path / "sae", sizes=(16, 32, 64))
    settings = config_of(tmp_path, "claims", "heatmap", "sparsity")
    settings.tracking.mode = "offline"
    stage.run(settings)
    (run,) = (tmp_path / "wandb").glob("offline-run-*")
    tables = {
        str(path.relative_to(run / "files/media/table")).rpartition("_")[0].rpartition("_")[0]:
        json.loads(path.read_text())
        for path in run.glob("files/media/table/**/*.table.json")
    }  # fmt: skip
    assert set(tables) == {
        "study/all_dictionaries", "claims/claims_and_verdicts", "claims/the_rules_of_the_verdicts",
        "claims/claims_that_this_study_cannot_answer",
        "heatmap/all_variants", "sparsity/means", "charts/fvu_l0_table", "charts/mmcs_table",
        "charts/mcs_table",
    }  # fmt: skip
    claims = json.loads((tmp_path / "analysis" / "claims.json").read_text())["claims"]
    verdicts = tables["claims/claims_and_verdicts"]
    column = verdicts["columns"].index("verdict")
    known = [claim for claim in claims if claim["verdict"] != OPEN or claim["interval"]]
    assert sorted(row[column] for row in verdicts["data"]) == sorted(c["verdict"] for c in known)
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--summary", "--json", str(run)]
    summary = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert all(f'"{key}"' in summary for key in tables)


def test_without_dictionaries_the_check_fails_in_one_line(tmp_path: Path):
    with pytest.raises(UserError, match="sae_dir"):
        stage.check(config_of(tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_the_check_imports_neither_torch_nor_seaborn(tmp_path: Path):
    write_dictionary(tmp_path / "sae" / "one", directions(8, 4, 0), np.full(8, 1, np.int64))
    code = (
        "import sys; from pathlib import Path; from types import SimpleNamespace as N; "
        "from sparse_dict.analysis import stage; "
        "tracking = N(mode='disabled'); "
        f"config = N(sae_dirs=[Path({str(tmp_path / 'sae')!r})], tracking=tracking); "
        "config.settings = lambda kind: None; config.analysis_dir = 'x'; stage.check(config); "
        "sys.exit(bool({'torch', 'seaborn', 'matplotlib', 'pandas', 'scipy'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_a_notebooks_backend_in_the_environment_is_not_loaded():
    code = (
        "from sparse_dict.launch import script; "
        "script.start(lambda: __import__('sparse_dict.analysis.report.figures'))"
    )
    environment = {**os.environ, "MPLBACKEND": "module://matplotlib_inline.backend_inline"}
    command = [sys.executable, "-c", code]
    assert subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode == 0


@pytest.mark.slow  # nine seconds
def test_every_module_of_the_analysis_can_be_imported_first():
    code = (
        "import importlib, pkgutil, sys\n"
        "import sparse_dict.analysis.frame\n"  # what is heavy is loaded once
        "path = sys.modules['sparse_dict.analysis'].__path__\n"
        "found = [m.name for m in pkgutil.walk_packages(path, 'sparse_dict.analysis.')]\n"
        "for name in found:\n"
        "    for old in [m for m in sys.modules if m.startswith('sparse_dict.analysis')]:\n"
        "        del sys.modules[old]\n"
        "    importlib.import_module(name)\n"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
