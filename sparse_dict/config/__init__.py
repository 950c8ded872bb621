"""The schema of every stage's config: names, types and ranges."""

import textwrap
from pathlib import Path

from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import MISSING, DictConfig, OmegaConf

from sparse_dict.config.analysis import *
from sparse_dict.config.identity import NEUTRAL
from sparse_dict.config.ranges import NAME_BYTES, shortened
from sparse_dict.config.stages import *

CONF_DIR = Path(__file__).resolve().parent.parent.parent / "conf"


def choices(group: str) -> list[str]:
    """The choices of a config group: its files, and for `analysis` also those without a file."""
    found = {file.stem for file in (CONF_DIR / group).glob("*.yaml")}
    return sorted(found | set(ANALYSES) if group == "analysis" else found)


def _help(group: str, *left_out: str) -> str:
    names = [name for name in choices(group) if name not in left_out]
    shown = "experiment" if group.endswith("/experiment") else group
    line = f"  {shown}={'| '.join(names)}"
    indent = " " * (len(shown) + 3)
    return textwrap.fill(line, 98, subsequent_indent=indent).replace("| ", "|")


def _job_folder(*, _root_: DictConfig) -> str:
    """The name of a job's folder: the overrides of keys that decide its result, as KEY=VALUE.

    Values are those of the config, so that 1e-2 and 0.01 are one folder. A name that is too long
    for a file system ends with its hash.
    """
    parts = []
    for node in _root_.hydra.overrides.task._content:
        text = str(node._value())  # unresolved, where it names another key
        override = OverridesParser.create().parse_override(text)
        key = override.key_or_group
        if key in ("experiment", *NEUTRAL):
            continue
        value = None if override.is_delete() else OmegaConf.select(_root_, key)
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        parts.append(f"{key}={value}" if isinstance(value, str | int | float) else text)
    parts = [part.replace("/", "-") for part in parts]  # a site's name has one: 2/mlp_post
    return shortened(",".join(sorted(parts)) or "default", NAME_BYTES)


def _columns(factor: int, *, _root_: DictConfig) -> int:
    from sparse_dict.activations.side_by_side import open_all

    given = _root_.activations_dir
    named = [given] if isinstance(given, str) else given
    return factor * open_all(*map(Path, named)).at(_root_.sae.site, "sae.site").d_in


def register() -> None:
    """Make the schemas and the resolvers known to Hydra; every script does so by importing us."""
    store, analyze = ConfigStore.instance(), OmegaConf.structured(analyze_schema())
    for name in ANALYSES:  # missing: Hydra says so where a key of one that is off is set
        analyze[name] = MISSING
    for name, node in {
        "train_lm": TrainLMConfig,
        "harvest": HarvestStageConfig,
        "train_sae": TrainSAEConfig,
        "analyze": analyze,
        "data/docstrings": DocstringsData,
        "data/files": FilesData,
        "data/hub": HubData,
        "data/toy": ToyData,
        "optimizer/adamw": AdamWConfig,
        "optimizer/muon": MuonConfig,
        "tokenizer/gpt2": GPT2Tokenizer,
        "tokenizer/bpe": BPETokenizer,
        "lm/study": StudyLM,
        "lm/hf": HFModel,
    }.items():
        group, _, leaf = f"schema/{name}".rpartition("/")
        store.store(group=group, name=leaf, node=node, provider="sparse_dict")
    for name, settings in ANALYSES.items():
        if settings is NoSettings:  # the others are files, which hold the values
            store.store(group="analysis", name=name, node={}, package=name, provider="sparse_dict")
    OmegaConf.register_new_resolver(
        "sparse_dict.conf", lambda folder: str(CONF_DIR / folder), replace=True
    )
    OmegaConf.register_new_resolver("sparse_dict.choices", _help, replace=True)
    OmegaConf.register_new_resolver("sparse_dict.job_folder", _job_folder, replace=True)
    OmegaConf.register_new_resolver("sparse_dict.columns", _columns, replace=True)


register()
