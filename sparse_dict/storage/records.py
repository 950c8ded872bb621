"""Records that are read back: JSON whose keys, types and ranges are declared by a `TypedDict`."""

import re
from functools import cache
from pathlib import Path
from typing import Annotated, Any, TypeVar, cast, get_args

from annotated_types import Interval, Predicate

from sparse_dict.errors import Advised, UserError, reading
from sparse_dict.storage import untrusted
from sparse_dict.storage.files import read_json

T = TypeVar("T")
VERSION = "format_version"  # a `Literal`, of the kinds of record that have one

Count = Annotated[int, Interval(ge=0, lt=1 << 48)]
Positive = Annotated[int, Interval(ge=1, lt=1 << 48)]
Whole = Annotated[int, Interval(ge=-(1 << 63), lt=1 << 64)]
Number = Annotated[float, Interval(gt=-1e18, lt=1e18)]
Amount = Annotated[float, Interval(ge=0, lt=1e18)]


def a_line_of_text(value: str) -> bool:
    """Without what would steer a terminal, or begin a line of its own in a log."""
    return value.isprintable()


def a_line_without_a_formula(value: str) -> bool:
    """Without a $, which begins one in a figure."""
    return value.isprintable() and "$" not in value


def the_name_of_an_npy_file_beside_it(value: str) -> bool:
    """Matches nothing that leads elsewhere."""
    return re.fullmatch(r"[\w-]+\.npy", value, re.ASCII) is not None


Line = Annotated[str, Predicate(a_line_of_text)]
Shown = bool | Annotated[str, Predicate(a_line_without_a_formula)]
ArrayName = Annotated[str, Predicate(the_name_of_an_npy_file_beside_it)]
Texts = dict[Line, Line]


def read(path: Path, kind: type[T], recorded: str | None = None) -> T:
    """The record in a JSON file, if it is of its `kind` and has the SHA-256 that was `recorded`."""
    value = read_json(path, recorded)
    ours = get_args(getattr(kind, "__annotations__", {}).get(VERSION))
    if ours and type(there := value.get(VERSION)) is int and there not in ours:
        raise Advised(
            f"{path} is of format version {there}, and {ours[0]} is read here: choose another name="
        )
    with reading(path):
        return fitting(value, kind)


def fitting(value: Any, kind: type[T]) -> T:
    """`value`, if it is of its `kind`; else a ValueError says what is wrong with which key."""
    from pydantic import ValidationError

    try:
        _adapter(cast(Any, kind)).validate_python(value, strict=True)
    except ValidationError as errors:
        error = errors.errors(include_url=False, include_context=False)[0]
        key = ".".join(map(str, error["loc"])) or "it"
        if error["type"] == "missing":
            raise ValueError(f"it lacks {key!r}") from None
        what = error["msg"].removeprefix("Input should be ")
        if error["type"] == "predicate_failed":
            what = what.split()[1].strip("'").rpartition(".")[2].replace("_", " ")
        raise ValueError(f"{key} is {error['input']!r:.60}, not {what}") from None
    return cast(T, value)


@cache
def _adapter(kind: Any) -> Any:
    from pydantic import TypeAdapter

    return TypeAdapter(kind)


def overrides(folder: Path) -> list[str]:
    """The overrides that a run was given, which Hydra notes in its folder ``.hydra``."""
    path = folder / "overrides.yaml"
    from omegaconf import OmegaConf
    from yaml import YAMLError  # type: ignore[import-untyped]

    try:
        given = OmegaConf.to_container(OmegaConf.create(untrusted.read_bytes(path).decode()))
    except (ValueError, YAMLError) as error:
        raise UserError(f"{path} is damaged: {type(error).__name__}") from None
    if not (isinstance(given, list) and all(isinstance(one, str) for one in given)):
        raise UserError(f"{path} is damaged: it is not a list of overrides")
    return given
