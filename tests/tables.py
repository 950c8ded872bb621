"""The columns of a study's tables: `python tests/tables.py` writes docs/tables.md."""

from pathlib import Path

from sparse_dict.analysis.columns import COLUMNS, TABLES

PAGE = Path(__file__).resolve().parent.parent / "docs" / "tables.md"
HEAD = """# What is measured of each dictionary, feature and pair

`analyze.py` writes three tables to `outputs/NAME/analysis/tables/`, as Parquet; figures and claims
are made from them. `sparse_dict.open_study("outputs/NAME")` has them [in Python](api.md#a-study).
Empty where a number has no meaning, such as the MCS of the largest dictionary. A column that ends
with the name of an analysis is there if that is on. `python tests/tables.py` makes this page of the
list in `analysis/columns.py`.
"""


def page() -> str:
    """docs/tables.md."""
    lines = [HEAD]
    for table, columns in COLUMNS.items():
        lines += [f"## {table}", "", TABLES[table], ""]
        for column in columns:
            by = f" ({column.by})" if column.by else ""
            lines.append(f"- `{column.name}` ({column.unit}): {column.text}{by}")
        lines.append("")
    return "\n".join(lines)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
