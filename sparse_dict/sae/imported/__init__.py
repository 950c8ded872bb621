"""Dictionaries that other libraries wrote: one module per format, each with `CONFIG` and `read`."""

import re
from pathlib import Path

from sparse_dict.errors import UserError, one_line, reading
from sparse_dict.sae import folder as ours
from sparse_dict.sae.folder import Dictionary
from sparse_dict.sae.imported import dictionary_learning, saelens, sparsify
from sparse_dict.sae.imported.parts import Foreign
from sparse_dict.storage.files import read_json

# By the file that holds the weights, which no two formats share.
FORMATS = {
    "sae_weights.safetensors": saelens,
    "ae.pt": dictionary_learning,
    "sae.safetensors": sparsify,
}
HUB = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+)(?:/(?P<inside>[\w.-]+(?:/[\w.-]+)*))?")


def read(source: str) -> Foreign:
    """Read a dictionary of SAELens, dictionary_learning or sparsify.

    `source` is its folder, or a name on the Hugging Face hub: OWNER/REPOSITORY/FOLDER/IN/IT.
    """
    folder = Path(source).expanduser()
    if not folder.is_dir():
        folder = _fetched(source)
    for weights, found in FORMATS.items():
        if (folder / weights).is_file():
            with reading(folder / found.CONFIG):
                config = read_json(folder / found.CONFIG)
                foreign = found.read(folder / weights, config)
                n, d_in = foreign.dictionary.W_dec.shape
                if not n * d_in:
                    raise UserError(f"{folder / weights} holds {n} features of {d_in} columns")
                ours.refuse_misfit(folder / weights, foreign.dictionary, n)
            return foreign
    raise UserError(f"no dictionary in {folder}: give the folder of {' or '.join(FORMATS)}")


def read_any(source: str) -> Dictionary:
    """A dictionary of our own, or as `read`."""
    if (Path(source) / ours.METRICS).is_file():
        return ours.read(Path(source)).dictionary
    return read(source).dictionary


def _fetched(name: str) -> Path:
    import huggingface_hub

    match = HUB.fullmatch(name)
    if match is None:
        raise UserError(f"{name} is not a folder, nor a name OWNER/REPOSITORY/FOLDER on the hub")
    inside = match["inside"] or ""
    wanted = [f"{inside}/{file}".lstrip("/") for file in (*FORMATS, "cfg.json", "config.json")]
    try:
        local = huggingface_hub.snapshot_download(match["repo"], allow_patterns=wanted)
    except (OSError, ValueError, RuntimeError) as error:  # what the hub's client raises
        raise UserError(f"{name} is not a folder, and the hub: {one_line(error)}") from None
    return Path(local) / inside
