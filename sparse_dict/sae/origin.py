"""Where in which language model activations were taken, by whatever name."""

import re
from dataclasses import dataclass

from sparse_dict.activations.store import Activations
from sparse_dict.config.sites import MODULE, SITES, Site, parse

UNKNOWN = "unknown"  # what SAELens' metadata say of a site that has no name
BY_HOOK = {hook: name for name, hook in SITES.items()}
# What comes out of the modules of a block, by the paths that sparsify names its folders after
BY_MODULE = {"": "resid_post", "mlp": "mlp_out"}
BY_MODULE |= dict.fromkeys(("attn", "self_attn", "attention"), "attn_out")
IN_A_BLOCK = re.compile(r"(?:^|[.])(?:blocks|layers|layer|h)[.](\d+)(?:[.]([\w.]+))?(:in|:out)?$")
IN_WORDS = re.compile(r"layer[_ ]?(\d+)")


@dataclass(frozen=True)
class Origin:
    """As far as it is known."""

    hook: str | None = None  # TransformerLens' name of the site, a module's path, or words
    model: str | None = None

    def __str__(self) -> str:
        model = self.model or "a model that is not named"
        return f"{self.hook or 'a site that is not named'} of {model}"

    def elsewhere(self, other: "Origin") -> bool:
        """Whether `other` is another place of a model, as far as both are known."""
        ours, theirs = _place(self.hook), _place(other.hook)
        return any(
            None not in both and both[0] != both[1] for both in zip(ours, theirs, strict=True)
        )

    def differs(self, other: "Origin") -> bool:
        """Whether `other` is another place or of another model, as far as both are known."""
        models = [_short(model) for model in (self.model, other.model) if model]
        return self.elsewhere(other) or len({*models}) > 1


def _short(model: str) -> str:
    return model.rstrip("/").rpartition("/")[2].lower().removesuffix("-small")


def _place(hook: str | None) -> tuple[int | None, str | None]:
    """Layer and short name of a site; what enters a block is what the one before it put out."""
    if found := IN_A_BLOCK.search(hook or ""):
        layer, inside, side = int(found[1]), found[2] or "", found[3]
        name = BY_HOOK.get(inside) or (None if side == ":in" else BY_MODULE.get(inside))
        return (layer - 1, "resid_post") if name == "resid_pre" and layer else (layer, name)
    if found := IN_WORDS.search(hook or ""):
        return int(found[1]), next((name for name in SITES if name in str(hook)), None)
    return None, None


def of_activations(activations: Activations, site: str | None = None) -> Origin:
    """Where a harvest was taken, or the columns of one of its sites; nothing of arrays."""
    manifest = activations.manifest or {}
    lm = (manifest.get("config") or {}).get("lm") or {}
    model = lm.get("name_or_path", manifest.get("lm_dir"))
    place = Site(str(manifest.get("site")), manifest.get("layer"))
    if site is not None:
        place = parse(site, None, "sae.site")
    hook = None
    if place.layer is not None and place.name in SITES:
        hook = f"blocks.{place.layer}.{SITES[place.name]}"
    elif place.layer is None and _is_path(place.name):
        hook = place.name
    return Origin(hook, model)


def site_of(hook: object) -> Site | None:
    """The site that `of_activations` calls `hook`; None for what is not one of ours."""
    if not isinstance(hook, str):
        return None
    found = re.fullmatch(r"blocks[.](\d+)[.]([\w.]+)", hook)
    if found and (name := BY_HOOK.get(found[2])):
        return Site(name, int(found[1]))
    return Site(hook) if _is_path(hook) and not found else None


def _is_path(text: str) -> bool:
    return MODULE.fullmatch(text) is not None and ("." in text or ":" in text)
