"""Curves as data: what is drawn, that spikes survive, and that nothing but text comes out of a name."""

from __future__ import annotations

import json
import math

import pytest

from multilobe_ui.ui.kit.curves import MOST_POINTS, NO_CURVE, compare_curves, decimate, loss_curves, smoothed
from multilobe_ui.ui.kit.text import change


def record(step, loss=None, validation=None):
    return {"step": step, "steps": 100, "epoch": 0.0, "loss": loss, "validation_loss": validation}


RUN = [record(0, None, 3.0), *[record(i, 3 - i / 50) for i in range(1, 101)], record(50, None, 2.2), record(100, None, 1.1)]


def by_name(figure):
    return {trace.name: trace for trace in figure.data}


def test_train_validation_and_base_are_drawn():
    figure = loss_curves(RUN, steps=100)
    assert list(by_name(figure)) == ["every step", "train loss", "validation loss"]
    validation = by_name(figure)["validation loss"]
    assert (list(validation.x), list(validation.y)) == ([0, 50, 100], [3.0, 2.2, 1.1])
    assert "markers" in validation.mode
    assert figure.layout.shapes[0].y0 == 3.0 and figure.layout.shapes[0].line.dash == "dot"
    assert figure.layout.annotations[0].text == "base model"
    assert tuple(figure.layout.xaxis.range) == pytest.approx((0, 101.5))


def test_reads_on_light_and_dark():
    layout = loss_curves(RUN).layout
    assert layout.paper_bgcolor == layout.plot_bgcolor == "rgba(0,0,0,0)"
    assert not layout.template.layout.to_plotly_json()


def test_given_base_loss_wins_and_none_draws_no_line():
    assert loss_curves(RUN, base_loss=2.5).layout.shapes[0].y0 == 2.5
    assert not loss_curves([record(1, 2.0), record(2, 1.0)]).layout.shapes


@pytest.mark.parametrize("records", [[], [record(0)], [record(1, math.nan)], [{}], [record(1, 2.0)]])
def test_few_or_odd_records_are_no_error(records):
    json.loads(loss_curves(records).to_json())
    json.loads(compare_curves({"a": records}).to_json())


def test_without_held_out_rows_the_plot_says_so_and_has_no_second_curve():
    figure = loss_curves([record(1, 2.0), record(2, 1.0), record(3, 0.5)], steps=3)
    assert list(by_name(figure)) == ["every step", "train loss"]
    assert [note.text for note in figure.layout.annotations] == [NO_CURVE] and "No rows are held out" in NO_CURVE
    assert all(note.text != NO_CURVE for note in loss_curves(RUN).layout.annotations)
    assert not loss_curves([]).layout.annotations


def test_long_runs_stay_small_and_quick_to_draw():
    run = [record(i, 2 + math.sin(i)) for i in range(100_000)]
    figure = loss_curves(run)
    assert all(len(trace.x) <= MOST_POINTS for trace in figure.data)
    assert len(figure.to_json()) < 40_000


def test_decimation_keeps_ends_order_and_spikes():
    points = [(float(i), 1.0) for i in range(10_000)]
    points[4321], points[7000] = (4321.0, 99.0), (7000.0, -99.0)
    kept = decimate(points)
    assert len(kept) <= MOST_POINTS
    assert kept[0] == points[0] and kept[-1] == points[-1]
    assert (4321.0, 99.0) in kept and (7000.0, -99.0) in kept
    assert kept == sorted(kept)


def test_decimation_leaves_short_curves_alone():
    points = [(float(i), float(i)) for i in range(MOST_POINTS)]
    assert decimate(points) == points


def test_smoothing_starts_at_the_first_value_and_keeps_a_constant():
    assert smoothed([(0, 5.0), (1, 5.0), (2, 5.0)]) == [(0, 5.0), (1, 5.0), (2, 5.0)]
    line = smoothed([(i, 4.0 + (-1) ** i) for i in range(200)])
    assert line[0][1] == 5.0 and abs(line[-1][1] - 4) < 0.2


def test_one_wild_step_does_not_flatten_the_rest():
    run = [record(i, 1.0) for i in range(1, 200)] + [record(200, 1e6)]
    assert loss_curves(run).layout.yaxis.range[1] < 10


def test_compare_one_colour_and_one_legend_entry_a_run():
    figure = compare_curves({"one": RUN, "two": RUN}, {"one": "#112233"})
    named = [trace.name for trace in figure.data if trace.showlegend is not False]
    assert named == ["one", "two"]
    assert {trace.line.color for trace in figure.data if trace.name == "one"} == {"#112233"}
    assert {trace.line.color for trace in figure.data if trace.name == "two"} != {"#112233"}


def test_names_are_escaped():
    figure = compare_curves({"<a href='javascript:x'>y</a>": RUN})
    assert all("<" not in trace.name for trace in figure.data)


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [(2.0, 1.0, "−50 %"), (1.0, 1.5, "+50 %"), (1.0, 1.0, "0 %"), (None, 1.0, ""), (1.0, None, ""), (0.0, 1.0, "")],
)
def test_change(before, after, said):
    assert change(before, after) == said
