"""Docstrings out of Python source. Imports next to nothing: worker processes start with it."""

import ast
import inspect
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

DEFINITIONS = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
# How compiled libraries attach docstrings at import time: torch the first, numpy the second.
ATTACHING_CALLS = {"add_docstr", "add_newdoc"}
BLOCKS = ("body", "orelse", "finalbody", "handlers")


def extract(paths: Sequence[str], min_chars: int) -> list[str]:
    """The cleaned docstrings of at least `min_chars` characters in these files, file by file."""
    found = []
    for path in paths:
        try:
            source = Path(path).read_bytes()
        except OSError:
            continue
        # Parsing is the whole cost, and a docstring worth reading has triple quotes.
        if b'"""' not in source and b"'''" not in source:
            continue
        for text in docstrings(source):
            if len(text) >= min_chars:
                text = inspect.cleandoc(text).strip()
                if len(text) >= min_chars:
                    found.append(text)
    return found


def docstrings(source: bytes) -> Iterator[str]:
    """Every docstring in `source` as written; none if it does not parse."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes in other people's code
            tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return
    yield from _docstring(tree)
    pending: list[ast.AST] = list(tree.body)
    while pending:
        node = pending.pop()
        if isinstance(node, DEFINITIONS):
            yield from _docstring(node)
        if isinstance(node, ast.Expr):
            yield from _attached(node.value)
        else:
            for block in BLOCKS:
                pending.extend(getattr(node, block, ()))


def _docstring(
    node: ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef,
) -> list[str]:
    text = ast.get_docstring(node, clean=False)
    return [] if text is None else [text]


def _attached(node: ast.expr) -> Iterator[str]:
    if not isinstance(node, ast.Call):
        return
    name = getattr(node.func, "attr", getattr(node.func, "id", None))
    if name in ATTACHING_CALLS:
        for inner in ast.walk(node):
            if isinstance(inner, ast.Constant) and isinstance(inner.value, str):
                yield inner.value
