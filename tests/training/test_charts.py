"""Charts: figures land where they belong, labels can be read, and text stays text."""

import xml.etree.ElementTree as ElementTree
from itertools import combinations, pairwise

import pytest
from django.template.loader import render_to_string
from hypothesis import given
from hypothesis import strategies as st

from training.charts import (
    CHARACTER,
    HEIGHT,
    WIDTH,
    Bin,
    Chart,
    Interval,
    Spot,
    Text,
    calibration_chart,
    grouped_bars,
    interval_chart,
    nice_ticks,
    scatter_chart,
)

numbers = st.floats(min_value=-1e6, max_value=1e6, allow_nan=False)


def won(label: str, value: float, low: float, high: float) -> Interval:
    return Interval(label=label, value=value, low=low, high=high, n=40)


def intervals(*points: Interval) -> Chart:
    return interval_chart(key="k", title="T", x_label="policy", y_label="win rate", points=points)


def scatter(*spots: Spot) -> Chart:
    return scatter_chart(key="k", title="T", x_label="KL", y_label="reward", spots=spots)


def drawn(chart: Chart) -> ElementTree.Element:
    """The figure as a browser's parser would see it; fails when it is not well-formed."""
    return ElementTree.fromstring(render_to_string("training/charts/chart.html", {"chart": chart}))


def width_of(text: Text) -> tuple[float, float]:
    length = len(text.text) * CHARACTER
    start = {"start": text.x, "end": text.x - length, "middle": text.x - length / 2}[text.anchor]
    return start, start + length


@given(numbers, numbers)
def test_ticks_cover_what_they_are_for_in_even_steps(one: float, other: float) -> None:
    low, high = min(one, other), max(one, other)
    ticks = nice_ticks(low, high)
    slack = 1e-6 * max(abs(low), abs(high), 1)
    assert ticks[0] <= low + slack and ticks[-1] >= high - slack
    assert 2 <= len(ticks) <= 12
    steps = [b - a for a, b in pairwise(ticks)]
    assert max(steps) == pytest.approx(min(steps), rel=1e-3, abs=slack)


def test_a_better_policy_stands_higher_and_its_whisker_spans_the_interval() -> None:
    chart = intervals(won("a", 0.4, 0.3, 0.5), won("b", 0.8, 0.7, 0.9))
    worse, better = chart.dots
    assert better.y < worse.y  # SVG counts from the top
    assert worse.x < better.x
    whisker = next(line for line in chart.lines if line.kind == "whisker" and line.x1 == better.x)
    assert whisker.y2 < better.y < whisker.y1
    caps = [line for line in chart.lines if line.kind == "whisker" and line.x1 < better.x < line.x2]
    assert {cap.y1 for cap in caps} == {whisker.y1, whisker.y2}
    assert all(cap.y1 == cap.y2 for cap in caps)


def test_the_line_at_one_half_parts_winners_from_losers() -> None:
    chart = intervals(won("a", 0.49, 0.4, 0.6), won("b", 0.51, 0.4, 0.6))
    half = next(line for line in chart.lines if line.kind == "reference")
    assert chart.dots[1].y < half.y1 < chart.dots[0].y


def test_the_description_says_the_newest_figure() -> None:
    chart = intervals(won("a", 0.4, 0.3, 0.5), won("b", 0.83, 0.71, 0.92))
    assert chart.description == "b: 83 %, interval 71 % to 92 %."


def test_a_chart_without_figures_is_drawn_empty() -> None:
    for chart in (intervals(), scatter()):
        assert chart.dots == []
        assert drawn(chart).find("svg") is not None


@given(st.lists(st.tuples(numbers, numbers), min_size=1, max_size=8))
def test_every_point_of_a_scatter_lies_in_its_frame(places: list[tuple[float, float]]) -> None:
    chart = scatter(*(Spot(label=f"dpo-{n}", x=x, y=y) for n, (x, y) in enumerate(places)))
    for dot in chart.dots:
        assert chart.left - 0.1 <= dot.x <= chart.right + 0.1
        assert chart.top - 0.1 <= dot.y <= chart.bottom + 0.1


def test_names_that_find_no_room_are_in_the_table_alone() -> None:
    chart = scatter(*(Spot(label=f"a policy, {n}", x=5, y=1) for n in range(12)))
    assert 1 <= len(chart.texts) <= 4
    assert len(chart.dots) == len(chart.rows) == 12


def test_labels_of_close_points_do_not_run_into_each_other() -> None:
    chart = scatter(*(Spot(label=f"policy-{n}", x=5 + n * 0.2, y=1 + n * 0.02) for n in range(3)))
    for one, other in combinations(chart.texts, 2):
        apart = width_of(one)[1] <= width_of(other)[0] or width_of(other)[1] <= width_of(one)[0]
        assert apart or abs(one.y - other.y) >= 10, (one, other)


def test_a_label_at_the_right_edge_stays_on_the_canvas() -> None:
    chart = scatter(Spot(label="a-policy-with-a-name", x=10, y=2))
    assert width_of(chart.texts[0])[1] <= WIDTH


def test_a_label_in_the_corner_stays_in_the_frame() -> None:
    chart = scatter(Spot(label="a-policy-with-a-name", x=0, y=0.001), Spot(label="other", x=10, y=2))
    assert width_of(chart.texts[0])[0] >= chart.left


def test_a_bar_is_as_high_as_its_share_and_nothing_leaves_a_gap() -> None:
    chart = grouped_bars(
        key="k",
        title="T",
        x_label="strength",
        y_label="right",
        groups=["slightly", "far"],
        series=[("model", [0.5, 1.0]), ("raters", [0.25, None])],
    )
    half, whole, quarter = chart.bars
    assert whole.height == pytest.approx(2 * half.height, abs=0.1)
    assert half.height == pytest.approx(2 * quarter.height, abs=0.1)
    assert half.x + half.width <= quarter.x
    assert chart.rows == [["slightly", "50 %", "25 %"], ["far", "100 %", "–"]]


def test_a_model_that_is_as_sure_as_it_is_right_stands_on_the_diagonal() -> None:
    chart = calibration_chart(
        key="k", title="T", bins=[Bin(predicted=p, observed=p, n=10) for p in (0.55, 0.7, 0.95)]
    )
    diagonal = next(line for line in chart.lines if line.kind == "reference")
    slope = (diagonal.y2 - diagonal.y1) / (diagonal.x2 - diagonal.x1)
    for dot in chart.dots:
        assert dot.y == pytest.approx(diagonal.y1 + slope * (dot.x - diagonal.x1), abs=0.1)


def test_bins_with_more_comparisons_are_drawn_larger() -> None:
    chart = calibration_chart(
        key="k",
        title="T",
        bins=[Bin(predicted=0.6, observed=0.6, n=2), Bin(predicted=0.8, observed=0.8, n=50)],
    )
    assert chart.dots[0].radius < chart.dots[1].radius


def test_a_hostile_policy_name_is_drawn_as_text() -> None:
    name = "<script>alert(1)</script>\"'&"
    figure = drawn(scatter(Spot(label=name, x=1, y=1)))
    assert not [part for part in figure.iter() if part.tag.endswith("script")]
    assert name in [cell.text for cell in figure.iter("th")]


def test_a_chart_has_a_title_a_description_a_table_and_no_inline_style() -> None:
    figure = drawn(intervals(won("a", 0.4, 0.3, 0.5)))
    svg = figure.find("svg")
    assert svg is not None and svg.get("viewBox") == f"0 0 {WIDTH} {HEIGHT}"
    named = (svg.get("aria-labelledby") or "").split()
    assert [part.text for part in svg.iter() if part.get("id") in named] == ["T", figure.findtext("svg/desc")]
    assert figure.findtext(".//tbody/tr/th") == "a"
    assert not [part for part in figure.iter() if part.get("style")]


def test_coordinates_are_written_with_a_point_in_every_language(settings: object) -> None:
    from django.utils import translation

    with translation.override("de"):
        figure = drawn(intervals(won("a", 0.401, 0.3, 0.5)))
    circle = figure.find(".//circle")
    assert circle is not None and "," not in (circle.get("cy") or "")
