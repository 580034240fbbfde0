"""The rules that turn labels into rows, each on cases small enough to work out by hand."""

import doctest
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from labeling import comparisons
from labeling.comparisons import Comparison, Judgement, Kind, Rule, aggregate

RULES: list[Rule] = ["each_label", "majority", "mean_strength"]


def judgement(
    rater: int, value: dict[str, Any], kind: Kind = "comparison", completions: Any = (7, 8)
) -> Judgement:
    return Judgement(task=1, prompt=5, rater=rater, kind=kind, value=value, completions=completions)


def comparison(*signed: int | None) -> list[Judgement]:
    """One label a rater on completions 7 and 8: above 0 for 7, below 0 for 8, 0 a tie, None both bad."""
    values: list[dict[str, Any]] = []
    for vote in signed:
        if vote is None:
            values.append({"outcome": "both_bad"})
        elif vote == 0:
            values.append({"outcome": "tie"})
        else:
            values.append({"outcome": "preferred", "preferred": 7 if vote > 0 else 8, "strength": abs(vote)})
    return [judgement(rater, value) for rater, value in enumerate(values)]


def ranking(*ranks: dict[int, int]) -> list[Judgement]:
    return [
        judgement(rater, {"ranks": {str(k): v for k, v in said.items()}}, "ranking", (1, 2, 3, 4))
        for rater, said in enumerate(ranks)
    ]


def only(judgements: list[Judgement], rule: Rule) -> Comparison:
    (row,) = aggregate(judgements, rule=rule).comparisons
    return row


def test_the_examples_in_the_module_hold() -> None:
    assert doctest.testmod(comparisons).failed == 0


def test_each_label_is_a_row_of_its_own() -> None:
    rows = aggregate(comparison(4, -1, 0), rule="each_label").comparisons
    assert [row.chosen for row in rows[:2]] == [7, 8]
    assert [(row.strength, row.margin, row.p, row.votes) for row in rows] == [
        (4, 3.0, 1.0, 1),
        (1, 0.0, 1.0, 1),
        (0, 0.0, 0.5, 1),
    ]


def test_a_majority_wins_with_the_median_of_its_own_strengths() -> None:
    row = only(comparison(-2, -4, 1), "majority")
    assert (row.chosen, row.rejected, row.strength, row.margin) == (8, 7, 3, 2.0)
    assert row.p == pytest.approx(2 / 3)


def test_a_tie_among_the_majoritys_raters_counts_half_in_p() -> None:
    assert only(comparison(1, 1, 1, 0, -1), "majority").p == pytest.approx(3.5 / 5)


@pytest.mark.parametrize("votes", [(4, -1), (0, 0, 3), (1, 0), (2, 2, -1, -1)])
def test_without_a_majority_the_row_is_a_tie(votes: tuple[int, ...]) -> None:
    row = only(comparison(*votes), "majority")
    assert (row.strength, row.margin, row.p) == (0, 0.0, 0.5)


def test_when_most_say_both_bad_a_majority_leaves_the_pair_out_and_says_why() -> None:
    result = aggregate(comparison(None, None, 3), rule="majority")
    assert result.comparisons == []
    assert result.used == 0
    assert dict(result.left_out) == {"both bad": 2, "most raters say both bad": 1}


@pytest.mark.parametrize("rule", RULES)
def test_both_bad_abstains(rule: Rule) -> None:
    result = aggregate(comparison(3, None), rule=rule)
    assert [(row.chosen, row.strength, row.votes) for row in result.comparisons] == [(7, 3, 1)]
    assert (result.used, dict(result.left_out)) == (1, {"both bad": 1})


def test_the_mean_strength_may_overrule_the_heads() -> None:
    row = only(comparison(4, -1, -1), "mean_strength")
    assert (row.chosen, row.strength, row.margin, row.p) == (7, 1, 0.0, 0.5)


def test_the_margin_follows_the_mean_and_the_strength_is_rounded() -> None:
    row = only(comparison(4, 3), "mean_strength")
    assert (row.strength, row.margin) == (4, 2.5)


def test_strengths_that_cancel_are_a_tie() -> None:
    assert only(comparison(3, -2, -1), "mean_strength").strength == 0


def test_a_ranking_gives_its_pairs_each_with_its_share_of_the_weight() -> None:
    result = aggregate(ranking({1: 2, 2: 1, 3: 2}), rule="each_label")
    (row,) = result.rankings
    assert (row.completions, row.ranks, row.weight) == ((2, 1, 3), (1, 2, 2), 1.0)
    assert {(p.chosen, p.rejected, p.strength, p.p) for p in result.comparisons} == {
        (2, 1, 1, 1.0),
        (2, 3, 1, 1.0),
        (1, 3, 0, 0.5),
    }
    assert [p.weight for p in result.comparisons] == pytest.approx([1 / 3] * 3)
    assert {p.margin for p in result.comparisons} == {0.0}


def test_completions_that_were_not_ranked_are_in_no_row() -> None:
    result = aggregate(ranking({1: 1, 4: 2}), rule="each_label")
    assert result.rankings[0].completions == (1, 4)
    assert [(p.chosen, p.rejected, p.weight) for p in result.comparisons] == [(1, 4, 1.0)]


def test_a_ranking_of_one_is_left_out() -> None:
    result = aggregate(ranking({1: 1}), rule="each_label")
    assert (result.rankings, result.comparisons, result.used) == ([], [], 0)
    assert dict(result.left_out) == {"fewer than two ranked": 1}


@pytest.mark.parametrize("rule", ["majority", "mean_strength"])
def test_several_rankings_stay_apart_and_weigh_one_together(rule: Rule) -> None:
    result = aggregate(ranking({1: 1, 2: 2, 3: 3}, {1: 1, 2: 3, 3: 2}, {1: 2, 2: 1, 3: 3}), rule=rule)
    assert [row.completions for row in result.rankings] == [(1, 2, 3), (1, 3, 2), (2, 1, 3)]
    assert [row.weight for row in result.rankings] == pytest.approx([1 / 3] * 3)
    assert {(p.chosen, p.rejected): round(p.p, 3) for p in result.comparisons} == {
        (1, 2): 0.667,
        (1, 3): 1.0,
        (2, 3): 0.667,
    }


def test_two_partial_rankings_say_nothing_of_completions_that_nobody_saw_together() -> None:
    result = aggregate(ranking({1: 1, 2: 2}, {3: 1, 4: 2}), rule="majority")
    assert [(row.completions, row.ranks) for row in result.rankings] == [((1, 2), (1, 2)), ((3, 4), (1, 2))]
    assert {(p.chosen, p.rejected) for p in result.comparisons} == {(1, 2), (3, 4)}


def test_which_side_of_a_tie_stands_first_says_nothing() -> None:
    """Half of the time the lower id, which as a rule is the older policy's."""
    first = 0
    for n in range(400):
        tie = Judgement(
            task=n,
            prompt=1,
            rater=1,
            kind="comparison",
            value={"outcome": "tie"},
            completions=(2 * n, 2 * n + 1),
        )
        (row,) = aggregate([tie], rule="each_label").comparisons
        assert row == aggregate([tie], rule="each_label").comparisons[0]
        first += row.chosen == 2 * n
    assert 150 < first < 250


@pytest.mark.parametrize("rule", RULES)
def test_ratings_stay_with_their_raters_and_never_become_pairs(rule: Rule) -> None:
    said = [judgement(rater, {"scores": {"kind": 5, "brave": rater}}, "rating", (9,)) for rater in (1, 2)]
    result = aggregate(said, rule=rule)
    assert [(r.rater, r.criterion, r.rating, r.completion) for r in result.ratings] == [
        (1, "brave", 1, 9),
        (1, "kind", 5, 9),
        (2, "brave", 2, 9),
        (2, "kind", 5, 9),
    ]
    assert (result.comparisons, result.rankings, result.used) == ([], [], 2)


votes = st.lists(st.one_of(st.none(), st.integers(-4, 4)), min_size=1, max_size=7)


@given(votes, st.sampled_from(RULES))
def test_every_label_is_used_or_left_out_for_a_reason(said: list[int | None], rule: Rule) -> None:
    result = aggregate(comparison(*said), rule=rule)
    assert result.used + result.left_out.total() == len(said)


@given(votes, st.sampled_from(RULES))
def test_what_is_chosen_is_never_the_less_likely_side(said: list[int | None], rule: Rule) -> None:
    for row in aggregate(comparison(*said), rule=rule).comparisons:
        assert 0.5 <= row.p <= 1
        assert 0 <= row.strength <= 4
        assert 0 <= row.margin <= 3
        assert (row.strength > 0) or (row.p == 0.5 and row.margin == 0)


@given(votes, st.sampled_from(RULES))
def test_no_rule_favours_the_completion_that_came_first(said: list[int | None], rule: Rule) -> None:
    """Swapping the two sides of every label swaps the winner and nothing else."""
    mirrored = [None if vote is None else -vote for vote in said]
    ours = aggregate(comparison(*said), rule=rule).comparisons
    theirs = aggregate(comparison(*mirrored), rule=rule).comparisons
    for one, other in zip(ours, theirs, strict=True):
        assert (one.strength, one.margin, one.p) == (other.strength, other.margin, other.p)
        assert one.strength == 0 or one.chosen == other.rejected


@given(votes, st.sampled_from(["majority", "mean_strength"]), st.randoms())
def test_the_order_of_the_raters_changes_nothing(said: list[int | None], rule: Rule, random: Any) -> None:
    shuffled = random.sample(said, len(said))
    assert (
        aggregate(comparison(*said), rule=rule).comparisons
        == aggregate(comparison(*shuffled), rule=rule).comparisons
    )
