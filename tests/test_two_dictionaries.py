"""Two dictionaries, two studies: known rotations and permutations of one another."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from analysis_study import (
    compared,
    config_of,
    context_of,
    directions,
    settings_of,
    write_dictionary,
)
from rounding import of_cosines
from scipy.stats import ortho_group

from sparse_dict.activations.side_by_side import paired
from sparse_dict.activations.store import Activations
from sparse_dict.activations.writer import ShardWriter
from sparse_dict.analysis import frame, study
from sparse_dict.analysis.measured import other_activations
from sparse_dict.analysis.measures import alignment
from sparse_dict.analysis.measures.mcs import match_codes
from sparse_dict.analysis.sections import elsewhere
from sparse_dict.config import NoSettings
from sparse_dict.errors import UserError
from sparse_dict.sae.folder import Dictionary
from sparse_dict.tools import compare

D = 24


def run(*arguments):
    command = [sys.executable, "-m", "sparse_dict.compare", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True)


def dictionary(folder, rows, **more):
    return write_dictionary(folder, rows, np.full(len(rows), 9, np.int64), **more)


def test_two_folders_are_compared_both_ways_against_chance(tmp_path):
    larger = directions(200, D, 1)
    small = np.concatenate([larger[:30], directions(20, D, 2)])
    a, b = dictionary(tmp_path / "a", larger), dictionary(tmp_path / "b", small)
    done = run(a, b, "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert [found[key]["dictionary"] for key in ("smaller", "larger")] == [str(b), str(a)]
    assert found["smaller"]["above"] == found["larger"]["above"] == 30
    assert found["shared_fraction"] == pytest.approx(30 / 50, abs=0.1)
    cosines = small @ larger.T
    assert found["smaller"]["mmcs"] == pytest.approx(cosines.max(1).mean(), abs=of_cosines(D))
    assert found["larger"]["mmcs"] == pytest.approx(cosines.max(0).mean(), abs=of_cosines(D))
    drawn = [(directions(50, D, s), directions(200, D, 100 + s)) for s in range(40)]
    random = np.mean([(one @ other.T).max(1).mean() for one, other in drawn])
    assert found["smaller"]["random_mmcs"] == pytest.approx(random, abs=0.01)
    assert found["pw_mcc"] > 0.6 + 0.4 * 0.3
    assert found["random_pw_mcc"] < found["smaller"]["random_mmcs"] + 0.01
    table = run(a, b).stdout
    assert "features of B above 0.9 in A, of 50" in table


def test_what_cannot_be_compared_is_one_line(tmp_path):
    a, b = (dictionary(tmp_path / str(d), directions(9, d, 1)) for d in (D, D + 1))
    done = run(a, b)
    assert (done.returncode, done.stdout) == (1, "")
    assert "24 wide, the other 25" in done.stderr
    assert "is not a folder" in run(a, tmp_path / "none").stderr


@pytest.mark.slow
def test_features_are_matched_by_their_codes_where_directions_say_nothing(tmp_path):
    """The encoders agree after a shuffle and the decoders have nothing to do with each other."""
    encoder, order = directions(12, D, 1), np.random.default_rng(0).permutation(20)
    more = np.concatenate([encoder, directions(8, D, 3)])[order]
    one = dictionary(tmp_path / "a", directions(12, D, 5), encoder=encoder)
    other = dictionary(tmp_path / "b", directions(20, D, 6), encoder=more)
    np.save(tmp_path / "x.npy", np.random.default_rng(1).standard_normal((3000, D)))
    done = run(one, other, "--activations", tmp_path, "--json")
    found = json.loads(done.stdout)["codes"]
    assert found["above"] == 12
    assert found["correlation"] == pytest.approx(1, abs=1e-5)
    expected = (directions(12, D, 5) * directions(20, D, 6)[np.argsort(order)[:12]]).sum(1).mean()
    assert found["cosine"] == pytest.approx(expected, abs=of_cosines(D))


def test_correlations_of_codes_are_pearsons():
    rng = np.random.default_rng(0)
    one = rng.standard_normal((200, 3)).astype(np.float32) + 4
    other = np.concatenate([-one[:, :1], one[:, 1:] + rng.standard_normal((200, 2))], axis=1)
    other = np.concatenate([other, np.zeros((200, 1))], axis=1).astype(np.float32)
    partners, values = match_codes(one, other)
    assert partners.tolist() == [3, 1, 2]  # uncorrelated with what never changes beats -1
    wanted = [0, *(np.corrcoef(one[:, i], other[:, i])[0, 1] for i in (1, 2))]
    np.testing.assert_allclose(values, wanted, atol=1e-5)


def test_a_study_can_be_matched_by_correlation(tmp_path):
    base = tmp_path / "study"
    encoder = directions(16, D, 1)
    np.save(tmp_path / "x.npy", np.random.default_rng(1).standard_normal((3000, D)))
    print_of = Activations.open(tmp_path).fingerprint
    for name, rows in {"a": encoder[:8], "b": encoder}.items():
        prints = {"fingerprints": {"activations": print_of}}
        dictionary(base / "sae" / name, rows[::-1].copy(), encoder=rows, **prints)
    config = config_of(
        base, activations_dir=str(tmp_path), comparison=settings_of(matching="correlation")
    )
    comparison = context_of(config).comparison
    small, large = comparison.study.entries
    mcs = comparison.mcs(small)  # feature i of the codes is i of the other, whose row is 15 - i
    wanted = (encoder[:8][::-1] * encoder[::-1][:8]).sum(1)
    np.testing.assert_allclose(mcs, wanted, rtol=0, atol=of_cosines(D))
    assert small.size < large.size
    comparison = compared(base / "sae", matching="correlation").comparison
    with pytest.raises(UserError, match=r"\.npy|does not exist"):
        comparison.mcs(comparison.study.entries[0])


# --- alignments -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["identity", "permutation", "rotation"])
def test_each_alignment_explains_what_its_kind_of_map_made(name):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((4000, D)) * np.geomspace(3, 0.3, D)
    made = {
        "identity": np.eye(D), "permutation": np.eye(D)[rng.permutation(D)],
        "rotation": ortho_group.rvs(D, random_state=1),
    }  # fmt: skip
    y = 2 * x @ made[name] + 5 + 0.01 * rng.standard_normal(x.shape)
    found = alignment.fit(x, y)
    kinds = list(made)
    for kind in kinds[kinds.index(name) :]:  # an identity is a permutation is a rotation
        assert found[kind][1] > 0.999
        np.testing.assert_allclose(found[kind][0], made[name], atol=0.02)
    for kind in kinds[: kinds.index(name)]:
        assert found[kind][1] < 0.7


def test_unequal_widths_leave_the_rotation_and_noise_explains_nothing():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((3000, 8))
    basis = ortho_group.rvs(12, random_state=1)[:8]
    ((_, explained),) = alignment.fit(x, x @ basis).values()
    assert explained > 0.999
    assert abs(alignment.fit(x, rng.standard_normal((3000, 8)))["rotation"][1]) < 0.05


def harvest(folder, rows, shard_rows, seed, tokens=0):
    origins = np.zeros((len(rows), 3), np.int32)
    origins[:, 0], origins[:, 1] = np.divmod(np.arange(len(rows)), 50)
    origins[:, 2] = np.arange(len(rows)) + tokens
    writer = ShardWriter(folder, len(rows), rows.shape[1], shard_rows, "float32", seed)
    writer.add(rows, origins)
    writer.finish({"layer": 1, "site": "mlp_post"}, {"model": str(seed)})
    return Activations.open(folder)


def test_rows_of_the_same_tokens_are_found_whatever_their_order(tmp_path):
    x = np.random.default_rng(0).standard_normal((3000, 4)).astype(np.float32)
    one = harvest(tmp_path / "a", x, 700, seed=0)
    other = harvest(tmp_path / "b", np.concatenate([2 * x, x]), 500, seed=1)
    first, second = paired(one, other, 2500)
    np.testing.assert_allclose(second, 2 * first)
    np.testing.assert_array_equal(first, one.read(0, 2500))
    with pytest.raises(UserError, match="of other text"):
        paired(one, harvest(tmp_path / "c", x, 700, seed=2, tokens=1), 100)
    with pytest.raises(UserError, match="40 tokens in common"):
        paired(one, harvest(tmp_path / "d", x[:40], 700, seed=3), 100)


def two_studies(base, turn):
    """The second study is the first one, turned: its activations and its dictionaries."""
    x = np.random.default_rng(0).standard_normal((4000, D)) * np.geomspace(3, 0.3, D)
    for name, seed, matrix in (("one", 0, np.eye(D)), ("two", 1, turn)):
        made = harvest(base / name / "activations", np.float32(x @ matrix), 900, seed)
        for size in (16, 32):
            rows = np.float32(directions(size, D, 7) @ matrix)
            order = np.random.default_rng(seed).permutation(size)
            prints = {"fingerprints": {"activations": made.fingerprint}}
            for number in (0, 1):  # a second seed that has nothing in common
                part = rows[order] if number == 0 else directions(size, D, 90 + size + seed)
                dictionary(base / name / "sae" / f"{size},{number}", part, seed=number, **prints)


def test_a_study_that_is_another_one_turned_agrees_after_the_rotation_alone(tmp_path):
    two_studies(tmp_path, ortho_group.rvs(D, random_state=3))
    folders = [str(tmp_path / name / "sae") for name in ("one", "two")]
    context = context_of(config_of(tmp_path / "both", sae_dir=folders[0]))
    context.config = config_of(tmp_path / "both", "elsewhere", sae_dir=folders)
    context.others = (study.load(Path(folders[1])),)
    context.folder.mkdir(parents=True)
    frame.measure(context)
    maps, table = (context.tables.others[name] for name in ("studies_maps", "studies"))
    explained = maps.set_index("map")["explained"]
    assert explained["rotation"] > 0.999 > 0.5 > explained["identity"]
    found = table[table["study"] == "two"].set_index(["map", "size"])
    for size in (16, 32):
        assert found.loc[("rotation", size), "above"] == 1
        assert found.loc[("rotation", size), "above_alive"] == 1
        assert found.loc[("rotation", size), "shared_fraction"] == 1
        assert found.loc[("identity", size), "above"] < 0.2
        assert found.loc[("codes", size), "correlated"] == 1
    twins = table[table["study"] == other_activations.SEEDS]
    assert set(twins["map"]) == {"identity", "codes"}
    assert twins["above"].dropna().max() < 0.2
    assert len(frame.shown(context, elsewhere.ANALYSIS).tables()) == 2


@pytest.mark.slow  # four seconds
def test_the_script_takes_a_list_of_studies(tmp_path):
    two_studies(tmp_path, np.eye(D)[::-1].copy())
    root = Path(__file__).resolve().parent.parent
    listed = ",".join(str(tmp_path / name / "sae") for name in ("one", "two"))
    done = subprocess.run(
        [sys.executable, str(root / "analyze.py"), "name=both", f"study_dir={tmp_path / 'both'}",
         f"sae_dir=[{listed}]", "analysis=[elsewhere]", "tracking.mode=disabled"],
        capture_output=True, text=True, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    text = (tmp_path / "both" / "analysis" / "report.html").read_text()
    assert "Other sites and other studies" in text
    assert "permutation" in text
    record = json.loads((tmp_path / "both" / "analysis" / "analysis.json").read_text())
    assert record["beside"] == [str(tmp_path / "two" / "sae")]


def test_a_list_of_studies_holds_folders():
    with pytest.raises(UserError, match="sae_dir must be a folder, or a list"):
        config_of(Path("x"), elsewhere=NoSettings(), sae_dir=[3])


def test_the_comparison_of_a_dictionary_with_itself_is_perfect():
    rows = directions(30, D, 1)
    same = Dictionary(rows.T, np.zeros(30, np.float32), rows, np.zeros(D, np.float32))
    found = compare.compare(same, same)
    assert found["pw_mcc"] == pytest.approx(1, abs=of_cosines(D))
    assert found["shared_fraction"] == 1
    assert found["smaller"]["above"] == 30
