"""Short names and direct paths in every family of `families.py`, by computations of their own."""

import pytest
import torch

pytest.importorskip("transformers")

import families

from sparse_dict.config.sites import SITES, Site
from sparse_dict.errors import UserError
from sparse_dict.lm.hf import Model

pytestmark = pytest.mark.slow

EPS = torch.finfo(torch.float32).eps


def test_the_page_lists_the_names_that_each_family_has():
    text = families.PAGE.read_text(encoding="utf-8")
    assert families.page(text) == text, "python tests/families.py writes it anew"


def close(one, other, *parts):
    """Whether two tensors differ by no more than four roundings of the parts of a sum."""
    largest = torch.stack([part.abs().max() for part in (other, *parts)]).max()
    return (one - other).abs().max() <= 4 * EPS * largest


@torch.no_grad()
@pytest.mark.parametrize("family", families.FAMILIES)
def test_a_site_is_what_its_name_says_and_is_replaced_as_such(family):
    model = Model(families.build(family))
    text = torch.randint(3, families.N_VOCAB, (2, 13), generator=torch.Generator().manual_seed(0))
    tokens, targets = text[:, :-1], text[:, 1:]
    hidden = model.model(tokens, output_hidden_states=True, use_cache=False).hidden_states
    logits = model.model(tokens, use_cache=False).logits
    whole = torch.nn.functional.cross_entropy(logits.mT, targets, reduction="none").mean(1)
    for layer, block in enumerate(model.layout.blocks):
        at = {name: model.read(tokens, [Site(name, layer)])[0] for name in block.places}
        if layer and hidden is not None:  # some list them from the first block's on
            assert any(torch.equal(at["resid_pre"], value) for value in hidden)
        pre, attn, mid, mlp = map(at.get, ("resid_pre", "attn_out", "resid_mid", "mlp_out"))
        if attn is not None and mid is not None:
            assert close(pre + attn, mid, pre, attn)
        if mlp is not None and mid is not None:
            assert close(mid + mlp, at["resid_post"], mid, mlp)
        elif mlp is not None and attn is not None:
            assert close(pre + attn + mlp, at["resid_post"], pre, attn, mlp)

        def loss(name, value, layer=layer):
            found, follow = model.split(tokens, targets, [Site(name, layer)])
            torch.testing.assert_close(follow(found).mean(1), whole)
            return follow([value]).mean(1)

        for part, behind in (("mlp_out", "resid_post"), ("attn_out", "resid_mid")):
            if part == "attn_out" and mid is None:
                behind = "resid_post"
            if part in at and (part == "mlp_out" or mid is not None or mlp is not None):
                without = loss(behind, at[behind] - at[part])
                torch.testing.assert_close(loss(part, 0 * at[part]), without)
        for name in ("mlp_pre", "mlp_post"):
            if name in at:
                assert not torch.allclose(loss(name, at[name] + 1), whole)
    for name in SITES:
        if all(name not in block.places for block in model.layout.blocks):
            with pytest.raises(UserError, match=f"0/{name} does not exist"):
                model.read(tokens, [Site(name, 0)])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", ["llama", "gpt_neox", "bloom", "gemma2", "granite", "opt"])
def test_names_do_not_depend_on_what_a_model_computes_in(family, dtype):
    exact, coarse = (
        Model(families.build(family).to(kind)).layout for kind in (torch.float32, dtype)
    )
    assert [block.places for block in coarse.blocks] == [block.places for block in exact.blocks]
    assert coarse.head[0] == exact.head[0]
    assert coarse.head[1] == pytest.approx(exact.head[1], rel=1e-3)


@torch.no_grad()
@pytest.mark.parametrize("family", families.FAMILIES)
def test_the_direct_path_is_what_the_models_own_head_makes_of_a_direction(family):
    model = Model(families.build(family))
    layers = model.layout.blocks
    last = Site("resid_post", len(layers) - 1)
    rows = torch.randn((2, families.D), generator=torch.Generator().manual_seed(0))
    if "logits" in families.lacks(model.layout):
        with pytest.raises(UserError, match=r"do not only add|more than a norm"):
            model.direct(Site("resid_pre", 0), rows)
        return
    block = model.model.get_submodule(f"{model.layout.path}.{last.layer}")
    tokens = torch.randint(3, families.N_VOCAB, (2, 1))

    def logits(value):  # (2, n_vocab) of (2, D)
        def instead(_, __, output):
            return (value[:, None], *output[1:]) if isinstance(output, tuple) else value[:, None]

        with block.register_forward_hook(instead):
            return model.model(tokens, use_cache=False).logits[:, 0]

    # Rows so large that the norm's epsilon is nothing; the half difference leaves out its bias.
    found = (logits(1e3 * rows) - logits(-1e3 * rows)) / 2
    direct = model.direct(last, rows)
    if getattr(model.model.config, "final_logit_softcapping", None) or family == "recurrent_gemma":
        assert (found.gather(1, direct.argsort(1)).diff() >= -1e-4).all()
    else:
        rms = [
            x.square().mean(1, keepdim=True).sqrt() for x in (rows, rows - rows.mean(1)[:, None])
        ]
        assert any(torch.allclose(found * r, direct, rtol=1e-3, atol=1e-4) for r in rms)
    # What the MLP's hidden layer adds is what lies between the residual stream before and behind.
    text = torch.randint(3, families.N_VOCAB, (1, 12), generator=torch.Generator().manual_seed(0))
    for layer, known in enumerate(layers):
        if not {"mlp_post", "resid_mid"} <= known.places.keys():
            continue
        sites = [Site(name, layer) for name in ("mlp_post", "resid_mid", "resid_post")]
        hidden, mid, post = (found[0] for found in model.read(text, sites))
        if known.down is None:
            with pytest.raises(UserError, match="changes what the MLP"):
                model.direct(sites[0], hidden)
            continue
        added = (post - mid)[1:] - (post - mid)[:1]  # without the bias of the last matrix
        one = model.direct(sites[0], hidden[1:] - hidden[:1])
        torch.testing.assert_close(one, model.direct(sites[2], added), rtol=1e-3, atol=1e-3)
