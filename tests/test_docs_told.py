"""The tables of docs/troubleshooting.md and docs/security.md hold what tests have seen, all of it and as it is told."""

import re
from pathlib import Path

import pytest

from told import entries
from told.__main__ import DOCS, page_with_table


@pytest.mark.parametrize("page", ["troubleshooting", "security"])
def test_the_table_is_the_one_that_the_tests_make(page):
    assert (DOCS / f"{page}.md").read_text() == page_with_table(page), "run python tests/told"


def test_each_row_has_a_test_that_sees_its_message():
    """Its key stands in a file of tests that asserts by `told`, which fails where the message is another one."""
    texts = [path.read_text() for path in Path(__file__).parent.rglob("test_*.py")]
    asserted = "".join(text for text in texts if re.search(r"\btold\(", text))
    assert [key for key in entries() if f'"{key}"' not in asserted] == []
