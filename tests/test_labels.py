"""Names that others gave, as they are shown."""

import pytest

from mops_fl.labels import one_line


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("sort", "sort"),
        ("a\n b\r\tc", "a b c"),
        ("", "(empty)"),
        (" \n", "(empty)"),
        ("\x1b[31mred", "[31mred"),
        ("\udcff", "(empty)"),
        ("日本語", "日本語"),
        ("0123456789", "0123456789"),
        ("0123456789x", "012345…89x"),
    ],
)
def test_one_line(text, shown):
    assert one_line(text, limit=10) == shown
