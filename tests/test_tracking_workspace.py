"""The workspace as code: what is in it, and that the real client sends it."""

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from processes import ROOT, finished
from test_tracking_runs import KEY
from wandb_server import WandbServer

from sparse_dict.analysis.tracked import CHARTS

COMMAND = [sys.executable, "-m", "sparse_dict.workspace", "demo"]
INSTALLED = importlib.util.find_spec("wandb_workspaces") is not None


def run(folder: Path, *more: str, **env: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    bare = {"PATH": os.environ["PATH"], "HOME": str(folder), "PYTHONPATH": path}
    return finished([*COMMAND, *more], folder, {**bare, **env})


def test_without_the_extra_it_says_what_to_install(tmp_path: Path) -> None:
    (tmp_path / "wandb_workspaces.py").write_text("raise ImportError(name='wandb_workspaces')")
    with WandbServer() as server:  # python -m looks into the current folder first
        process = run(tmp_path, "--entity=me", WANDB_BASE_URL=server.url, **KEY)
    assert process.returncode == 1
    assert process.stdout == ""
    assert process.stderr == (
        "workspace: this needs wandb-workspaces (wandb_workspaces is missing): "
        "pip install -e '.[workspace]'\n"
    )


@pytest.mark.slow
@pytest.mark.skipif(not INSTALLED, reason="needs the extra workspace")
def test_the_workspace_shows_the_studys_pictures_scatter_coordinates_and_curves(
    tmp_path: Path,
) -> None:
    with WandbServer() as server:
        process = run(tmp_path, WANDB_BASE_URL=server.url, **KEY)
        assert process.returncode == 0, process.stderr
        assert process.stdout.startswith(f"{server.url}/me/sparse-dict?nw=")
    (view,) = server.views
    assert (view["entityName"], view["projectName"]) == ("me", "sparse-dict")
    assert view["displayName"] == "Study demo"
    section = json.loads(view["spec"])["section"]
    (only,) = section["runSets"][0]["filters"]["filters"]
    assert only["key"] == {"section": "run", "name": "group"}
    assert (only["op"], only["value"]) == ("=", "demo")
    found = [p for part in section["panelBankConfig"]["sections"] for p in part["panels"]]
    charts = [panel["config"] for panel in found if panel["viewType"] == "Vega2"]
    panels: dict[str, dict[str, Any]] = {
        panel["config"]["chartTitle"]: panel["config"] | {"kind": panel["viewType"]}
        for panel in found
        if panel["config"] not in charts
    }
    assert [(c["panelDefId"], c["fieldSettings"]) for c in charts] == list(CHARTS.values())
    for key, chart in zip(CHARTS, charts, strict=True):
        assert f'"value": "{key}_table"' in json.dumps(chart["userQuery"])
    assert "summary:mmcs" in json.dumps(section["runSets"])
    pictures = panels["MMCS with larger dictionaries"]
    assert pictures["kind"] == "Media Browser"
    assert pictures["mediaKeys"][0] == "heatmap_mmcs"
    for title, axes in (
        ("FVU and L0, by MMCS", ("summary:l0", "summary:fvu", "summary:mmcs")),
        ("MMCS by size and L1",
         ("config:sae.value.l1", "config:sae.value.dict_size", "summary:mmcs")),
    ):  # fmt: skip
        scatter = panels[title]
        assert scatter["kind"] == "Scatter Plot"
        assert tuple(scatter[f"{name}Axis"] for name in "xyz") == axes
    coordinates = panels["Size x L1"]
    assert coordinates["kind"] == "Parallel Coordinates Plot"
    assert [column["accessor"] for column in coordinates["columns"]] == [
        "config:sae.value.dict_size", "config:sae.value.l1",
        "summary:l0", "summary:fvu", "summary:dead", "summary:mmcs", "summary:shared_fraction",
    ]  # fmt: skip
    for title, key in (("FVU", "fvu"), ("L0", "l0"), ("Inactive features", "inactive")):
        curve = panels[title]
        assert curve["kind"] == "Run History Line Plot"
        assert (curve["xAxis"], curve["metrics"]) == ("activations", [f"sae/{key}"])
        assert curve["groupBy"] == "sae.value.dict_size"


@pytest.mark.parametrize(
    ("key", "line"),
    [
        ({}, r"no API key for {url}: a workspace needs an account; run `wandb login`"),
        pytest.param(
            KEY,
            r"wandb did not take the workspace: .*{url}.*",
            marks=pytest.mark.slow,  # it tries for twenty seconds
        ),
    ],
)
def test_without_a_key_or_a_server_it_ends_with_one_line(
    tmp_path: Path, key: dict[str, str], line: str
) -> None:
    process = run(tmp_path, WANDB_BASE_URL="http://127.0.0.1:9", **key)
    assert process.returncode == 1
    assert process.stdout == ""
    assert re.fullmatch(f"workspace: {line.format(url='http://127.0.0.1:9')}\n", process.stderr)
