"""Write the tables of docs/troubleshooting.md and docs/security.md between their marks: python tests/told."""

import sys
from itertools import groupby
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from told import entries

DOCS = Path(__file__).parents[2] / "docs"
BEGIN, END = "<!-- made from the tests: python tests/told -->", "<!-- end of what is made from the tests -->"


def table(page: str) -> str:
    """The rows of one page, by topic."""
    rows = sorted(((one.topic, key, one) for key, one in entries().items() if one.page == page), key=lambda row: row[0])
    parts = []
    for topic, group in groupby(rows, key=lambda row: row[0]):
        cells = [f"| `{one.message}` | {_sentence(one.meaning)} | {_sentence(one.remedy)} |" for _, _, one in group]
        parts.append("\n".join([f"### {topic}", "", "| Message | Meaning | What to do |", "|---|---|---|", *cells]))
    return "\n\n".join(parts)


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:].rstrip('.')}."


def page_with_table(page: str) -> str:
    """The whole page as it should stand."""
    text = (DOCS / f"{page}.md").read_text()
    before, after = text.split(BEGIN)[0], text.split(END)[1]
    return f"{before}{BEGIN}\n\n{table(page)}\n\n{END}{after}"


if __name__ == "__main__":
    for name in ("troubleshooting", "security"):
        (DOCS / f"{name}.md").write_text(page_with_table(name))
