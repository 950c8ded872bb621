"""Every config key with its default and one line: `python tests/keys.py` writes docs/keys.md.

The keys are those of the configs that Hydra composes, with each choice of each group. A key's line
is the comment at its field, beside it or above.
"""

import ast
import inspect
import json
import re
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass, field, fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any

import hydra
from omegaconf import DictConfig, OmegaConf

from sparse_dict import config
from sparse_dict.config import ANALYSES
from sparse_dict.sae import schema

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "keys.md"
GROUPS = {
    "train_lm": ("data", "tokenizer", "model", "optimizer", "tracking"),
    "harvest": ("lm",),
    "train_sae": ("sae", "intervention"),
    "analyze": (),
}
HEAD = """# Every config key

Each with its default; [overriding](overriding.md) says how they are set. `${...}` is the value of
another key, `???` must be given, `null` is no value. `python tests/keys.py` makes this page of the
dataclasses and `conf/`. Launchers' keys lie in `conf/hydra/launcher/`.
"""


OWN = ("optimizer.", "training.")  # sections that two stages have, each with its own keys


@dataclass
class Key:
    """A key: the class that has it, and its value by the choice that it was composed with."""

    owner: type[Any]
    values: dict[str, Any] = field(default_factory=dict)


def comment(owner: type[Any], name: str) -> str:
    """What is said at a field: the comment beside it, or else the lines above it."""
    lines = textwrap.dedent(inspect.getsource(owner)).splitlines()
    (body,) = ast.parse("\n".join(lines)).body
    assert isinstance(body, ast.ClassDef)
    for node in body.body:
        if isinstance(node, ast.AnnAssign) and getattr(node.target, "id", None) == name:
            _, mark, beside = lines[(node.end_lineno or 0) - 1].partition("  # ")
            if mark:
                return beside
            above = []
            for line in reversed(lines[: node.lineno - 1]):
                if not line.strip().startswith("# "):
                    break
                above.insert(0, line.strip()[2:])
            return " ".join(above)
    return ""


def owner_of(kind: type[Any], name: str) -> type[Any]:
    """The class that declares a field, which has source code."""
    return next(
        each for each in reversed(kind.__mro__) if name in getattr(each, "__annotations__", {})
    )


def leaves(node: DictConfig, prefix: str = "") -> Iterator[tuple[str, type[Any], Any]]:
    """Every key of a composed config that a dataclass has, that class, and the value unresolved."""
    kind = OmegaConf.get_type(node)
    for name in node:
        below = node._get_node(name)
        section = isinstance(below, DictConfig) and not below._is_none() and not below._is_missing()
        if section and is_dataclass(OmegaConf.get_type(below)):
            yield from leaves(below, f"{prefix}{name}.")
        elif is_dataclass(kind) and name in {each.name for each in fields(kind)}:
            value = OmegaConf.to_container(node, resolve=False)[name]
            yield f"{prefix}{name}", owner_of(kind, name), value


@cache
def keys() -> dict[tuple[str, str], dict[str, Key]]:
    """By stage and class the keys with their values."""
    schema.register()
    found: dict[tuple[str, str], dict[str, Key]] = {}
    with hydra.initialize_config_dir(str(config.CONF_DIR), version_base="1.3"):
        for stage in GROUPS:
            known = {key for part in found.values() for key in part}
            for choice in ["", *choices(stage)]:
                for key, owner, value in leaves(hydra.compose(stage, [choice] * bool(choice))):
                    if key.endswith("tokenizer.kind"):
                        continue
                    if key in known and not key.startswith(OWN):
                        continue
                    part = found.setdefault((stage, owner.__name__), {})
                    part.setdefault(key, Key(owner)).values[choice] = value
    return found


def choices(stage: str) -> list[str]:
    """GROUP=CHOICE of a stage's groups."""
    return [
        f"{group}={choice}"
        for group in GROUPS[stage]
        for choice in config.choices(group)
        if choice != "adam"  # train_sae.py's alone
    ]


def shown(value: Any) -> str:
    """A value as YAML has it, shortened."""
    text = value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))
    text = text.replace('"', "")
    return f"`{text if len(text) < 60 else f'{text[:56]}...'}`"


def line(key: str, one: Key) -> str:
    """A key with its default, those of other choices if there are few, and what it is."""
    by_value: dict[str, list[str]] = {}
    for choice, value in one.values.items():
        by_value.setdefault(shown(value), []).append(choice)
    (default, _), *others = by_value.items()
    more = [f"{value} with `{joined(with_)}`" for value, with_ in others]
    name = key.rpartition(".")[2]
    about = comment(one.owner, name)
    (declared,) = (each for each in fields(one.owner) if each.name == name)
    allowed = re.fullmatch(r"be one of (.*)", declared.metadata.get("what", ""))
    if allowed and not all(each in about for each in allowed[1].split(", ")):
        about += f" ({allowed[1].replace(', ', '|')})"
    beside = f" ({', '.join(more)})" if 0 < len(more) <= 3 else ""
    return f"- `{key}={default.strip('`')}`{beside}: {about}"


def joined(with_: list[str]) -> str:
    """GROUP=ONE|OTHER of several choices of one group."""
    group = with_[0].partition("=")[0]
    return f"{group}={'|'.join(one.partition('=')[2] for one in with_)}"


def page() -> str:
    """docs/keys.md."""
    lines = [HEAD]
    for stage in GROUPS:
        lines += [f"## {stage}.py", ""]
        for group in GROUPS[stage]:
            known = [one for one in choices(stage) if one.startswith(f"{group}=")]
            lines += [f"Choices: `{joined(known)}`", ""] if len(known) > 1 else []
        if stage == "analyze":
            names = "`, `".join(ANALYSES)
            lines += [
                f"`analysis=[...]` holds any of `{names}` ([which](figures.md)), else all.",
                "",
            ]
        sections: dict[str, list[str]] = {}
        for (script, _), part in keys().items():
            if script == stage:
                first, one = next(iter(part.items()))
                with_ = "" if "" in one.values else f" with `{joined([*one.values])}`"
                title = f"`{first.rpartition('.')[0]}`".replace("``", "the whole") + with_
                sections.setdefault(title, []).extend(line(*item) for item in part.items())
        for title in sorted(sections, key=lambda title: title.partition(" with")[0]):
            lines += [f"### {title}", "", *sections[title], ""]
    return "\n".join(lines)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
