"""Dictionaries of several sites of one harvest: what is compared with what."""

from pathlib import Path

import numpy as np
import pytest
from analysis_study import EVAL_ROWS, compared, config_of, context_of, directions, write_dictionary
from lm_files import random_model
from rounding import rounding, through
from site_harvest import harvest_of

from sparse_dict.activations.store import Activations
from sparse_dict.analysis import frame, study
from sparse_dict.analysis.harvested import Place
from sparse_dict.analysis.measured import other_activations
from sparse_dict.analysis.measured.reconstruction_loss import ORIGINAL, ZERO, losses
from sparse_dict.analysis.sections import elsewhere
from sparse_dict.config import ModelConfig
from sparse_dict.config.sites import Site
from sparse_dict.errors import UserError

N = 12  # features


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A study of dictionaries of three sites, whose features are active on the same tokens.

    Of the second site they are those of the first in another order; of the third, other ones. Both
    of the first two are in the residual stream, where the second half of the features points
    elsewhere.
    """
    rng = np.random.default_rng(0)
    first, second = (rng.exponential(size=(3000, N)) * (rng.random((3000, N)) < 0.2) for _ in "ab")
    wide = directions(N, 32, 1)
    moved = np.concatenate([wide[:6], directions(6, 32, 2)])
    order = rng.permutation(N)
    rows = {
        "1/resid_mid": first @ wide, "1/resid_post": first @ moved,
        "2/mlp_post": second @ directions(N, 48, 3),
    }  # fmt: skip
    print_ = Activations.open(harvest_of(tmp_path / "activations", rows)).fingerprint
    decoders = {
        "1/resid_mid": wide,
        "1/resid_post": moved[order],
        "2/mlp_post": directions(N, 48, 3),
    }
    for site, decoder in decoders.items():
        encoder = np.linalg.pinv(decoder).T.astype("f4")
        for seed in (0, 1) if site == "1/resid_mid" else (0,):
            write_dictionary(
                tmp_path / "sae" / f"{site.replace('/', '-')},{seed}", decoder,
                np.full(N, EVAL_ROWS // 4), encoder=encoder, seed=seed, sae={"site": site},
                fingerprints={"activations": print_}, eval_rows=1000,
            )  # fmt: skip
    larger = directions(2 * N, 48, 9)
    write_dictionary(
        tmp_path / "sae" / "larger", larger, np.full(2 * N, 9), sae={"site": "2/mlp_post"},
        fingerprints={"activations": print_}, eval_rows=1000,
    )  # fmt: skip
    return tmp_path


def test_dictionaries_are_compared_with_those_of_their_site_alone(folder):
    found = study.load(folder / "sae")
    assert (found.at, found.d_in, len(found.entries)) == ("1/resid_mid", 32, 2)
    assert [one.at for one in study.everywhere(found)] == [
        "1/resid_mid", "1/resid_post", "2/mlp_post",
    ]  # fmt: skip
    assert {e.family for one in study.everywhere(found) for e in one.entries} == {""}
    other = study.load(folder / "sae", site="2/mlp_post")
    assert (other.d_in, len(other.entries), len(other.chains)) == (48, 2, 1)
    with pytest.raises(UserError, match=r"site=3/mlp_post: .* of 1/resid_mid, 1/resid_post, 2/mlp"):
        study.load(folder / "sae", site="3/mlp_post")


def test_a_site_s_analyses_are_given_its_columns(folder):
    context = context_of(config_of(folder))
    whole = Activations.open(folder / "activations")
    assert context.activations.d_in == 32
    np.testing.assert_array_equal(context.evaluation_rows(), whole.read(2000, 3000)[:, :32])
    last = context.study.beside[1]
    np.testing.assert_array_equal(context.sample_of(last), whole.read(2000, 3000)[:, 64:])


def test_features_are_followed_by_their_codes_and_in_the_residual_stream_by_direction(folder):
    context = context_of(config_of(folder, "elsewhere"))
    context.folder.mkdir(parents=True)
    frame.measure(context)
    table = context.tables.others["sites"].set_index(["site", "next", "map"])
    codes, mapped = table.xs("codes", level="map"), table.xs("identity", level="map")
    first = codes.loc[("1/resid_mid", "1/resid_post")]
    assert first["correlation"] == pytest.approx(1, abs=1e-3)
    assert first["chance"] < 0.2
    again = codes.loc[("1/resid_mid", other_activations.SEEDS)]
    assert again["correlation"] == pytest.approx(1, abs=1e-3)
    assert codes.loc[("1/resid_post", "2/mlp_post"), "correlation"] < 0.2
    assert {following for _, following in mapped.index} == {"1/resid_post", other_activations.SEEDS}
    first = mapped.loc[("1/resid_mid", "1/resid_post")]
    assert first["above"] == first["above_alive"] == pytest.approx(0.5)
    assert first["mmcs"] > first["random_mmcs"]
    section = frame.shown(context, elsewhere.ANALYSIS)
    pictures = [block.key for block in section.blocks if hasattr(block, "caption")]
    assert pictures == ["sites_mmcs", "sites_agreement"]
    table, _ = section.tables()
    assert table.frame["site"].tolist() == [
        "1/resid_mid", "1/resid_post", "2/mlp_post", "2/mlp_post",
    ]  # fmt: skip


def test_a_study_of_one_site_has_no_such_section(tmp_path):
    write_dictionary(tmp_path / "sae" / "a", directions(4, 8, 0), np.ones(4, np.int64))
    assert not elsewhere.ANALYSIS.applies(compared(tmp_path / "sae"))


def test_a_transcoder_takes_the_place_of_the_mlp():
    """One whose skip is the MLP's last matrix changes nothing; one that is zero ablates it."""
    shape = ModelConfig(n_layers=2, n_heads=2, d_model=8, d_mlp=12, n_ctx=16)
    model = random_model(shape, 31)
    W = model.blocks[1].mlp_out.weight.detach().numpy()
    contexts = np.random.default_rng(0).integers(0, 31, (20, 17))

    def made(x):
        return [("exact", x @ W.T), ("nothing", np.zeros((len(x), 8), np.float32))]

    place, target = (Place((Site(name, 1),), 1) for name in ("mlp_post", "mlp_out"))
    found = losses(model, contexts, place, np.zeros(8), made, target)
    bar = rounding(through(shape, 31))
    assert found["exact"] == pytest.approx(found[ORIGINAL], rel=bar)
    assert found["nothing"] == pytest.approx(found[ZERO], rel=bar)
    assert abs(found["nothing"] - found[ORIGINAL]).max() > 1e-3
