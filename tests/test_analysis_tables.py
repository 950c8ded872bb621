import json
import logging
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from analysis_study import compared, directions, write_dictionary, write_study
from omegaconf import OmegaConf
from rounding import of_cosines, rounding

import sparse_dict
from sparse_dict.analysis import tables
from sparse_dict.analysis.columns import COLUMNS
from sparse_dict.analysis.comparison import Variant
from sparse_dict.analysis.measured import three_tables
from sparse_dict.analysis.measures import random_directions
from sparse_dict.analysis.measures.mcs import normalised
from sparse_dict.analysis.tables import Tables
from sparse_dict.config import CONF_DIR, ComparisonConfig
from sparse_dict.config.analysis import STANDARD_COMPARISON
from sparse_dict.errors import UserError


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tables")
    write_study(folder / "sae", sizes=(16, 32, 64), l1s=(0.01, 0.1), seeds=(0, 1, 2), d=16)
    return folder


@pytest.fixture(scope="module")
def study(home: Path) -> Tables:
    return sparse_dict.open_study(home)


def test_open_study_compares_as_analyze_does_by_default() -> None:
    values = OmegaConf.load(CONF_DIR / "analyze.yaml")["comparison"]
    assert ComparisonConfig(**values) == STANDARD_COMPARISON


def test_every_listed_column_is_measured_in_its_order_and_no_other(study: Tables) -> None:
    for name, columns in COLUMNS.items():  # without those of analyses, none of which is on
        wanted = [column for column, by in columns.items() if by in ("", "pairs")]
        assert list(getattr(study, name).columns) == wanted


def test_columns_that_nobody_asked_for_are_absent(home: Path) -> None:
    context = compared(home / "sae")
    prints = tables.fingerprints(context.study)
    found = three_tables.measure([context.comparison], "x", prints, with_pairs=False)
    for name in ("dictionaries", "features"):
        always = [column for column, by in COLUMNS[name].items() if not by]
        assert list(getattr(found, name).columns) == always
    assert found.pairs.empty


def test_each_feature_has_the_numbers_of_its_dictionary(home: Path, study: Tables) -> None:
    context = compared(home / "sae")
    comparison = context.comparison
    for entry in context.study.entries:
        part = study.features[study.features["dictionary"] == entry.name]
        assert part["feature"].tolist() == list(range(entry.size))
        assert (part["alive"].to_numpy() == entry.alive).all()
        larger = comparison.partners(entry, "next")
        if not larger:
            assert part["mcs"].isna().all()
            assert (part["partner"] == -1).all()
            continue
        alive = comparison.mcs(entry, Variant("max", "next", "alive"))
        for column, mcs in (("mcs", comparison.mcs(entry)), ("mcs_alive", alive)):
            np.testing.assert_allclose(part[column], mcs, rtol=0, atol=of_cosines(16))
        living = comparison.distinct(entry, larger[0], "alive")
        assert (part["own_alive"].to_numpy() == living).all()
        assert not living[~entry.alive].any()
        cosines = normalised(entry.decoder) @ normalised(larger[0].decoder).T
        assert (part["partner"].to_numpy() == cosines.argmax(1)).all()
        bar = random_directions.max_quantile(0.99, 16, larger[0].size)
        assert (part["unrelated"].to_numpy() == (cosines.max(1) <= bar)).all()


def test_each_dictionary_has_the_numbers_of_its_features(study: Tables) -> None:
    for row in study.dictionaries.itertuples():
        part = study.features[study.features["dictionary"] == row.dictionary]
        assert len(part) == row.size
        assert row.dead == pytest.approx(1 - part["alive"].mean())
        if row.next_size:
            assert row.mmcs == pytest.approx(part["mcs"].mean(), rel=rounding(row.size))
            assert row.n_above == (part["mcs"] > 0.9).sum()
            assert row.n_above_alive == (part["mcs_alive"] > 0.9).sum()


def test_pairs_count_from_both_ends(study: Tables) -> None:
    assert set(study.pairs["differ"]) == {"seed"}
    sizes = study.dictionaries.set_index("dictionary")["size"]
    pairs = study.pairs.groupby(["first", "second"]).size()
    assert len(pairs) == 6 * 3  # settings, pairs of three seeds
    assert all(n == sizes[first] == sizes[second] for (first, second), n in pairs.items())
    recurs = study.features.set_index(["dictionary", "feature"])["recurs"]
    for pair in study.pairs[study.pairs["same"]].head(20).itertuples():
        assert recurs[pair.first, pair.feature] > 0
        assert recurs[pair.second, pair.partner] > 0
    assert set(recurs.unique()) <= {0.0, 0.5, 1.0}
    one = study.dictionaries.iloc[0]
    own = study.pairs[(study.pairs[["first", "second"]] == one["dictionary"]).any(axis=1)]
    assert one["shared"] == pytest.approx(own["same"].mean())
    assert one["pw_mcc"] == pytest.approx(own["cosine"].mean(), rel=rounding(len(own)))


def test_halves_of_the_rows_and_seeds_are_told_apart(tmp_path: Path) -> None:
    for seed in (0, 1):
        for half in ("half_a", "half_b"):
            folder = write_dictionary(
                tmp_path / "sae" / f"{seed},{half}", directions(8, 8, seed), np.ones(8, np.int64),
                seed=seed,
            )  # fmt: skip
            path = folder / "metrics.json"
            metrics = json.loads(path.read_text())
            metrics["config"]["training"]["rows"] = half
            path.write_text(json.dumps(metrics))
    pairs = sparse_dict.open_study(tmp_path).pairs
    kinds = pairs.groupby(["first", "second"])["differ"].first().tolist()
    assert sorted(kinds) == ["both", "both", "rows", "rows", "seed", "seed"]


def test_main_holds_the_features_of_the_chosen_level_in_all_seeds(study: Tables) -> None:
    assert study.level["level"].nunique() == 1
    assert study.main["seed"].unique().tolist() == [0, 1, 2]
    assert study.main["size"].unique().tolist() == [16, 32]
    assert study.shown["seed"].unique().tolist() == [0]
    assert (study.main["found"] == (study.main["mcs"] > 0.9)).all()
    assert set(study.main_pairs["size"]) == {16, 32, 64}
    assert (study.main_pairs["seed"] < study.main_pairs["other_seed"]).all()


def written(home: Path, tmp_path: Path) -> tuple[Path, Tables]:
    shutil.copytree(home / "sae", tmp_path / "sae")
    found = sparse_dict.open_study(tmp_path)
    tables.write(found, tmp_path / "analysis")
    return tmp_path, found


def test_tables_are_read_as_they_were_written_and_not_measured_again(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, found = written(home, tmp_path)
    monkeypatch.setattr(three_tables, "measure", None)
    again = sparse_dict.open_study(folder)
    assert again.about == found.about
    for name in COLUMNS:
        pd.testing.assert_frame_equal(getattr(again, name), getattr(found, name))


def _damage(folder: Path) -> None:
    (folder / "analysis" / "tables" / "features.parquet").write_bytes(b"PAR1 and no more")


def _truncate(folder: Path) -> None:
    path = folder / "analysis" / "tables" / "pairs.parquet"
    path.write_bytes(path.read_bytes()[:-100])


def _retrain(folder: Path) -> None:
    (name,) = (folder / "sae").glob("*dict_size=16,sae.l1=0.1,seed=2")
    write_dictionary(name, directions(16, 16, 5), np.ones(16, np.int64), l1=0.1, seed=2)


def _add(folder: Path) -> None:
    path = folder / "sae" / "new"
    write_dictionary(path, directions(128, 16, 5), np.ones(128, np.int64), l1=0.1)


@pytest.mark.parametrize(
    ("harm", "line"),
    [
        (_damage, "features.parquet is damaged"),
        (_truncate, "pairs.parquet is damaged"),
        (_retrain, "the tables are of other dictionaries: sae.dict_size=16,sae.l1=0.1,seed=2"),
        (_add, "the tables are of other dictionaries: new"),
    ],
)
def test_tables_that_cannot_be_used_are_told_of_and_measured_anew(
    home: Path, tmp_path: Path, harm, line: str, caplog: pytest.LogCaptureFixture
) -> None:
    folder, _ = written(home, tmp_path)
    harm(folder)
    before = {path: path.read_bytes() for path in folder.rglob("*.parquet")}
    with caplog.at_level(logging.WARNING):
        found = sparse_dict.open_study(folder)
    (said,) = caplog.messages
    assert line in said
    done = {path.parent.name for path in (folder / "sae").glob("*/metrics.json")}
    assert set(found.dictionaries["dictionary"]) == done
    assert {path: path.read_bytes() for path in folder.rglob("*.parquet")} == before


def test_a_folder_without_dictionaries_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not a folder"):
        sparse_dict.open_study(tmp_path)


def test_a_single_dictionary_has_tables_without_partners(tmp_path: Path) -> None:
    write_dictionary(tmp_path / "sae" / "one", directions(8, 4, 0), np.full(8, 1, np.int64))
    found = sparse_dict.open_study(tmp_path)
    assert len(found.features) == 8
    assert found.pairs.empty
    assert found.main.empty
    assert found.main_pairs.empty
    tables.write(found, tmp_path / "analysis")
    assert sparse_dict.open_study(tmp_path).about == found.about
