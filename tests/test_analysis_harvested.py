import pytest

from sparse_dict.analysis.harvested import Place, place
from sparse_dict.config.sites import Site
from sparse_dict.errors import UserError

PATH = "model.layers.3.mlp:in"


def manifest(**changes):
    values = {
        "layer": 2, "site": "mlp_post", "rows": 100, "fingerprints": {"model": "m"},
        "config": {"harvest": {"layer": 2, "site": "mlp_post"}},
    }  # fmt: skip
    return {key: value for key, value in (values | changes).items() if value is not None}


@pytest.mark.parametrize(
    ("changes", "sites"),
    [
        ({}, [Site("mlp_post", 2)]),
        ({"site": "resid_post"}, [Site("resid_post", 2)]),
        ({"layer": None, "site": PATH}, [Site(PATH)]),
        ({"sites": [{"site": "2/mlp_post"}, {"site": PATH}]}, [Site("mlp_post", 2), Site(PATH)]),
    ],
)
def test_the_manifest_says_which_sites_a_row_holds(changes, sites):
    assert place(manifest(**changes)) == Place(tuple(sites), 0)


def test_the_columns_of_an_mlps_hidden_layer_are_neurons_and_others_are_not():
    assert place(manifest()).of_neurons
    assert not place(manifest(sites=[{"site": "2/mlp_post"}, {"site": "2/resid_mid"}])).of_neurons


def test_the_first_positions_may_be_left_out():
    assert place(manifest(config={"harvest": {"skip_first": 3}})).skip_first == 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fingerprints": {"truth": "t"}}, "do not come from a language model"),
        ({"layer": None}, "site must be LAYER/SITE"),
        ({"site": None}, "lacks 'site'"),
        ({"site": None, "sites": []}, "lacks 'site'"),
        ({"config": None}, "lacks 'config'"),
    ],
)
def test_what_the_manifest_does_not_say_is_named(changes, message):
    with pytest.raises(UserError, match=message):
        place(manifest(**changes))
