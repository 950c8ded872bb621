"""What recurs over seeds: planted directions that all, some or one of the dictionaries hold."""

import numpy as np
import pytest
from analysis_study import config_of, context_of, directions, settings_of, unit, write_dictionary
from rounding import of_cosines, rounding
from test_toy import harvest_config

from sparse_dict.activations import stage as harvest_stage
from sparse_dict.activations.store import Activations
from sparse_dict.activations.toy import Toy
from sparse_dict.analysis import frame, study
from sparse_dict.analysis.measured import split_halves
from sparse_dict.analysis.measures import recurring as measures
from sparse_dict.analysis.measures.recurring import Member, fvu, refit
from sparse_dict.analysis.measures.recurring import consensus as clustered
from sparse_dict.analysis.measures.recurring import directions as rows_of
from sparse_dict.analysis.sections import consensus
from sparse_dict.config import ConsensusConfig
from sparse_dict.sae import folder as folders
from sparse_dict.sae.folder import Dictionary

D = 48
SETTINGS = ConsensusConfig(cosine=0.8, share=0.5, halves=2, tokens=1000)


def noisy(rows, seed, noise=0.04):
    return unit(rows + noise * np.random.default_rng(seed).standard_normal(rows.shape))


def dictionary(rows):
    return Dictionary(rows.T.copy(), np.zeros(len(rows), np.float32), rows, np.zeros(D, np.float32))


def test_directions_that_recur_in_more_than_the_share_are_kept_once_and_averaged():
    truth = directions(10, D, 1)
    members = []
    for seed in range(4):
        rows = noisy(truth[: 10 - 2 * seed], seed)  # the last two in one seed, the next in two ...
        twice = noisy(truth[:1], 50 + seed)  # a duplicate within each
        one = dictionary(np.concatenate([rows, twice, directions(6, D, 90 + seed)]))
        alive = np.ones(len(one.b_enc), bool)
        alive[:2] = seed != 2  # there the first two are dead; its duplicate of the first lives
        members.append(Member(one, alive, 3))
    part, count = clustered(members, cosine=0.8, share=0.5)
    cosines = rows_of(part) @ truth.T
    assert len(count) == 6  # 4 and 3 of 4 seeds; 2 of 4 is not more than half
    assert sorted(cosines.argmax(1).tolist()) == list(range(6))
    assert dict(zip(cosines.argmax(1).tolist(), count.tolist(), strict=True)) == {
        0: 4, 1: 3, 2: 4, 3: 4, 4: 3, 5: 3,
    }  # fmt: skip
    assert cosines.max(1).min() > (rows_of(members[0].features)[:6] @ truth.T).max(1).min()
    np.testing.assert_allclose(np.linalg.norm(rows_of(part), axis=1), 1, rtol=rounding(D))


def test_one_dictionary_is_its_own_consensus():
    rows = directions(20, D, 1)
    living = Member(dictionary(rows), np.ones(20, bool), 3)
    part, count = clustered([living], cosine=0.9, share=0.5)
    assert count.tolist() == [1] * 20
    np.testing.assert_allclose(
        sorted((rows_of(part) @ rows.T).max(1)), np.ones(20), rtol=of_cosines(D)
    )


def test_a_refit_lowers_the_error_and_leaves_the_directions():
    rng = np.random.default_rng(0)
    W_dec = directions(30, D, 1)
    codes = rng.random((4000, 30)) * (rng.random((4000, 30)) < 0.1)
    x = (codes @ W_dec).astype(np.float32)
    W_enc = np.float32(0.3 * W_dec.T + 0.02 * rng.standard_normal((D, 30)))
    first = Dictionary(W_enc, np.zeros(30, np.float32), W_dec, np.zeros(D, np.float32), None, 3)
    member = Member(first, np.ones(30, bool), 3)
    found = refit(member.features, [member], x)
    assert fvu(found, x) < 0.5 * fvu(first, x)
    np.testing.assert_allclose(found.W_dec, W_dec, rtol=rounding(D))
    assert (found.encode(x) > 0).sum(1).max() <= 3


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A toy, and eight dictionaries that each hold three quarters of its features, others random.

    Half of the features every seed holds, of the other half each seed its own.
    """
    base = tmp_path_factory.mktemp("toy")
    made = harvest_config(base, 6000, d_in=D, n_features=40, n_active=3.0)
    harvest_stage.run(made)
    toy = Toy(made.data, 0)
    prints = {"activations": Activations.open(base / "activations").fingerprint}
    for seed in range(8):
        rng = np.random.default_rng(seed)
        own = 20 + rng.permutation(20)[:10]
        rows = np.concatenate([toy.features[:20], toy.features[own]])
        rows = np.concatenate([noisy(rows, seed, 0.03), directions(10, D, 70 + seed)])
        write_dictionary(
            base / "sae" / str(seed), rows[rng.permutation(40)], np.full(40, 9, np.int64),
            seed=seed, fingerprints=prints, l0=3.0,
        )  # fmt: skip
    return base


def test_consensus_of_planted_features_is_true_and_agrees_ever_better(base, monkeypatch):
    monkeypatch.setattr(measures, "STEPS", 30)  # the encoders matter little here
    context = context_of(config_of(base, comparison=settings_of(), consensus=SETTINGS))
    context.folder.mkdir(parents=True)
    frame.measure(context)
    section = frame.shown(context, consensus.ANALYSIS)
    table = section.tables()[1].frame.set_index(["of", "seeds"])
    together = table.loc[measures.TOGETHER]
    assert together.index.tolist() == [1, 2, 4]
    assert together["precision"].tolist() == sorted(together["precision"])
    assert together["precision"][4] == 1 > together["precision"][1]
    assert together["pw_mcc"][4] > table.loc[(measures.SINGLE, 4), "pw_mcc"] + 0.03
    assert table.loc[(measures.POOLED, 4), "features"] == together["features"][4]
    assert (together["gaussian"] >= together["random"] - 0.02).all()
    (of,) = context.tables.others["consensus_of_all"].itertuples()
    assert of.in_every_seed == 20
    assert of.lacking_of_living == of.lacking
    home = base / "analysis" / split_halves.FOLDER
    written = folders.read(home)
    assert written.dictionary.k == 3
    (entry,) = study.load(home).entries
    assert entry.axis == "k"
    assert entry.metrics["fvu"] < 0.7
    truth = Toy(harvest_config(base, d_in=D, n_features=40, n_active=3.0).data, 0).features
    assert ((entry.decoder @ truth.T).max(1) > 0.9).all()


def test_one_seed_or_no_activations_are_said_and_not_fatal(tmp_path):
    def last():
        context = context_of(config_of(tmp_path, consensus=SETTINGS))
        frame.measure(context)
        return frame.shown(context, consensus.ANALYSIS).blocks[-1]

    write_dictionary(tmp_path / "sae" / "0", directions(8, D, 1), np.ones(8, np.int64))
    assert "several seeds" in last()
    write_dictionary(tmp_path / "sae" / "1", directions(8, D, 2), np.ones(8, np.int64), seed=1)
    assert "activations does not exist" in last()
