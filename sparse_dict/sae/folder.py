"""A dictionary's folder: SAELens' format, what we measured, and the checkpoint while training."""

import copy
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NotRequired

import numpy as np
import numpy.typing as npt
from typing_extensions import TypedDict

from sparse_dict.annotations import TorchDictionary
from sparse_dict.config.sites import Site
from sparse_dict.errors import UserError, advising, reading
from sparse_dict.sae.origin import UNKNOWN, site_of
from sparse_dict.storage import records, tensor_files
from sparse_dict.storage.arrays import Rows, as_rows
from sparse_dict.storage.files import sealed, sha256_of, write_json
from sparse_dict.storage.records import Amount, Count, Number, Positive, Shown, Texts, Whole

Array = npt.NDArray[np.float32]

WEIGHTS = "sae_weights.safetensors"
FEATURES = "features.safetensors"
METRICS = "metrics.json"
CHECKPOINT = "checkpoint.safetensors"
SNAPSHOTS = "snapshots"
CONFIG = "cfg.json"
HISTORY = "history.csv"
HASHED = (WEIGHTS, CONFIG, FEATURES, HISTORY)  # and snapshots: their SHA-256 is in metrics.json
WEIGHT_NAMES = ("W_enc", "b_enc", "W_dec", "b_dec", "threshold")


class _Settings(TypedDict):  # the section `sae` of a config, as far as it is read back
    k: NotRequired[Number | None]
    l0: NotRequired[Number | None]


class _Config(TypedDict):  # a config's sections
    sae: NotRequired[_Settings | None]  # which an imported dictionary has not
    training: NotRequired[dict[str, Any] | None]


class Metrics(TypedDict):
    """`metrics.json`; earlier versions recorded less of it."""

    config: _Config
    dict_size: Count
    eval_rows: Count
    seed: Whole
    fvu: Number
    l0: Number
    l1: Number
    mse: NotRequired[Number | None]
    l1_norm: NotRequired[Number | None]
    variance: NotRequired[Amount | None]
    dead: NotRequired[Count | None]
    n_activations: NotRequired[Count | None]
    trained_together: NotRequired[Count | None]
    seconds: NotRequired[Amount | None]
    fingerprints: NotRequired[Texts | None]
    sha256: NotRequired[Texts | None]
    tied: NotRequired[Shown | None]
    l1_scaling: NotRequired[Shown | None]
    activation: NotRequired[Shown | None]


class _Kind(TypedDict):  # `cfg.json`, as far as it is read back
    k: NotRequired[Positive | None]
    d_out: NotRequired[Positive | None]
    metadata: NotRequired[dict[str, Any] | None]


class CheckpointMeta(TypedDict):
    """What a checkpoint holds besides tensors."""

    step: Count
    record: dict[str, Any]  # what identifies the result
    history: list[dict[str, Any]]
    sums: dict[str, Any]
    seconds: Amount


@dataclass(repr=False)
class Dictionary:
    """A trained dictionary for raw activations: act(x W_enc + b_enc) W_dec + b_dec."""

    W_enc: Array  # (d_in, dict_size)
    b_enc: Array  # (dict_size,)
    W_dec: Array  # (dict_size, d_out), unit rows unless sites were scaled apart
    b_dec: Array  # (d_out,)
    threshold: Array | None = None  # (dict_size,) JumpReLU and its like: codes up to it are zero
    k: int | None = None  # TopK: only the k largest codes of a row are kept
    W_skip: Array | None = None  # (d_in, d_out) a transcoder's: x W_skip is added

    def with_threshold(self, threshold: Array | float) -> "Dictionary":
        """The same with a threshold for each feature, or one for all."""
        self.threshold = np.empty_like(self.b_enc)
        self.threshold[:] = threshold
        return self

    def __repr__(self) -> str:
        (d_in, dict_size), d_out = self.W_enc.shape, self.W_dec.shape[1]
        return f"Dictionary({dict_size=}, {d_in=}, {d_out=}, k={self.k})"

    def encode(self, x: Rows) -> Array:
        """Codes (rows, dict_size) of raw activations `x` (rows, d_in)."""
        import torch

        rows = torch.from_numpy(as_rows(x, "activations", len(self.W_enc)))
        with torch.inference_mode():
            return self._module.encode(rows).numpy()

    def decode(self, codes: Rows) -> Array:
        """Reconstructions (rows, d_out) of codes (rows, dict_size), without what skips them."""
        return as_rows(codes, "codes", len(self.W_dec)) @ self.W_dec + self.b_dec

    def reconstruct(self, x: Rows) -> Array:
        """What is made of raw activations `x` (rows, d_in), (rows, d_out)."""
        made = self.decode(self.encode(x))
        return made if self.W_skip is None else made + as_rows(x, "activations") @ self.W_skip

    def to_torch(self) -> TorchDictionary:
        """The same as a module of torch, whose parameters are copies."""
        return copy.deepcopy(self._module)

    @property
    def _module(self) -> TorchDictionary:
        from sparse_dict.sae.module import TorchDictionary

        return TorchDictionary(self)


@dataclass(repr=False)
class Trained:
    """All of a finished dictionary's folder."""

    folder: Path
    dictionary: Dictionary
    fire_count: npt.NDArray[np.int64]  # (dict_size,) active rows among the evaluation rows
    metrics: Metrics
    site: Site | None = None  # what it reads, where that is one site that has a name

    def __repr__(self) -> str:
        m = self.metrics
        return f"Trained({str(self.folder)!r}, fvu={m['fvu']:.4f}, l0={m['l0']:.2f})"


def write(
    folder: Path,
    dictionary: Dictionary,
    fire_count: npt.NDArray[np.int64],
    metrics: dict[str, Any],
    hook: str | None,
    hook_out: str | None = None,
) -> None:
    """Write a finished dictionary; `metrics.json` comes last and says that the rest is there."""
    d_in, dict_size = dictionary.W_enc.shape
    tensors = {
        name: getattr(dictionary, name)
        for name in WEIGHT_NAMES
        if getattr(dictionary, name) is not None
    }
    kind, metadata = _kind(dictionary, hook_out is not None), {"hook_name": hook or UNKNOWN}
    if dictionary.W_skip is not None:
        tensors["W_skip"] = np.ascontiguousarray(dictionary.W_skip.T)  # (d_out, d_in) in SAELens
    if hook_out is not None:
        kind["d_out"], metadata["hook_name_out"] = dictionary.W_dec.shape[1], hook_out
    tensor_files.write(folder / WEIGHTS, tensors)
    write_json(
        folder / CONFIG,
        kind
        | {
            "d_in": d_in,
            "d_sae": dict_size,
            "dtype": "float32",
            "device": "cpu",
            "apply_b_dec_to_input": False,
            "normalize_activations": "none",
            "reshape_activations": "none",
            "metadata": metadata,
        },
    )
    tensor_files.write(folder / FEATURES, {"fire_count": fire_count})
    write_json(folder / METRICS, sealed(metrics | {"sha256": hashes_of(folder)}))
    (folder / CHECKPOINT).unlink(missing_ok=True)


def hashes_of(folder: Path) -> dict[str, str]:
    """SHA-256 of the files of a dictionary but for `metrics.json`, where they are to be found."""
    snapshots = (str(path.relative_to(folder)) for path in snapshot_paths(folder))
    return sha256_of(folder, [*HASHED, *snapshots])


def _kind(dictionary: Dictionary, transcodes: bool) -> dict[str, Any]:
    kind: dict[str, Any] = {"architecture": "standard"}
    if dictionary.threshold is not None:
        kind = {"architecture": "jumprelu"}
    elif dictionary.k is not None:
        kind = {"architecture": "topk", "k": dictionary.k, "rescale_acts_by_decoder_norm": False}
    if transcodes:
        name = "transcoder" if dictionary.W_skip is None else "skip_transcoder"
        plain = kind["architecture"] == "standard"
        kind["architecture"] = name if plain else f"{kind['architecture']}_{name}"
    return kind


def read_metrics(folder: Path) -> Metrics:
    """`metrics.json` of a finished dictionary, its values checked."""
    with _again(folder):
        return records.read(folder / METRICS, Metrics)


def _again(folder: Path) -> AbstractContextManager[None]:
    return advising(f"delete {folder / METRICS} and make it again")


def read(folder: str | Path) -> Trained:
    """Read a finished dictionary."""
    folder = Path(folder)
    if not (folder / METRICS).exists():
        raise UserError(f"{folder} holds no finished dictionary ({METRICS})")
    with _again(folder), reading(folder):
        metrics = read_metrics(folder)
        hashes, size = metrics.get("sha256") or {}, metrics["dict_size"]
        config = records.read(folder / CONFIG, _Kind, hashes.get(CONFIG))
        weights = tensor_files.read(folder / WEIGHTS, hashes.get(WEIGHTS))
        features = tensor_files.read(folder / FEATURES, hashes.get(FEATURES))
        known = {name: weights[name] for name in WEIGHT_NAMES[:4]}
        dictionary = Dictionary(**known, threshold=weights.get("threshold"), k=config.get("k"))
        if (W_skip := weights.get("W_skip")) is not None:
            dictionary.W_skip = np.ascontiguousarray(W_skip.T)
        refuse_misfit(folder / WEIGHTS, dictionary, size, config.get("d_out"))
        if (fire_count := features["fire_count"]).shape != (size,):
            raise UserError(f"{folder / FEATURES}: fire_count is not {size} numbers")
        site = site_of((config.get("metadata") or {}).get("hook_name"))
        return Trained(folder, dictionary, fire_count, metrics, site)


def refuse_misfit(path: Path, d: Dictionary, size: int, d_out: int | None = None) -> None:
    """See that the arrays of a dictionary that was read fit each other and are finite float32."""
    d_in = len(np.atleast_1d(d.W_enc))
    out = d_out or d_in
    shapes = {"W_enc": (d_in, size), "b_enc": (size,), "W_dec": (size, out), "b_dec": (out,)}
    shapes |= {"threshold": (size,), "W_skip": (d_in, out)}
    for name, shape in shapes.items():
        array = getattr(d, name)
        if array is not None and (
            array.dtype != np.float32 or array.shape != shape or not np.isfinite(array).all()
        ):
            raise UserError(f"{path}: {name} is not finite float32 {shape}")
    if d.k is not None and not 1 <= d.k <= size:
        raise UserError(f"{path}: k is {d.k}, with {size} features")


def write_snapshot(folder: Path, W_dec: Array, seen: int) -> None:
    """Keep a decoder (dict_size, d_in) as it is after `seen` rows."""
    tensor_files.write(folder / snapshot_name(seen), {"W_dec": W_dec})


def snapshot_name(seen: int) -> str:
    """The file of a snapshot after `seen` rows, in the dictionary's folder."""
    return f"{SNAPSHOTS}/{seen:012d}.safetensors"


def snapshot_paths(folder: Path) -> list[Path]:
    """Snapshots in the order of the rows seen."""
    return sorted((folder / SNAPSHOTS).glob("[0-9]*.safetensors"))


def read_snapshots(trained: Trained) -> dict[int, Array]:
    """Decoders by the number of rows seen, in that order."""
    snapshots, hashes = {}, trained.metrics.get("sha256") or {}
    with _again(trained.folder):
        for path in snapshot_paths(trained.folder):
            recorded = hashes.get(f"{SNAPSHOTS}/{path.name}")
            W_dec = tensor_files.read(path, recorded).get("W_dec")
            shape = trained.dictionary.W_dec.shape
            if W_dec is None or W_dec.shape != shape or not path.stem.isdecimal():
                raise UserError(f"{path} is not a snapshot of a decoder {shape}")
            snapshots[int(path.stem)] = W_dec
    return snapshots


def read_checkpoint_meta(folder: Path) -> CheckpointMeta | None:
    """What was noted beside a checkpoint's tensors, or None if there is no checkpoint."""
    path = folder / CHECKPOINT
    return tensor_files.read_record(path, CheckpointMeta) if path.exists() else None
