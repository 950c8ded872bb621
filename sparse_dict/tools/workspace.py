"""`python -m sparse_dict.workspace NAME`: a Weights & Biases workspace for a study, as code.

Needs the extra `workspace` (the package wandb-workspaces), an account and the study's runs online.
"""

import argparse
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from sparse_dict import tracking
from sparse_dict.analysis.tracked import CHARTS
from sparse_dict.errors import UserError, one_line
from sparse_dict.tools import ending

if TYPE_CHECKING:
    from wandb_workspaces.workspaces import Workspace

PINNED = tuple(
    f"summary:{key}"
    for key in (
        "dict_size", "l1", "fvu", "l0", "dead", "mmcs", "n_above", "n_above_alive",
        "shared_fraction",
    )
)  # fmt: skip
PICTURES = ("heatmap_mmcs", "high_features", "frontier")  # keys that the analysis logs


def main(argv: Sequence[str] | None = None) -> int:
    """Save the workspace and print its address; 1 with one line if that cannot be done."""
    parser = argparse.ArgumentParser("python -m sparse_dict.workspace", description=__doc__)
    parser.add_argument("name", help="the study, as in name=NAME")
    parser.add_argument("--project", default="sparse-dict", help="as in tracking.project=")
    parser.add_argument("--entity", help="as in tracking.entity=; yours if not given")
    given = parser.parse_args(argv)
    try:
        print(save(given.name, given.project, given.entity))  # noqa: T201
    except UserError as error:
        print(f"workspace: {error}", file=sys.stderr)  # noqa: T201
        return 1
    return 0


def save(name: str, project: str, entity: str | None) -> str:
    """Save a workspace for study `name`; returns its address."""
    if why_not := tracking.why_offline():
        raise UserError(f"{why_not}: a workspace needs an account; run `wandb login`")
    try:
        import wandb

        workspace = build(name, project, entity or wandb.Api().default_entity)
        return str(workspace.save().url)
    except UserError:
        raise
    except Exception as error:  # the client raises nearly anything
        why = one_line(error, named=True)
        raise UserError(f"wandb did not take the workspace: {why}") from None


def build(name: str, project: str, entity: str) -> "Workspace":
    """The workspace of study `name`, not saved."""
    try:
        import wandb_workspaces.reports.v2 as panels
        import wandb_workspaces.workspaces as workspaces
        from wandb_workspaces.reports.v2.interface import Layout
    except ImportError as error:
        raise UserError(
            f"this needs wandb-workspaces ({error.name} is missing): pip install -e '.[workspace]'"
        ) from None

    shown = {
        "How far larger dictionaries find the same features": _agreement(panels, Layout),
        "Dictionaries": _dictionaries(panels, Layout),
        "Training, by dictionary size": [
            panels.LinePlot(
                title=title, x="activations", y=[f"sae/{key}"], log_y=key != "inactive",
                groupby=panels.Config("sae.dict_size"), groupby_aggfunc="mean",
                groupby_rangefunc="minmax", max_runs_to_show=100,
            )
            for key, title in {"fvu": "FVU", "l0": "L0", "inactive": "Inactive features"}.items()
        ],
        "Language model": [
            panels.LinePlot(title="Loss", x="tokens", y=["train_loss", "val_loss"])
        ],
    }  # fmt: skip
    return workspaces.Workspace(
        entity=entity,
        project=project,
        name=f"Study {name}",
        sections=[
            workspaces.Section(name=title, is_open=title != "Language model", panels=of)
            for title, of in shown.items()
        ],
        settings=workspaces.WorkspaceSettings(max_runs=100),
        runset_settings=workspaces.RunsetSettings(
            filters=f"Metric('Group') == {name!r}", pinned_columns=list(PINNED)
        ),
    )


def _agreement(panels: Any, layout: Any) -> list[Any]:
    """The pictures of MMCS, and the native charts of its tables."""
    pictures = panels.MediaBrowser(
        title="MMCS with larger dictionaries", media_keys=list(PICTURES),
        num_columns=1, layout=layout(w=24, h=12),
    )  # fmt: skip
    charts = [
        panels.CustomChart(
            query={"summaryTable": {"tableKey": f"{key}_table"}}, chart_name=chart,
            chart_fields=fields, chart_strings={"title": key},
        )
        for key, (chart, fields) in CHARTS.items()
    ]  # fmt: skip
    return [pictures, *charts]


def _dictionaries(panels: Any, layout: Any) -> list[Any]:
    """Dictionaries by their settings and by what came out, as points and as lines."""
    size, l1 = panels.Config("sae.dict_size"), panels.Config("sae.l1")
    fvu, l0, dead, mmcs, shared = (
        panels.SummaryMetric(key) for key in ("fvu", "l0", "dead", "mmcs", "shared_fraction")
    )
    places = {"MMCS by size and L1": (l1, size), "FVU and L0, by MMCS": (l0, fvu)}
    points = [
        panels.ScatterPlot(title=title, x=x, y=y, z=mmcs, log_x=True, log_y=True)
        for title, (x, y) in places.items()
    ]
    axis = panels.ParallelCoordinatesPlotColumn
    lines = panels.ParallelCoordinatesPlot(
        title="Size x L1", layout=layout(w=24, h=12),
        columns=[
            *(axis(metric=metric, log=True) for metric in (size, l1, l0)),
            *(axis(metric=metric) for metric in (fvu, dead, mmcs, shared)),
        ],
    )  # fmt: skip
    return [*points, lines]


if __name__ == "__main__":
    ending(main)
