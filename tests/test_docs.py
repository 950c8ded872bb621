"""The documents: their links, what the code says of them, and the site that is made of them."""

import re
import shlex
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import hydra
import keys
import pytest
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from sparse_dict.config import ANALYSES, CONF_DIR
from sparse_dict.launch import jobs

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted(
    [ROOT / f"{name}.md" for name in ("README", "CONTRIBUTING", "CHANGELOG", "benchmarks/README")]
    + list((ROOT / "docs").glob("*.md"))
)
LINK = re.compile(r"\]\((?!\w+:)([^)#\s]*)(?:#([^)\s]*))?\)")
PAGE_NAME = re.compile(r"\b(?:docs|tests)/\w+\.md\b")
FILE_NAME = re.compile(r"`([\w/]+\.(?:py|c|yaml))`")


def anchors(page: Path) -> set[str]:
    """The addresses of a page's headings, as GitHub and the site make them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {
        re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings
    }


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_of_a_page_leads_to_a_file_and_a_heading(page: Path) -> None:
    for target, anchor in LINK.findall(page.read_text(encoding="utf-8")):
        path = (page.parent / target).resolve() if target else page
        assert path.exists(), target
        assert not anchor or anchor in anchors(path), f"{target}#{anchor}"


def tracked() -> list[str]:
    command = ["git", "ls-files"]
    return subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()


def test_every_page_that_the_code_names_is_there() -> None:
    kinds = (".py", ".yaml", ".md", ".c", ".h", ".toml", ".jinja", "Makefile")
    named = {
        name
        for file in tracked()
        if file.endswith(kinds)
        for name in PAGE_NAME.findall((ROOT / file).read_text(encoding="utf-8"))
    }
    assert len(named) > 10
    assert [name for name in sorted(named) if not (ROOT / name).exists()] == []


def test_every_file_that_the_pages_name_is_there() -> None:
    named = {name for page in PAGES for name in FILE_NAME.findall(page.read_text(encoding="utf-8"))}
    assert len(named) > 50
    files = [f"/{file}" for file in tracked()]
    gone = {name for name in named if not any(file.endswith(f"/{name}") for file in files)}
    yours = {"mine.py", "mine.yaml", "my/conf/experiment/mine.yaml"}
    assert {name for name in gone if "NAME" not in name} == yours


def test_the_page_of_keys_has_every_field_of_every_schema_with_a_line() -> None:
    shown = keys.PAGE.read_text(encoding="utf-8")
    assert keys.page() == shown, "python tests/keys.py writes it anew"
    listed = dict(re.findall(r"^- `([\w.]+)=.*?`(?: \(.*?`\))?: (.*)$", shown, re.MULTILINE))
    assert [key for key, line in listed.items() if not line.strip()] == []
    schemas = ConfigStore.instance().repo["schema"]
    nodes = [{name: node for name, node in schemas.items() if name != "launcher"}]
    declared: set[str] = set()
    while nodes:
        for node in nodes.pop().values():
            if isinstance(node, dict):
                nodes.append(node)
            else:
                declared |= {field.name for field in fields(OmegaConf.get_type(node.node))}
    assert len(declared) > 100
    names = {key.rpartition(".")[2] for key in listed}
    sections = {key.partition(".")[0] for key in listed}
    assert declared - names - sections - {*ANALYSES} == {"kind"}


BLOCK = re.compile(r"^```\n(.*?)^```", re.MULTILINE | re.DOTALL)
COMMAND = re.compile(
    r"^ *(?:torchrun \S+|python) +(train_lm|harvest|train_sae|analyze)\.py(.*)", re.M
)


@pytest.mark.slow
def test_every_command_of_the_pages_is_one_that_its_script_takes() -> None:
    commands = [
        command
        for page in PAGES
        for block in BLOCK.findall(page.read_text(encoding="utf-8"))
        for command in COMMAND.findall(block.replace("\\\n", " "))
        if "experiment=probe" not in command[1]  # asks the activations for their width
    ]
    assert len(commands) > 60
    parser = OverridesParser.create()
    for script, rest in commands:
        overrides = []
        for word in shlex.split(re.sub(r"\$\w+", "x", rest), comments=True):
            key, _, value = word.partition("=")
            if value and not key.startswith(("-", "hydra")):
                override = parser.parse_override(word)
                swept = override.is_sweep_override()
                overrides.append(
                    f"{key}={next(override.sweep_string_iterator())}" if swept else word
                )
        with hydra.initialize_config_dir(str(CONF_DIR), version_base="1.3"):
            jobs.typed(hydra.compose(script, overrides))


@pytest.mark.slow
def test_the_site_is_built_without_a_warning(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs")
    process = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stderr
    assert "Hungarian" in (tmp_path / "search" / "search_index.json").read_text(encoding="utf-8")
