"""The columns of a study's three tables, which `columns.md` lists with their units."""

import re
from pathlib import Path

FOLDER = "tables"  # in the analysis' folder
PAGE = Path(__file__).with_suffix(".md")
LINE = re.compile(r"^- `(\w+)` .*?(?:\((\w+)\))?$", re.MULTILINE)

# By table, each column with the analysis that measures it; empty: it is always there.
COLUMNS: dict[str, dict[str, str]] = {
    table.partition("\n")[0]: dict(LINE.findall(table))
    for table in PAGE.read_text(encoding="utf-8").split("\n## ")[1:]
}
