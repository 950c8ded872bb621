"""What runs are called."""

import pytest

from sparse_dict.sae.run_names import labels, run_name


@pytest.mark.parametrize(
    ("jobs", "expected"),
    [
        (
            [f"name=x sae.dict_size={n} sae.l1=4e-2 seed={s}" for n in (64, 512) for s in (0, 1)],
            ["64 · seed 0", "64 · seed 1", "512 · seed 0", "512 · seed 1"],
        ),
        (
            ["sae.l1=4e-2 seed=0 sae.dict_size=8", "sae.l1=1e-3 seed=1 sae.dict_size=16"],
            ["8 · L1 0.04 · seed 0", "16 · L1 0.001 · seed 1"],
        ),
        (
            ["sae=topk sae.k=8 +optimizer.lr=1e-3", "sae=untied sae.l1=1e-2 +optimizer.lr=3e-3"],
            ["topk · k 8 · lr 0.001", "untied · L1 0.01 · lr 0.003"],
        ),
        (
            ["sae.site=2/mlp_post seed=0", "sae.site=2/resid_mid sae.target=2/mlp_out seed=0"],
            ["2/mlp_post", "2/resid_mid · to 2/mlp_out"],
        ),
        (["seed=0"], [None]),
    ],
    ids=["one L1", "all", "kinds", "sites", "one job"],
)  # fmt: skip
def test_a_name_holds_what_varies_in_the_grid_and_nothing_else(jobs, expected):
    assert labels([job.split() for job in jobs]) == expected


def test_outside_a_grid_a_name_holds_size_sparsity_and_seed():
    sae = {"dict_size": 512, "activation": "topk", "k": 8, "l1": 0.0}
    assert run_name({"sae": sae, "seed": 3}) == "512 · k 8 · seed 3"
    at = {"site": "1/resid_mid", "target": "1/mlp_out"}
    named = run_name({"sae": sae | at, "seed": 3})
    assert named == "512 · 1/resid_mid · to 1/mlp_out · k 8 · seed 3"
    assert run_name({"sae": sae, "seed": 3, "tracking": {"label": None}}) == "512 · k 8 · seed 3"
    assert run_name({"sae": sae, "seed": 3, "tracking": {"label": "mine"}}) == "mine"
