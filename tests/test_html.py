"""What a notebook shows: HTML tables that say what the text says, with nothing unescaped."""

from html.parser import HTMLParser

import pytest

import gpuconv
from gpuconv import html
from gpuconv.algorithms import ALGORITHMS


class Reader(HTMLParser):
    """The texts of a table's cells, row by row. A tag left open, or that a table has no use for, is an error."""

    KNOWN = frozenset({"table", "caption", "thead", "tbody", "tfoot", "tr", "th", "td"})

    def __init__(self):
        super().__init__()
        self.open, self.rows, self.caption = [], [], ""

    def handle_starttag(self, tag, attrs):
        assert tag in self.KNOWN
        self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        elif tag in {"td", "th"}:
            self.rows[-1].append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open[-1:] == ["caption"]:
            self.caption += data
        elif self.open and self.open[-1] in {"td", "th"}:
            self.rows[-1][-1] += data


def read(text):
    reader = Reader()
    reader.feed(text)
    reader.close()
    assert reader.open == []
    return reader


def test_every_text_comes_back_and_none_is_markup():
    nasty = '<script>alert(1)</script> & "quotes" \'n <b>'
    reader = read(html.table(nasty, [nasty, "b"], [[nasty, 1], ["c", None]], nasty))
    assert reader.caption == nasty
    assert reader.rows == [[nasty, "b"], [nasty, "1"], ["c", "None"], [nasty]]


def test_the_reader_notices_what_is_not_escaped():
    with pytest.raises(AssertionError):
        read(html.table("a", ["b"], []).replace("a<", "<i>a<"))


def test_a_plan_shows_all_that_its_text_says():
    plan = gpuconv.plan("n1_h8w8_c4_k4_r3s3_p1", max_workspace=0)
    reader = read(plan._repr_html_())
    head, *lines = str(plan).splitlines()
    assert reader.caption == head
    assert [" ".join(row).split() for row in reader.rows[1:]] == [line.split() for line in lines]
    assert len(lines) == len(ALGORITHMS)
