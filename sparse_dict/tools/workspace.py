"""`python -m sparse_dict.workspace NAME`: a Weights & Biases workspace for a study, as code.

Needs the extra `workspace` (the package wandb-workspaces), an account and the study's runs online.
"""

import argparse
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from sparse_dict import tracking
from sparse_dict.analysis.stage import CHARTS
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
    """Save a workspace for study `name`; returns its address.

    Raises:
        UserError: wandb-workspaces is not installed, there is no key, or the server refuses.
    """
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
    """The workspace of study `name`, not saved.

    Raises:
        UserError: wandb-workspaces is not installed.
    """
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
    axis = panels.ParallelCoordinatesPlotColumn
    wide = Layout(w=24, h=12)

    def curve(key: str, title: str, log: bool) -> Any:
        return panels.LinePlot(
            title=title, x="activations", y=[f"sae/{key}"], log_y=log, groupby=size,
            groupby_aggfunc="mean", groupby_rangefunc="minmax", max_runs_to_show=100,
        )  # fmt: skip

    sections = [
        workspaces.Section(
            name="How far larger dictionaries find the same features",
            is_open=True,
            panels=[
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
        ),
        workspaces.Section(
            name="Dictionaries",
            is_open=True,
            panels=[
                panels.ScatterPlot(
                    title="MMCS by size and L1", x=l1, y=size, z=mmcs, log_x=True, log_y=True
                ),
                panels.ScatterPlot(
                    title="FVU and L0, by MMCS", x=l0, y=fvu, z=mmcs, log_x=True, log_y=True
                ),
                panels.ParallelCoordinatesPlot(
                    title="Size x L1", layout=wide,
                    columns=[
                        axis(metric=size, log=True), axis(metric=l1, log=True),
                        axis(metric=l0, log=True), axis(metric=fvu), axis(metric=dead),
                        axis(metric=mmcs), axis(metric=shared),
                    ],
                ),
            ],
        ),
        workspaces.Section(
            name="Training, by dictionary size",
            is_open=True,
            panels=[
                curve("fvu", "FVU", True),
                curve("l0", "L0", True),
                curve("inactive", "Inactive features", False),
            ],
        ),
        workspaces.Section(
            name="Language model",
            panels=[panels.LinePlot(title="Loss", x="tokens", y=["train_loss", "val_loss"])],
        ),
    ]  # fmt: skip
    return workspaces.Workspace(
        entity=entity,
        project=project,
        name=f"Study {name}",
        sections=sections,
        settings=workspaces.WorkspaceSettings(max_runs=100),
        runset_settings=workspaces.RunsetSettings(
            filters=f"Metric('Group') == {name!r}", pinned_columns=list(PINNED)
        ),
    )


if __name__ == "__main__":
    ending(main)
