"""The activations behind a study's dictionaries, the language model that made them, and its text.

Each is looked for where the config says, then where the earlier stages' records say (a language
model of ours only if it lies beside the study), and used only if it has the recorded fingerprint.
"""

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sparse_dict.activations.side_by_side import TOGETHER, open_all
from sparse_dict.activations.store import MANIFEST, Activations, Manifest
from sparse_dict.analysis.study import Study
from sparse_dict.config import AnalyzeConfig, HFModel
from sparse_dict.config.sites import Site, parse
from sparse_dict.errors import UserError, reading
from sparse_dict.lm import folder as lm_folder
from sparse_dict.lm.interface import OpenLM
from sparse_dict.machine import runtime
from sparse_dict.storage import files, records
from sparse_dict.text.tokens import TokenStore, TokenStream

NEURONS = ("mlp_pre", "mlp_post")  # sites whose columns are neurons


@dataclass(frozen=True)
class Place:
    """Where in the model the activations were taken, and which positions were left out."""

    sites: tuple[Site, ...]  # side by side in a row
    skip_first: int  # positions at the start of each context that have no rows

    @property
    def of_neurons(self) -> bool:
        """Whether every column of a row is a neuron."""
        return bool(self.sites) and all(site.name in NEURONS for site in self.sites)


def activations_of(study: Study, config: AnalyzeConfig) -> Activations:
    """The activations that the study's dictionaries read: the columns of their site.

    They may be arrays that no language model made.
    """
    reasons = []
    for together in _folders(config, study):
        try:
            found = open_all(*together)
        except UserError as error:
            reasons.append(str(error))
            continue
        if found.fingerprint == _wanted(study):
            return found.at(study.site)
        there = f"{' and '.join(map(str, together))} (fingerprint {found.fingerprint})"
        reasons.append(f"{there} holds other activations than the dictionaries were trained on")
    raise UserError(f"{'; '.join(reasons)} (fingerprint {_wanted(study)})")


def targets_of(study: Study, config: AnalyzeConfig) -> Activations:
    """What the study's dictionaries reconstruct."""
    read = activations_of(study, config)
    return read if study.target is None else open_all(*read.folders).at(study.target)


def recorded(activations: Activations) -> dict[str, Any]:
    """The record of the harvest that made them; its types unchecked."""
    if activations.manifest is None:
        raise UserError("these activations do not come from a language model")
    return activations.manifest


def manifest_of(config: AnalyzeConfig, study: Study) -> dict[str, Any]:
    """The record of the harvest of a study's activations, also where these are no longer there."""
    for folder in (folder for together in _folders(config, study) for folder in together):
        with suppress(UserError):
            manifest = records.read(folder / MANIFEST, Manifest)
            if manifest["fingerprints"].get("activations") == _wanted(study):
                return dict(manifest)
    raise UserError("no harvest of the dictionaries' activations was found")


def _wanted(study: Study) -> str | None:
    """The fingerprint of the activations that the dictionaries were trained on."""
    return (study.entries[0].metrics.get("fingerprints") or {}).get("activations")


def _folders(config: AnalyzeConfig, study: Study) -> list[list[Path]]:
    """Where to seek the activations of a study's dictionaries; several may lie side by side.

    Wherever the dictionaries recorded theirs to be, they are used only if their fingerprint fits.
    """
    found = [config.activations_dirs]
    there = study.entries[0].metrics["config"].get("activations_dir")
    names = there if isinstance(there, list) else [there]
    with suppress(OSError, TypeError, ValueError):  # a record may hold what can be no path
        for name in names:
            Path(name).is_dir()
        found += [[Path(name) for name in names]] if names else []
    if len(config.sae_dirs) > 1:
        found.insert(0, [study.folder.parent / "activations"])
    return [part for i, part in enumerate(found) if part not in found[:i]]


def place(manifest: dict[str, Any], site: str | None = None) -> Place:
    """Where the activations were taken: all sites, or only `site`."""
    if TOGETHER in manifest:
        raise UserError("these activations are of several harvests, not of a single model")
    if "model" not in manifest["fingerprints"]:
        raise UserError("these activations do not come from a language model")
    with reading(Path(MANIFEST)):
        skip = manifest["config"]["harvest"].get("skip_first") or 0
        names = [site] if site else [part["site"] for part in manifest.get("sites", ())]
        sites = [parse(name, None, "site") for name in names]
        return Place(tuple(sites or [parse(manifest["site"], manifest.get("layer"), "site")]), skip)


def model(manifest: dict[str, Any], config: AnalyzeConfig) -> OpenLM:
    """The language model that the activations were taken from, on the config's device."""
    device = runtime.device(config.device)
    if is_ours(manifest):
        return lm_folder.opened(model_record(manifest, config)[0], device)
    wanted = manifest["fingerprints"]["model"]
    with reading(Path(MANIFEST)):
        own = manifest["config"]["lm"]
        found = HFModel(
            str(own["name_or_path"]), manifest.get("lm_commit") or own["revision"], own["n_ctx"],
            own["dtype"], own.get("bos") or False,
        )  # fmt: skip
    moved = Path(config.lm_dir)
    if (moved / "config.json").is_file():
        found.name_or_path, found.revision = str(moved), None
    if lm_folder.hf().fingerprint(found) != wanted:
        raise UserError(
            f"{found.name_or_path} is not the model that was harvested (fingerprint {wanted}); "
            "set lm_dir to that model's folder"
        )
    opened: OpenLM = lm_folder.hf().opened(found, device)
    return opened


def is_ours(manifest: dict[str, Any]) -> bool:
    """Whether the language model is one of train_lm.py's."""
    return "lm" not in manifest.get("config", {})


def model_record(manifest: dict[str, Any], config: AnalyzeConfig) -> tuple[Path, lm_folder.Record]:
    """The folder of the language model that the activations were taken from, and its record."""
    wanted = manifest["fingerprints"].get("model")
    there: Any = manifest.get("lm_dir")
    home = Path(config.study_dir).resolve().parent
    tried = [Path(config.lm_dir)]
    with suppress(OSError, TypeError, ValueError):  # a foreign record may name anything
        if Path(there).resolve().is_relative_to(home) and Path(there) not in tried:
            tried.append(Path(there))
    for folder in tried:
        if (folder / lm_folder.RECORD).exists():
            record = lm_folder.read_record(folder)
            if record["fingerprints"]["model"] == wanted:
                return folder, record
    raise UserError(
        f"the language model that was harvested (fingerprint {wanted}) is not in "
        f"{' or '.join(map(str, tried))}; set lm_dir"
    )


def text(manifest: dict[str, Any], cache_dir: Path, n_ctx: int) -> tuple[TokenStream, int]:
    """The tokens of the split that was harvested, and how many contexts from its start were."""
    folder, _, split = tokens(manifest, cache_dir)
    skip = place(manifest).skip_first
    if skip >= n_ctx:
        raise UserError(f"the activations leave out {skip} positions of contexts of {n_ctx}")
    return TokenStore.open(folder).split(split), -(-int(manifest["rows"]) // (n_ctx - skip))


def tokens(manifest: dict[str, Any], cache_dir: Path) -> tuple[Path, dict[str, Any], str]:
    """The folder of the harvested text's tokens, its record, and the split that was harvested."""
    with reading(Path(MANIFEST)):
        wanted = {
            "corpus": manifest["corpus"],
            "val_fraction": manifest["config"]["data"]["val_fraction"],
            "tokenizer": manifest["fingerprints"]["tokenizer"],
        }
        split = manifest["config"]["harvest"]["split"]
    for path in sorted(cache_dir.glob("tokens/*/manifest.json")):
        there = files.read_json(path)
        if all(there.get(key) == value for key, value in wanted.items()):
            return path.parent, there, split
    raise UserError(
        f"the tokens that were harvested are not in {cache_dir / 'tokens'}; set cache_dir, or run "
        "harvest.py anew with another activations_dir to have them made again"
    )
