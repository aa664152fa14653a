"""Chapter 6: what it writes out by hand equals the package; its naive pruner is as wrong as it says; its tables."""

from __future__ import annotations

import pytest

from ganprune.plots import Table


def test_table_as_text_and_as_html() -> None:
    table = Table([{"arm": "dense <0>", "digit-FID": 1289.31, "kept": 1000}, {"arm": "random", "digit-FID": 65.25, "kept": None}])
    assert repr(table).splitlines() == [
        "arm        digit-FID   kept",
        "dense <0>      1,289  1,000",
        "random          65.2      –",
    ]
    page = table._repr_html_()
    assert page.count("<tr>") == 3
    assert '<td style="text-align: left">dense &lt;0&gt;</td>' in page
    assert '<td style="text-align: right">1,289</td>' in page
    assert "yes" in repr(Table([{"holds": True}]))


def test_table_refuses_rows_that_do_not_match() -> None:
    with pytest.raises(ValueError, match="at least one row"):
        Table([])
    with pytest.raises(ValueError, match=r"row 1 must have the headings \['a'\], got \['b'\]"):
        Table([{"a": 1}, {"b": 2}])
