"""Names of the places in a language model whose activations are harvested."""

import re
from dataclasses import dataclass

from sparse_dict.errors import UserError

# What a block computes, in this order, and TransformerLens' names of it.
SITES = {
    "resid_pre": "hook_resid_pre",  # the residual stream before the block
    "attn_out": "hook_attn_out",  # what the attention adds to it
    "resid_mid": "hook_resid_mid",  # the residual stream between attention and MLP
    "mlp_pre": "mlp.hook_pre",  # the MLP's hidden layer before its non-linearity
    "mlp_post": "mlp.hook_post",  # what the MLP's last matrix reads
    "mlp_out": "hook_mlp_out",  # what the MLP adds to the residual stream
    "resid_post": "hook_resid_post",  # the residual stream behind the block
}
# Of these, those whose rows are directions of the residual stream.
RESIDUAL = frozenset({"resid_pre", "attn_out", "resid_mid", "mlp_out", "resid_post"})
MODULE = re.compile(r"\w+([.]\w+)*(:(in|out))?")


@dataclass(frozen=True)
class Site:
    """One place: a short name and its layer, or without a layer the path of a module."""

    name: str
    layer: int | None = None

    def __str__(self) -> str:
        return self.name if self.layer is None else f"{self.layer}/{self.name}"


def parse(text: str, layer: int | None, key: str) -> Site:
    """The site that `text` names; `layer` is that of a short name that is given without one."""
    number, slash, name = text.rpartition("/")
    if slash and number.isascii() and number.isdigit() and name in SITES:
        return Site(name, int(number))
    if layer is not None and text in SITES:
        return Site(text, layer)
    if MODULE.fullmatch(text) and ("." in text or ":" in text):
        return Site(text)
    short = f"one of {', '.join(SITES)}"
    raise UserError(
        f"{key} must be {short if layer is not None else f'LAYER/SITE, where SITE is {short}'}, "
        f"or with lm=hf a module's path such as model.layers.3.mlp.down_proj:in, not {text!r}"
    )
