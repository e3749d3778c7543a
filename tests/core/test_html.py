"""What a notebook shows: HTML tables that say what the text says, with nothing unescaped."""

import re
from html.parser import HTMLParser
from xml.etree import ElementTree as ET

import numpy as np
import pytest

import gpuconv
from gpuconv.algorithms import ALGORITHMS
from gpuconv.layers import Conv2D, Dense, Flatten
from gpuconv.models import History, Sequential
from gpuconv.support import html


class Reader(HTMLParser):
    """The texts of a table's cells, row by row. A tag left open, or that a table has no use for, is an error."""

    KNOWN = frozenset({"table", "caption", "thead", "tbody", "tfoot", "tr", "th", "td"})

    def __init__(self):
        super().__init__()
        self.open, self.rows, self.caption, self.bold, self.sides = [], [], "", [], []

    def handle_starttag(self, tag, attrs):
        assert tag in self.KNOWN
        self.open.append(tag)
        style = dict(attrs).get("style", "")
        if tag == "tr":
            self.rows.append([])
            self.bold.append("bold" in style)
            self.sides.append([])
        elif tag in {"td", "th"}:
            self.rows[-1].append("")
            self.sides[-1].append(style.removeprefix("text-align: "))

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
    assert all(reader.rows[0]), "every column has a head"
    assert [row[1] for row, bold in zip(reader.rows, reader.bold, strict=True) if bold] == ["chosen"]
    assert {side for row in reader.sides for side in row} == {"left"}


def test_a_history_draws_itself():
    history = History(loss=[2.0, 1.0, np.nan], accuracy=[0.5, 0.75, 1.0], val_loss=[3.0, 2.0, 1.5], interrupted=True)
    text = history._repr_html_()
    assert text.startswith("<div>3 epochs, interrupted</div>")
    charts = [ET.fromstring(chart) for chart in re.findall(r"<svg.*?</svg>", text)]
    assert [chart.findtext("text") for chart in charts] == ["loss nan, validation (dashed) 1.5000", "accuracy 100.00%"]
    curves = [[line.get("points").split() for line in chart.iter("polyline")] for chart in charts]
    assert [[len(points) for points in chart] for chart in curves] == [[2, 3], [3]]  # what is not finite has no place
    heights = [float(point.partition(",")[2]) for curve in curves[0] for point in curve]
    assert heights == [89.0, 136.0, 42.0, 89.0, 112.5]
    assert History()._repr_html_() == "<div>0 epochs</div>"


def test_a_layer_shows_its_arguments_and_its_parameters():
    layer = Conv2D(8, 3, pad="same", acti_fn="leaky_relu(alpha=0.2)")
    reader = read(layer._repr_html_())
    assert reader.caption == "Conv2D, no input seen yet"
    assert reader.rows[0] == ["argument", "value"]
    shown = dict(reader.rows[1:])
    assert shown == {name: str(value) for name, value in layer.config.items()}
    layer.forward(np.ones((1, 5, 5, 2), np.float32))
    layer.freeze()
    reader = read(layer._repr_html_())
    assert reader.caption == "Conv2D, 152 parameters, frozen"
    assert dict(reader.rows[1:])["W"] == "3 × 3 × 2 × 8"
    assert dict(reader.rows[1:])["b"] == "8"


def test_a_network_shows_its_layers_then_its_summary():
    model = Sequential([Conv2D(4, 3, acti_fn="relu"), Flatten(), Dense(10)], rng=0)
    reader = read(model._repr_html_())
    assert reader.rows == [["layer"], *([repr(layer)] for layer in model.layers), ["no input seen yet"]]
    model.forward(np.ones((2, 8, 8, 1), np.float32))
    rows = read(model._repr_html_()).rows
    lines = str(model.summary()).splitlines()
    assert [" ".join(row).split() for row in rows] == [line.split() for line in lines]
    reader = read(model.summary()._repr_html_())
    assert reader.rows == rows
    assert {tuple(row) for row in reader.sides} == {("left", "left", "right", "right")}
