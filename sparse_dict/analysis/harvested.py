"""Whether the language model can be run again with the activations: what their manifest says."""

from typing import Any

from sparse_dict.errors import UserError

SITE = "mlp_post"  # what `GPT.split` and the logit effects are made for


def layer_and_site(manifest: dict[str, Any]) -> tuple[int, str]:
    """Layer and site of the activations.

    Raises:
        UserError: it is another site than the MLP's hidden layer, several, without the first
            positions of a context, or of a language model that is not ours.
    """
    try:
        config = manifest["config"]
        if "model" not in manifest["fingerprints"] or "lm" in config:
            raise UserError("these activations do not come from a language model of ours")
        if "sites" in manifest:
            names = ", ".join(str(entry["site"]) for entry in manifest["sites"])
            raise UserError(f"these activations are of several sites side by side ({names})")
        if manifest["site"] != SITE:
            raise UserError(f"these activations are of the site {manifest['site']}, not {SITE}")
        if config["harvest"].get("skip_first"):
            raise UserError("these activations leave out the first positions of each context")
        return int(manifest["layer"]), SITE
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"the activations' manifest lacks {error}") from None
