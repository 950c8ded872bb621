"""What an analysis is, and what it is given: the study, with results that several share."""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from numpy.typing import NDArray

from sparse_dict.activations.store import Activations
from sparse_dict.analysis import harvested
from sparse_dict.analysis.claim import Claim, Judged, Need
from sparse_dict.analysis.comparison import Comparison
from sparse_dict.analysis.measures.two_dictionaries import match_features
from sparse_dict.analysis.parts import Part
from sparse_dict.analysis.report import texts
from sparse_dict.analysis.report.page import Block, Picture
from sparse_dict.analysis.study import Entry, Study
from sparse_dict.analysis.tables import Tables, fingerprints
from sparse_dict.config import AnalyzeConfig
from sparse_dict.errors import MALFORMED, UserError
from sparse_dict.sae import architectures, interventions, schema

Settings = TypeVar("Settings")
Result = TypeVar("Result")

Blocks = Iterator[Block]  # what stands in a section, in order

SAMPLE = 16_384  # evaluation rows, where a few are enough
PARTIAL = "partial"  # in the analysis' folder, while it is made


@dataclass(frozen=True)
class Analysis:
    """A section of the report, and the claims that belong to it.

    What keeps it from being measured or shown it raises as a `UserError`; the section then says
    that it is missing, and why, and its claims stay undecided for that reason.
    """

    name: str
    show: Callable[["Context"], Blocks]  # what stands in the section, in order
    claims: tuple[Claim, ...] = ()
    # Further columns of the three tables, with their keys, or tables of its own, by name.
    measure: Callable[["Context"], Mapping[str, pd.DataFrame]] | None = None
    pairs: bool = False  # whether it needs `Tables.pairs`
    applies: Callable[["Context"], bool] = lambda _: True  # whether this study can have it at all
    needs: tuple[Need, ...] = ()  # without which there is nothing to show
    # That measuring and showing it take in the demo: by these the time that is left is told.
    seconds: tuple[float, float] = (0.3, 0.7)


@dataclass(eq=False)
class Context:
    """A study with its settings; what is computed from it is computed once, at its first use."""

    config: AnalyzeConfig
    study: Study
    draw: Callable[[str, Figure], object]  # writes a figure under a key
    others: tuple[Study, ...] = ()  # those that `sae_dir` names after the first
    kept: Mapping[str, Part] = field(default_factory=dict)  # earlier parts that still hold
    tables: Tables = field(init=False)  # what was measured, before anything is judged or shown
    # Filled before any section is made; empty if `claims` is off.
    claims: list[Judged] = field(default_factory=list)
    missing: dict[str, str] = field(default_factory=dict)  # why an analysis was not measured
    failed: list[str] = field(default_factory=list)  # whose errors nobody foresaw
    made: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))  # files, by part
    parts: dict[str, Part] = field(default_factory=dict)  # those made now
    _known: dict[Any, Any] = field(default_factory=dict)

    def figure(self, key: str, figure: Figure, note: str = "") -> Picture:
        """A figure with its title and caption of `figures.md`, to which `note` is added."""
        text = texts.figure(key)
        if not figure.get_suptitle():
            figure.suptitle(text.title)
        self.draw(key, figure)
        return Picture(key, text.title, f"{text.caption} {note}".strip())

    def once(self, measure: Callable[["Context"], Result]) -> Result:
        """What `measure` returns, or raises as a `UserError`; it is called once.

        For what several analyses use and no table holds.
        """
        if measure not in self._known:
            try:
                self._known[measure] = measure(self)
            except UserError as error:
                self._known[measure] = error
        if isinstance(found := self._known[measure], UserError):
            raise found
        return cast(Result, found)

    @cached_property
    def fingerprints(self) -> dict[str, str]:
        """Those of the dictionaries' weights, by their folder."""
        return fingerprints(self.study)

    @property
    def folder(self) -> Path:
        """Where tables are written before the finished analysis replaces an earlier one."""
        return Path(self.config.analysis_dir) / PARTIAL

    def settings(self, kind: type[Settings]) -> Settings:
        """The settings of an analysis that is on, by their type."""
        found = self.config.settings(kind)
        assert found is not None
        return found

    @property
    def comparison(self) -> Comparison:
        """MCS of all dictionaries with their larger ones."""
        return self.comparisons[self.study.at]

    @cached_property
    def comparisons(self) -> dict[str, Comparison]:
        """The same of each site, by `Study.at`; that of the main figures first."""
        return {
            study.at: Comparison(study, self.config.comparison, partial(self.sample_of, study))
            for study in (self.study, *self.study.beside)
        }

    def evaluation_rows(self, of: Activations | None = None) -> NDArray[np.float32]:
        """The last rows of the activations (n, d_in), on which no dictionary was trained.

        Or `of` others of the same tokens: `targets`.
        """
        rows = of or self.activations
        held_out = min(int(entry.metrics["eval_rows"]) for entry in self.study.entries)
        return rows.read(max(rows.rows - min(held_out, SAMPLE), 0), rows.rows)

    def sample_of(self, study: Study) -> NDArray[np.float32]:
        """The last rows that the dictionaries of `study`, a site, read: of the same tokens."""
        return self.evaluation_rows(harvested.activations_of(study, self.config))

    def at_step_0(self, *names: str) -> tuple[float, float]:
        """PW-MCC and shared fraction of what two dictionaries, by their names, began with.

        Nan where that is not known: of dictionaries made elsewhere, and where the language model's
        weights decided part of it and cannot be read.
        """
        named = {entry.name: entry for entry in self.study.entries}
        try:
            found = match_features(*(self._begun(named[name]) for name in names))
        except (UserError, *MALFORMED):
            return float("nan"), float("nan")
        return found.pw_mcc, float(found.same.mean())

    def _begun(self, entry: Entry) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        from sparse_dict.sae.state import drawn_from

        name = entry.metrics["activation"]
        sae = schema.of(name)(**entry.metrics["config"]["sae"])
        changes = [
            kind(sae, Path(self.config.lm_dir), self.activations).begin
            for kind in interventions.asked(sae)
        ]
        widths = entry.encoder.shape[1], entry.decoder.shape[1]
        drawn = drawn_from(entry.seed, architectures.known()[name](sae), *widths, changes)
        return drawn.get("W_enc", drawn["W_dec"]).numpy(), drawn["W_dec"].numpy()

    @cached_property
    def activations(self) -> Activations:
        """The activations that the dictionaries were trained on."""
        return harvested.activations_of(self.study, self.config)

    @cached_property
    def targets(self) -> Activations:
        """What the dictionaries reconstruct: `activations`, except for transcoders."""
        return harvested.targets_of(self.study, self.config)
