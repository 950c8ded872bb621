"""How features split: planted splits, drifts and absorptions with codes that are known."""

import numpy as np
import pytest
from analysis_study import config_of, context_of, directions, unit, write_dictionary
from rounding import of_cosines, rounding

from sparse_dict.activations.store import Activations
from sparse_dict.analysis import frame
from sparse_dict.analysis.claim import judge
from sparse_dict.analysis.features import tree
from sparse_dict.analysis.measures.splitting import (
    ABSORBED,
    DRIFTED,
    KEPT,
    LOST,
    SPLIT,
    Step,
    course,
    repeated,
    step,
)  # fmt: skip
from sparse_dict.analysis.sections import splits
from sparse_dict.sae.folder import Dictionary

D = 32
AXES = np.eye(D, dtype=np.float32)


def dictionary(rows):
    rows = unit(np.asarray(rows, float))
    return Dictionary(rows.T.copy(), np.full(len(rows), -0.01, np.float32), rows, AXES[0] * 0)


def sparse(n, axes, seed=0):
    """Rows with one of `axes` active at a time."""
    rng = np.random.default_rng(seed)
    x = np.zeros((n, D), np.float32)
    x[np.arange(n), rng.choice(axes, n)] = rng.uniform(0.5, 1.5, n)
    return x


def all_alive(*dictionaries):
    return tuple(np.ones(len(d.b_enc), bool) for d in dictionaries)


def test_each_planted_fate_is_told_from_the_others():
    small = dictionary(
        [
            AXES[0],  # kept
            AXES[1] + AXES[2],  # split into its two parts
            AXES[3] + 0.6 * AXES[4],  # drifted: one child, at cosine .86
            AXES[5],  # absorbed: its only neighbour is nearer to the next
            AXES[5] + 0.9 * AXES[6],  # kept, and that neighbour's parent
            AXES[8],  # lost
        ]
    )
    large = dictionary(
        [AXES[0], AXES[1], AXES[2], AXES[3], AXES[5] + 0.9 * AXES[6], AXES[9], AXES[10]]
    )
    x = sparse(4000, [0, 1, 2, 3, 5, 6, 9, 10])
    found = step(small, large, all_alive(small, large), x, x)
    assert found.fate.tolist() == [KEPT, SPLIT, DRIFTED, ABSORBED, KEPT, LOST]
    assert found.parent.tolist() == [0, 1, 1, 2, 4, -1, -1]  # the last two are born
    assert set(found.children(1).tolist()) == {1, 2}
    cosines = [1, np.sqrt(0.5), np.sqrt(0.5)]
    np.testing.assert_allclose(found.cosine[:3], cosines, rtol=0, atol=of_cosines(D))
    assert found.given[1] == found.given[2] == 1
    assert np.isfinite(found.gain).tolist() == [False, True, False, False, False, False]


def test_children_that_explain_a_parents_rows_gain_nearly_all_of_its_error():
    small, large = dictionary([AXES[1] + AXES[2]]), dictionary([AXES[1], AXES[2]])
    x = sparse(2000, [1, 2])
    (gain,) = step(small, large, all_alive(small, large), x, x).gain
    error = [np.square(x - d.decode(d.encode(x))).sum() for d in (small, large)]
    left = float(error[1] / error[0])
    assert gain == pytest.approx(1 - left, abs=rounding(x.size, left))
    assert gain > 0.99


def test_a_near_feature_that_fires_elsewhere_is_no_child():
    near = AXES[1] + 1.2 * AXES[2]  # cosine .64, active where the parent is not
    small, large = dictionary([AXES[1]]), dictionary([AXES[1], near])
    x = np.concatenate([sparse(500, [1]), -3 * AXES[:1] + sparse(4000, [2])])
    found = step(small, large, all_alive(small, large), x, x)
    assert found.given[1] < 0.5
    assert found.parent.tolist() == [0, -1]
    assert found.fate.tolist() == [KEPT]


def test_dead_features_are_neither_parents_nor_children():
    small, large = dictionary(AXES[:2]), dictionary(AXES[:3])
    alive = np.array([True, False]), np.array([False, True, True])
    x = sparse(300, [0, 1])
    found = step(small, large, alive, x, x)
    assert found.fate.tolist() == [LOST, "dead"]
    assert found.parent.tolist() == [-1, -1, -1]
    assert np.isnan(found.cosine[0])


def made(fate, parent, m):
    nothing = np.full(m, 1.0)
    return Step(np.array(parent), nothing, nothing, np.array(fate), np.full(len(fate), np.nan))


def test_a_life_ends_with_the_first_thing_that_is_not_being_kept():
    steps = [
        made([KEPT, KEPT, SPLIT, LOST], [1, 0, 2, 2, -1], 5),
        made([DRIFTED, KEPT, KEPT, KEPT, LOST], [0, 1, 2, 3], 4),
    ]
    # the first is 1 in the second dictionary, which is kept; the second is 0, which drifts
    of = [[counts[fate] for fate in (KEPT, DRIFTED, SPLIT, LOST)] for counts in course(steps)]
    assert of == [[4, 0, 0, 0], [2, 0, 1, 1], [1, 1, 1, 1]]


def test_the_same_split_needs_two_children_with_counterparts_of_their_own():
    parents = unit(np.stack([AXES[0] + AXES[1], AXES[2] + AXES[3], AXES[4]]))
    children = AXES[:5]
    one = made([SPLIT, SPLIT, KEPT], [0, 0, 1, 1, 2], 5)
    order = np.array([4, 2, 0, 3, 1])  # the other seed's children: the same in another order
    same = made([SPLIT, SPLIT, KEPT], [2, 1, 0, 1, 0], 5)
    counts = dict(splits=2, counterpart=2, splits_too=2, same=2, unsplit=1, unsplit_too=0)
    assert repeated(one, same, (parents, parents), (children, children[order])) == counts
    apart = AXES[10:15]  # splits too, into something else
    found = repeated(one, same, (parents, parents), (children, apart))
    assert found == counts | dict(same=0)
    none = made([KEPT, KEPT, SPLIT], [0, 1, 2, 2, -1], 5)
    found = repeated(one, none, (parents, parents), (children, children))
    assert found == counts | dict(splits_too=0, same=0, unsplit_too=1)
    away = unit(np.stack([AXES[10], AXES[11], AXES[12]]))
    found = repeated(one, same, (parents, away), (children, apart))
    assert found == dict.fromkeys(counts, 0) | dict(splits=2)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """Three seeds that split the same six features, and four more that nobody else splits."""
    base = tmp_path_factory.mktemp("splits")
    x = sparse(6000, np.arange(28))
    (base / "activations").mkdir()
    np.save(base / "activations" / "x.npy", x)
    prints = {"fingerprints": {"activations": Activations.open(base / "activations").fingerprint}}
    for seed in range(3):
        rng = np.random.default_rng(seed)
        common = [AXES[2 * i] + AXES[2 * i + 1] for i in range(6)]
        own = directions(4, D, 50 + seed)  # of no seed but this, and lost at once
        small = np.stack([*common, *AXES[20:24], *own])
        large = np.concatenate([AXES[:12], AXES[20:24], directions(12, D, 80 + seed)])
        for rows in (small, large):
            rows = unit(rows[rng.permutation(len(rows))])
            write_dictionary(
                base / "sae" / f"{len(rows)},{seed}", rows, np.full(len(rows), 300, np.int64),
                seed=seed, **prints,
            )  # fmt: skip
    return base


def test_planted_splits_replicate_and_are_counted(base, tmp_path):
    context = context_of(config_of(base, "splits", "claims", analysis_dir=str(tmp_path)))
    context.folder.mkdir()
    frame.measure(context)
    claim = judge(splits.CLAIMS[0], context.tables)
    assert claim.verdict == "holds"
    assert claim.ours.startswith("100% of 36;")  # six splits, six ordered pairs of seeds
    table = context.tables.others["splits"]
    assert table["split"].tolist() == pytest.approx([6 / 14] * 3)
    assert table["kept"].tolist() == pytest.approx([4 / 14] * 3, abs=1 / 14)
    assert (table["of split"] == 12 / 28).all()
    assert (table["gain"] > 0.8).all()  # random features leave errors of their own
    assert table["children"].tolist() == [2, 2, 2]
    assert (table["stays"] == 0).all()
    of = context.tables.features.groupby("fate")
    assert of["children"].agg(["min", "max"]).loc[SPLIT].tolist() == [2, 2]
    section = frame.shown(context, splits.ANALYSIS)
    assert "without text" in " ".join(b for b in section.blocks if isinstance(b, str))

    roots = tree.roots(context.tables, most=3, largest=5)
    nodes = [root.walk() for root in roots]
    assert [[node.row.fate for node in of].count(SPLIT) for of in nodes] == [1] * 3
    assert [*map(len, nodes)] == [3] * 3
    texts = {roots[0]: [("before $x$ ", "token", " after")] * 2}
    figure = tree.picture(roots[0], [14, 28], texts)
    figure.canvas.draw()
    drawn = [text.get_text() for text in figure.axes[0].texts]
    assert sum("cos 0.71 P 1.00" in text for text in drawn) == 2
    assert drawn.count("token") == 2


def test_a_study_without_rows_says_so(tmp_path):
    for size in (8, 16):
        count = np.full(size, 5, np.int64)
        write_dictionary(tmp_path / "sae" / str(size), directions(size, D, 1), count)
    context = context_of(config_of(tmp_path, "splits"))
    frame.measure(context)
    assert "does not exist" in frame.verdicts(context, splits.ANALYSIS)[0].ours
    (*_, text) = frame.shown(context, splits.ANALYSIS).blocks
    assert "This part is missing" in text
