import pytest

from sparse_dict.analysis.harvested import Place, place
from sparse_dict.errors import UserError


def manifest(**changes):
    values = {
        "layer": 2, "site": "mlp_post", "rows": 100, "fingerprints": {"model": "m"},
        "config": {"harvest": {"layer": 2, "site": "mlp_post"}},
    }  # fmt: skip
    return {key: value for key, value in (values | changes).items() if value is not None}


def test_the_mlps_hidden_layer_can_be_put_back_into_our_model():
    assert place(manifest()) == Place(2, "mlp_post", 0)


def test_the_first_positions_may_be_left_out():
    assert place(manifest(config={"harvest": {"skip_first": 3}})).skip_first == 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"site": "resid_post"}, "of the site resid_post, not mlp_post"),
        ({"layer": None, "site": "model.layers.3.mlp:in"}, "of the site model.layers.3.mlp:in"),
        ({"sites": [{"site": "2/mlp_post"}, {"site": "3/mlp_post"}]}, "2/mlp_post, 3/mlp_post"),
        ({"config": {"harvest": {}, "lm": {"name_or_path": "gpt2"}}}, "model of ours"),
        ({"fingerprints": {"truth": "t"}}, "model of ours"),
        ({"layer": None}, "lacks 'layer'"),
    ],
)
def test_anything_else_is_said_not_to_be_told(changes, message):
    with pytest.raises(UserError, match=message):
        place(manifest(**changes))
