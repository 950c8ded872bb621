"""`python -m sparse_dict.workspace NAME`: a Weights & Biases workspace for a study, as code.

Needs the extra `workspace` (the package wandb-workspaces), an account and the study's runs online.
"""

import argparse
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

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
    """Save the workspace and print its address."""
    parser = argparse.ArgumentParser("python -m sparse_dict.workspace", description=__doc__)
    parser.add_argument("name", help="the study, as in name=NAME")
    parser.add_argument("--project", default="sparse-dict", help="as in tracking.project=")
    parser.add_argument("--entity", help="as in tracking.entity=; yours if not given")
    given = parser.parse_args(argv)
    sys.stdout.write(f"{save(given.name, given.project, given.entity)}\n")
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

    size, l1 = panels.Config("sae.dict_size"), panels.Config("sae.l1")
    fvu, l0, dead, mmcs, shared = (
        panels.SummaryMetric(key) for key in ("fvu", "l0", "dead", "mmcs", "shared_fraction")
    )
    wide, axis = Layout(w=24, h=12), panels.ParallelCoordinatesPlotColumn
    points = {"MMCS by size and L1": (l1, size), "FVU and L0, by MMCS": (l0, fvu)}
    lines = [*(axis(metric=metric, log=True) for metric in (size, l1, l0))]
    lines += [axis(metric=metric) for metric in (fvu, dead, mmcs, shared)]
    shown = {
        "How far larger dictionaries find the same features": [
            panels.MediaBrowser(
                title="MMCS with larger dictionaries", media_keys=list(PICTURES),
                num_columns=1, layout=wide,
            ),
            *(
                panels.CustomChart(
                    query={"summaryTable": {"tableKey": f"{key}_table"}}, chart_name=chart,
                    chart_fields=fields, chart_strings={"title": key},
                )
                for key, (chart, fields) in CHARTS.items()
            ),
        ],
        "Dictionaries": [
            *(
                panels.ScatterPlot(title=title, x=x, y=y, z=mmcs, log_x=True, log_y=True)
                for title, (x, y) in points.items()
            ),
            panels.ParallelCoordinatesPlot(title="Size x L1", layout=wide, columns=lines),
        ],
        "Training, by dictionary size": [
            panels.LinePlot(
                title=title, x="activations", y=[f"sae/{key}"], log_y=key != "inactive",
                groupby=size, groupby_aggfunc="mean", groupby_rangefunc="minmax",
                max_runs_to_show=100,
            )
            for key, title in {"fvu": "FVU", "l0": "L0", "inactive": "Inactive features"}.items()
        ],
        "Language model": [
            panels.LinePlot(title="Loss", x="tokens", y=["train_loss", "val_loss"])
        ],
    }  # fmt: skip
    sections = [
        workspaces.Section(name=title, is_open=title != "Language model", panels=of)
        for title, of in shown.items()
    ]
    runs = workspaces.RunsetSettings(
        filters=f"Metric('Group') == {name!r}", pinned_columns=list(PINNED)
    )
    return workspaces.Workspace(
        entity=entity, project=project, name=f"Study {name}", sections=sections,
        settings=workspaces.WorkspaceSettings(max_runs=100), runset_settings=runs,
    )  # fmt: skip


if __name__ == "__main__":
    ending(main)
