"""How dictionaries stand to the best simple basis, and what a report says of it."""

import json

import numpy as np
import pytest
from analysis_study import config_of, context_of, unit, write_dictionary

from sparse_dict.activations.store import Activations
from sparse_dict.analysis import frame
from sparse_dict.analysis.report import summary
from sparse_dict.analysis.sections import baselines, loss_recovered
from sparse_dict.analysis.stage import restate
from sparse_dict.config import BaselinesConfig, LossRecoveredConfig

D, ROWS, EVAL = 12, 4000, 1000
BASES = BaselinesConfig(["neurons", "random", "pca"], 1500, [1, 4])


def rotated(seed=0):
    """Rows of two active positive sources each, along orthonormal directions, and these."""
    rng = np.random.default_rng(seed)
    directions = np.linalg.qr(rng.standard_normal((D, D)))[0].astype(np.float32)
    codes = np.zeros((ROWS, D), np.float32)
    for row in codes:
        row[rng.permutation(D)[:2]] = rng.exponential(1, 2)
    return codes @ directions, codes, directions


def made(folder, rows, decoder, encoder=None, seeds=(0,), **metrics):
    """Activations and a dictionary a seed, measured as training does."""
    (folder / "activations").mkdir(parents=True)
    np.save(folder / "activations" / "a.npy", rows)
    fingerprint = Activations.open(folder / "activations").fingerprint
    x = rows[-EVAL:].astype(np.float64)
    for seed in seeds:
        noise = 0.02 * np.random.default_rng([seed, 1]).standard_normal(decoder.shape)
        noisy = unit(decoder + noise)
        codes = np.maximum(x @ (noisy if encoder is None else encoder).T, 0)
        mse = float(np.square(codes @ noisy - x).mean())
        own = {"mse": mse, "variance": x.var(0).mean(), "fvu": mse / x.var(0).mean()}
        write_dictionary(
            folder / "sae" / f"seed={seed}", noisy, np.ones(len(decoder), np.int64), seed=seed,
            encoder=encoder, eval_rows=EVAL, l0=float((codes > 0.2).sum(1).mean()),
            fingerprints={"activations": fingerprint}, **own | metrics,
        )  # fmt: skip
    return folder


def settings(folder, **changes):
    chosen = {"baselines": BASES} | changes
    return config_of(folder, "claims", **chosen)


def told(folder, **changes):
    context = context_of(settings(folder, **changes))
    frame.measure(context)
    (claim,) = frame.verdicts(context, baselines.ANALYSIS)
    return claim, summary.sentences(context)[2], context


@pytest.mark.parametrize(("seeds", "over"), [((0,), "rows (bootstrap)"), ((0, 1, 2), "3 seeds")])
def test_dictionaries_with_the_true_directions_beat_every_basis(tmp_path, seeds, over):
    rows, _, directions = rotated()
    claim, sentence, context = told(made(tmp_path, rows, directions, seeds=seeds))
    assert (claim.verdict, claim.over, claim.agrees) == ("holds", over, None)
    fvu = np.mean([entry.metrics["fvu"] for entry in context.study.entries])
    columns = ["fvu_neurons", "fvu_pca"]
    best = context.once(baselines.fitted).dictionaries[columns].mean().min()
    assert claim.ours.startswith(f"FVU {fvu:.3f}, {best:.3f} of ")
    assert claim.interval[0] < best - fvu < claim.interval[1]
    assert (
        f"reconstruct better ({fvu:.2f} of the variance unexplained against {best:.2f})" in sentence
    )
    assert sentence.endswith("by the model's loss this was not measured.")


def test_where_the_neurons_are_the_sources_dictionaries_lose_to_them(tmp_path):
    _, codes, directions = rotated()
    claim, sentence, _ = told(made(tmp_path, codes, directions))
    assert claim.verdict == "does not hold"
    assert claim.ours.endswith(" of neuron basis")
    assert sentence.startswith(
        "Beside the best simple basis at equal sparsity (neuron basis), the dictionaries at this "
        "level reconstruct worse ("
    )


def test_without_baselines_or_activations_it_is_said_that_it_was_not_measured(tmp_path):
    rows, _, directions = rotated()
    folder = made(tmp_path, rows, directions)
    unknown = "How dictionaries stand to simple bases (neurons, PCA, ICA, NMF) was not measured"
    claim, sentence, _ = told(folder, baselines=None)
    assert (claim.verdict, claim.ours) == ("undecided", "baselines is off")
    assert sentence == f"{unknown}: baselines is off."
    claim, sentence, _ = told(folder, activations_dir=str(folder / "none"))
    assert claim.verdict == "undecided"
    assert sentence.startswith(f"{unknown}: ")
    assert "does not exist" in sentence
    context = context_of(settings(folder, loss_recovered=LossRecoveredConfig(320, [1])))
    frame.measure(context)
    (claim,) = frame.verdicts(context, loss_recovered.ANALYSIS)
    assert claim.ours == "these activations do not come from a language model"


def test_a_study_of_an_earlier_version_gets_one_definition_of_fvu(tmp_path, caplog):
    rows, _, directions = rotated()
    rows[-EVAL:] *= np.float32(1.5)
    folder = made(tmp_path, rows, directions, seeds=(0, 1))
    path = folder / "sae" / "seed=1" / "metrics.json"
    today = json.loads(path.read_text())
    old = today | {"fvu": today["mse"] / rows.var(0, dtype=np.float64).mean()}
    del old["variance"]
    path.write_text(json.dumps(old))
    context = context_of(settings(folder))
    with caplog.at_level("INFO"):
        restate(context.study, context.config)
    found = {entry.seed: entry.metrics["fvu"] for entry in context.study.entries}
    assert found[1] == pytest.approx(today["fvu"], rel=1e-6)
    assert found[1] < 0.6 * old["fvu"]
    assert "FVU of 1 dictionaries of an earlier version" in caplog.text
    measured = context.once(baselines.fitted)
    share = measured.errors["seed=1"].sum() / measured.deviations.sum()
    assert share == pytest.approx(found[1], rel=0.1)  # on fewer rows
    assert json.loads(path.read_text()) == old
