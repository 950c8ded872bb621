import numpy as np
import pytest
import torch
import torch.nn.functional as F
from analysis_study import config_of, context_of, unit, write_dictionary
from lm_files import random_model, write_harvest, write_text_and_model
from rounding import assert_rounded, rounding, through
from safetensors.torch import save_file

from sparse_dict.analysis import frame, study
from sparse_dict.analysis.harvested import Place
from sparse_dict.analysis.measured.reconstruction_loss import held_out, losses, recovered
from sparse_dict.analysis.measures import bases
from sparse_dict.analysis.report import figures
from sparse_dict.analysis.sections import baselines as simpler
from sparse_dict.analysis.sections import loss_recovered
from sparse_dict.config import (
    BaselinesConfig,
    FilesData,
    LossRecoveredConfig,
    ModelConfig,
)
from sparse_dict.config.sites import SITES, Site
from sparse_dict.lm import folder as lm_folder
from sparse_dict.lm.model import GPT
from sparse_dict.storage import files
from sparse_dict.text import tokens
from sparse_dict.text.tokenizer import Tokenizer

N_VOCAB, N_CTX, D, LAYER = 31, 16, 12, 1
SITE = Site("mlp_post", LAYER)
MODEL = ModelConfig(n_layers=3, n_heads=2, d_model=8, d_mlp=D, n_ctx=N_CTX)
TERMS = through(MODEL, N_VOCAB)
BAR = rounding(TERMS)  # of a loss, as a share of it


@pytest.fixture(scope="module")
def model():
    return random_model(MODEL, N_VOCAB)


@pytest.fixture(scope="module")
def contexts(model):
    """Text that the model wrote itself, so that it predicts it better than an ablated one does."""
    generator = torch.Generator().manual_seed(0)
    text = torch.randint(N_VOCAB, (300, 1), generator=generator)
    with torch.no_grad():
        for _ in range(N_CTX):
            odds = (model.hidden(text)[:, -1] @ model.embed.weight.T).softmax(-1)
            text = torch.cat([text, odds.multinomial(1, generator=generator)], dim=1)
    return text.numpy()


@pytest.fixture(scope="module")
def mean(model, contexts):
    with torch.no_grad():
        (found,) = model.read(torch.from_numpy(contexts[:, :-1]), [SITE])
    return found.flatten(0, 1).double().mean(0).numpy()


def taken(model, contexts, mean, reconstruct=lambda _: (), skip_first=0):
    return losses(model, contexts, Place((SITE,), skip_first), mean, reconstruct)


@pytest.mark.parametrize("name", SITES)
@pytest.mark.parametrize("layer", [0, 1, 2])
def test_the_two_parts_of_a_split_model_make_the_whole(model, contexts, layer, name):
    tokens, targets = torch.from_numpy(contexts[:5, :-1]), torch.from_numpy(contexts[:5, 1:])
    sites = [Site(name, layer), Site("mlp_pre", 2 if name != "mlp_pre" else layer - 1)]
    sites = [site for site in sites if site.layer >= 0]
    with torch.no_grad():
        found, follow = model.split(tokens, targets, sites)
        for value, wanted in zip(found, model.read(tokens, sites), strict=True):
            assert_rounded(value, wanted, TERMS)
        each = [model.loss(tokens[i : i + 1], targets[i : i + 1]) for i in range(5)]
        assert_rounded(follow(found).mean(1), torch.stack(each), TERMS)
        changed = follow([found[0].flip(-1), *found[1:]])
        assert ((changed - follow(found)).abs() > 1e-3).any()
        some = targets % 3 == 1
        assert_rounded(follow([found[0].flip(-1), *found[1:]], some), changed[some], TERMS)
        twice = torch.tensor([4, 0, 4])
        again = [found[0][twice].flip(-1), *(value[twice] for value in found[1:])]
        assert_rounded(follow(again, contexts=twice), changed[twice], TERMS)


def test_the_original_loss_is_the_models_own(model, contexts, mean):
    batch = torch.from_numpy(contexts)
    with torch.no_grad():
        logits = model.hidden(batch[:, :-1]) @ model.embed.weight.T
        wanted = F.cross_entropy(logits.mT, batch[:, 1:], reduction="none").mean(1)
    np.testing.assert_allclose(taken(model, contexts, mean)["original"], wanted, rtol=BAR)


def test_zero_ablation_is_a_model_whose_mlp_writes_nothing(model, contexts, mean):
    silent = random_model(MODEL, N_VOCAB)
    with torch.no_grad():
        silent.blocks[LAYER].mlp_out.weight.zero_()
    wanted = taken(silent, contexts, mean)["original"]
    np.testing.assert_allclose(taken(model, contexts, mean)["zero"], wanted, rtol=BAR)


def test_a_perfect_dictionary_recovers_all_and_the_mean_nothing(model, contexts, mean, tmp_path):
    both = np.concatenate([np.eye(D), -np.eye(D)]).astype(np.float32)
    write_dictionary(tmp_path / "perfect", both, np.ones(2 * D, np.int64))
    (entry,) = study.load(tmp_path).entries

    def made(x):
        yield "perfect", entry.trained.dictionary.reconstruct(x)
        yield "c", np.tile(mean.astype(np.float32), (len(x), 1))
        yield "n", np.zeros_like(x)

    found = taken(model, contexts, mean, made)
    original, zero, ablated = found["original"], found["zero"], found["mean"]
    assert recovered(found["perfect"], original, ablated).value == pytest.approx(1, abs=1e-4)
    assert recovered(found["perfect"], original, zero).value == pytest.approx(1, abs=1e-4)
    assert recovered(found["c"], original, ablated).value == pytest.approx(0, abs=1e-4)
    assert recovered(found["n"], original, zero).value == pytest.approx(0, abs=1e-4)


def test_positions_that_were_not_harvested_keep_their_activation(model, contexts, mean):
    skip = 6
    batch = torch.from_numpy(contexts)
    with torch.no_grad():
        (activation,), follow = model.split(batch[:, :-1], batch[:, 1:], [SITE])
        activation = activation.clone()
        activation[:, skip:] = 0
        wanted = follow([activation]).mean(1)
    seen = []

    def watched(x):
        seen.append(x.shape)
        return [("same", x)]

    found = taken(model, contexts, mean, watched, skip_first=skip)
    np.testing.assert_allclose(found["zero"], wanted, rtol=BAR)
    whole = taken(model, contexts, mean)
    np.testing.assert_array_equal(found["original"], found["same"])
    np.testing.assert_allclose(found["original"], whole["original"], rtol=BAR)
    assert found["original"].mean() < found["zero"].mean() < whole["zero"].mean()
    assert sum(n for n, _ in seen) == len(contexts) * (N_CTX - skip)


def test_more_codes_of_a_basis_recover_more_and_all_of_them_everything(model, contexts, mean):
    with torch.no_grad():
        (x,) = model.read(torch.from_numpy(contexts[:, :-1]), [SITE])
    basis = bases.fit("pca", x.flatten(0, 1).numpy(), 0)
    found = taken(model, contexts, mean, lambda x: enumerate(basis.sparse(x, [1, 6, D])))
    shares = [recovered(found[i], found["original"], found["mean"]).value for i in range(3)]
    assert shares[0] < shares[1] < shares[2]
    assert shares[2] == pytest.approx(1, abs=1e-4)


def test_where_ablation_does_no_harm_there_is_nothing_to_recover():
    two, less = np.full(4, 2.0), np.full(4, 1.9)
    assert np.isnan(recovered(two, two, less).value)
    found = recovered(np.full(4, 2.5), two, np.full(4, 2.25))
    assert (found.value, found.low, found.high) == (-1, -1, -1)


def test_the_interval_of_what_is_recovered_is_that_of_resampled_contexts():
    rng = np.random.default_rng(0)
    original, harm = rng.normal(4, 0.5, 400), rng.gamma(4, 0.25, 400)
    loss = original + harm * rng.normal(0.2, 0.1, 400)
    found = recovered(loss, original, original + harm)
    assert found.over == "contexts (bootstrap)"
    assert found.value == pytest.approx(1 - (loss - original).sum() / harm.sum())
    # of a ratio of sums, to first order: the residuals' standard error over the mean of the bottom
    residual = (harm - (loss - original)) - found.value * harm
    reach = 1.96 * residual.std() / np.sqrt(400) / harm.mean()
    assert found.high - found.low == pytest.approx(2 * reach, rel=0.15)


# --- a study as the stages write it ---------------------------------------------------------------


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    base = tmp_path_factory.mktemp("study")
    rng = np.random.default_rng(0)
    lines = [" ".join(rng.choice(["alpha", "beta", "gamma"], 20)) + f" {i}" for i in range(200)]
    prints = write_harvest(base, base, write_text_and_model(base, lines, MODEL), LAYER, 1600)
    for size in (16, 24):
        decoder, alive = unit(rng.standard_normal((size, D))), np.ones(size, np.int64)
        where = base / "sae" / f"size={size}"
        write_dictionary(where, decoder, alive, eval_rows=400, fingerprints=prints)
    return base


def config(base, **changes):
    chosen = {
        "baselines": BaselinesConfig(["neurons", "pca"], 1000, [1, 4, 99]),
        "loss_recovered": LossRecoveredConfig(320, [1, 4, 99]),
    }
    return config_of(base, **chosen | changes)


def stored(base):
    (path,) = (base / "cache" / "tokens").iterdir()
    return tokens.TokenStore.open(path)


def test_the_text_lies_behind_what_was_harvested_if_there_is_enough(base):
    manifest = files.read_json(base / "activations" / "manifest.json")
    stream = stored(base).split("validation")
    found, what = held_out(manifest, base / "cache", N_CTX, 320)
    assert (found[:, 1:].ravel() == stream.window(1601, 320)).all()
    assert (found[:, 0] == found.ravel()[0 :: N_CTX + 1]).all()
    assert "neither harvested" in what
    skipped = manifest["config"]["harvest"] | {"skip_first": 12}  # of the same contexts
    same = manifest | {"rows": 400, "config": manifest["config"] | {"harvest": skipped}}
    assert (held_out(same, base / "cache", N_CTX, 320)[0] == found).all()
    manifest["rows"] = len(stream) // N_CTX * N_CTX
    found, what = held_out(manifest, base / "cache", N_CTX, 320)
    assert (found[:, 1:].ravel() == stream.window(len(stream) - 320, 320)).all()
    assert "last of those harvested" in what
    manifest["config"]["harvest"]["split"] = "train"
    found, _ = held_out(manifest, base / "cache", N_CTX, 320)
    assert (found[0] == stream.window(0, N_CTX + 1)).all()


def of_all(base, contexts):
    """The manifest of a harvest of so many contexts of both parts, the one after the other."""
    manifest = files.read_json(base / "activations" / "manifest.json")
    manifest["config"]["harvest"]["split"] = "all"
    return manifest | {"rows": contexts * N_CTX}


def test_behind_a_harvest_of_all_it_is_never_training_text_that_is_taken(base):
    train, validation = (stored(base).split(part) for part in ("train", "validation"))
    for contexts in (10, len(train) // N_CTX - 5):  # what lies behind either is training text
        found, what = held_out(of_all(base, contexts), base / "cache", N_CTX, 320)
        assert (found[0] == validation.window(0, N_CTX + 1)).all()
        assert "validation text, neither harvested nor trained on" in what
    inside = -(-len(train) // N_CTX) + 30
    found, what = held_out(of_all(base, inside), base / "cache", N_CTX, 320)
    assert (found[0] == validation.window(inside * N_CTX - len(train), N_CTX + 1)).all()
    assert "neither harvested" in what
    whole = (len(train) + len(validation)) // N_CTX
    found, what = held_out(of_all(base, whole), base / "cache", N_CTX, 320)
    assert (found[:, 1:].ravel() == validation.window(len(validation) - 320, 320)).all()
    assert "the last of those harvested" in what


def test_without_a_validation_part_it_is_said_that_the_text_may_have_been_trained_on(
    base, tmp_path
):
    data = FilesData(1e-9, str(base / "text.jsonl"), "text")
    tokenizer = Tokenizer.load(base / "lm" / "tokenizer")
    store = tokens.prepare(data, tokenizer, tmp_path)
    manifest = of_all(base, 100) | {"corpus": store.manifest["corpus"]}
    manifest["config"]["data"]["val_fraction"] = 1e-9
    found, what = held_out(manifest, tmp_path, N_CTX, 320)
    assert (found[0] == store.split("train").window(100 * N_CTX, N_CTX + 1)).all()
    assert "no validation part" in what
    assert "not harvested" in what


def measured(base, **changes):
    context = context_of(config(base, **changes))
    frame.measure(context)
    return context


def test_the_section_holds_every_dictionary_and_every_baseline(base):
    context = measured(base)
    with figures.style():
        frame.shown(context, loss_recovered.ANALYSIS)
    table = context.tables.others["loss_recovered"]
    assert table["dictionary"].dropna().tolist() == ["size=16", "size=24"]
    assert table.dropna(subset=["baseline"])[["baseline", "l0"]].to_numpy().tolist() == [
        [basis, k] for basis in ("neuron basis", "PCA") for k in (1, 4, 7, 8)
    ]  # and what lies around the dictionaries' L0, 7.5
    assert np.isfinite(table["loss"]).all()
    assert {"recovered_mean", "recovered_zero"} <= set(table.columns)
    column = context.tables.dictionaries["loss_recovered"]
    assert column.tolist() == table["recovered_mean"][:2].tolist()


def test_dictionaries_are_judged_against_the_best_basis_at_their_own_sparsity(base):
    context = measured(base)
    (claim,) = frame.verdicts(context, loss_recovered.ANALYSIS)
    fitted, sizes = context.once(simpler.fitted).bases, context.study.entries
    contexts, _ = held_out(context.activations.manifest, base / "cache", N_CTX, 320)

    def made(x):
        for entry in sizes:
            yield entry.name, entry.trained.dictionary.reconstruct(x)
        for method, basis in fitted.items():
            yield from zip([(method, k) for k in (7, 8)], basis.sparse(x, [7, 8]), strict=True)

    model = lm_folder.opened(base / "lm", torch.device("cpu")).model
    found = taken(model, contexts, context.activations.mean, made)
    harm = (found["mean"] - found["original"]).sum()
    left = {
        basis: sum((found[basis, k] - found["original"]).sum() for k in (7, 8)) / 2 / harm
        for basis in ("neurons", "pca")
    }
    ours = np.mean([found[f"size={n}"] - found["original"] for n in (16, 24)], axis=0).sum() / harm
    best = min(left, key=left.get)
    assert claim.ours == (f"{1 - ours:.1%} recovered, {1 - left[best]:.1%} by {bases.LABELS[best]}")
    assert claim.interval[0] <= left[best] - ours <= claim.interval[1]
    assert claim.over == "contexts (bootstrap)"


@pytest.mark.parametrize("baselines", [None, BaselinesConfig(["pca"], 10, [1])])
def test_without_baselines_the_dictionaries_stand_alone(base, baselines):
    """They are off, or have too few rows."""
    context = measured(base, baselines=baselines)
    assert len(context.tables.others["loss_recovered"]) == 2
    (claim,) = frame.verdicts(context, loss_recovered.ANALYSIS)
    assert (claim.verdict, claim.needs) == ("undecided", "simpler bases that could be fitted")
    assert "baselines" in claim.command


@pytest.mark.parametrize(
    ("missing", "why"),
    [
        ({"lm_dir": "/nowhere"}, "set lm_dir"),
        ({"cache_dir": "/nowhere"}, "set cache_dir"),
        ({"activations_dir": "/nowhere"}, "does not exist"),
    ],
)
def test_what_is_missing_is_named_and_not_fatal(base, missing, why):
    context = measured(base, baselines=None, **missing)
    (text,) = frame.shown(context, loss_recovered.ANALYSIS).blocks
    assert "This part is missing" in text
    assert why in text


def test_another_model_than_the_harvested_one_is_refused(base, tmp_path):
    import shutil

    shutil.copytree(base / "lm", tmp_path / "lm")
    other = GPT(MODEL, Tokenizer.load(base / "lm" / "tokenizer").n_vocab)
    save_file(other.state_dict(), tmp_path / "lm" / "model.safetensors")
    record = files.read_json(tmp_path / "lm" / "lm.json")
    record["fingerprints"]["model"] = lm_folder.fingerprint(tmp_path / "lm" / "model.safetensors")
    files.write_json(tmp_path / "lm" / "lm.json", record)
    context = measured(base, lm_dir=str(tmp_path / "lm"))
    assert "language model that was harvested" in context.missing["loss_recovered"]
