"""What a sweep tries: spaces as people write them, grids and draws."""

import math
from itertools import pairwise, product
from typing import Any

import pytest

from training import search_space
from training.search_space import Range, SpaceError, Values, drawn, grid, parsed

SPACE: search_space.Space = {
    "training.learning_rate": Range(1e-5, 1e-3, log=True),
    "training.batch_size": Values((4, 8)),
    "tuning.lora_rank": Range(4, 64, log=True, whole=True),
}


def test_a_grid_takes_every_combination_once() -> None:
    points = grid(SPACE)
    rates, sizes, ranks = (sorted({p[key] for p in points}) for key in SPACE)
    assert (len(rates), len(sizes), len(ranks)) == (3, 2, 3)
    assert sorted(map(tuple, (p.values() for p in points))) == sorted(product(rates, sizes, ranks))


def test_a_grid_holds_both_ends_of_a_range_and_logarithmic_steps_between() -> None:
    rates = [p["a"] for p in grid({"a": Range(1e-5, 1e-1, log=True, points=5)})]
    assert (rates[0], rates[-1]) == (1e-5, 1e-1)
    assert [b / a for a, b in pairwise(rates)] == pytest.approx([10] * 4, rel=1e-3)
    assert [p["a"] for p in grid({"a": Range(0, 10, points=6)})] == [0, 2, 4, 6, 8, 10]


def test_a_grid_of_too_many_runs_is_refused_with_their_number() -> None:
    with pytest.raises(SpaceError, match=r"10 × 10 = 100 runs, and 64 are allowed"):
        grid({"a": Range(0, 1, points=10), "b": Range(0, 1, points=10)})


def test_the_same_seed_draws_the_same_points_and_another_one_others() -> None:
    assert drawn(SPACE, runs=8, seed=1) == drawn(SPACE, runs=8, seed=1)
    assert drawn(SPACE, runs=8, seed=1) != drawn(SPACE, runs=8, seed=2)


def test_draws_lie_within_their_ranges_and_no_point_comes_twice() -> None:
    points = drawn(SPACE, runs=50, seed=3)
    assert len({tuple(p.values()) for p in points}) == 50
    for point in points:
        assert 1e-5 <= point["training.learning_rate"] <= 1e-3
        assert 4 <= point["tuning.lora_rank"] <= 64
        assert isinstance(point["tuning.lora_rank"], int)
        assert point["training.batch_size"] in (4, 8)


def test_a_logarithmic_range_gives_each_power_of_ten_as_many_draws() -> None:
    points = drawn({"a": Range(1e-6, 1e-2, log=True)}, runs=400, seed=0)
    powers = [math.floor(math.log10(p["a"])) for p in points]
    assert all(60 < powers.count(power) < 140 for power in (-6, -5, -4, -3))


def test_a_small_space_gives_all_that_it_has() -> None:
    assert sorted(p["a"] for p in drawn({"a": Values((1, 2, 3))}, runs=10, seed=0)) == [1, 2, 3]


@pytest.mark.parametrize(
    ("text", "kind", "why"),
    [
        ("1e-4", float, "two values or more"),
        ("a, b", float, "a is no number"),
        ("1.5, 2", int, "1.5 is no whole number"),
        ("nan, 1", float, "no number that can be tried"),
        ("3 to 1", float, "the first is the smaller"),
        ("0 to 1, log", float, "begins above 0"),
        ("maybe, yes", bool, "neither yes nor no"),
        ("1 to 2 in 99", float, "2 to 32 points"),
    ],
)
def test_what_is_no_space_is_refused_in_words(text: str, kind: type, why: str) -> None:
    with pytest.raises(SpaceError, match=why):
        parsed(text, kind=kind)


def test_a_space_comes_back_from_json_as_it_was() -> None:
    assert search_space.from_json(search_space.to_json(SPACE)) == SPACE
    half: Any = {"a": {"low": 0.5, "high": 9, "whole": True}}
    hostile: Any
    for hostile in (
        [],
        half,
        {"a": 1},
        {"a": {"low": 1, "high": None}},
        {"a": [{}]},
        {"a": {"low": 2, "high": 1}},
    ):
        with pytest.raises(SpaceError):
            search_space.from_json(hostile)
