"""Whether a policy still says many things, whether its wins are more than length, and what it forgot."""

import doctest
import math
import random
from pathlib import Path

import pytest

pytest.importorskip("torch")

from training.rlhf import loading
from training.rlhf.measures import diversity, forgetting
from training.rlhf.measures.diversity import distinct_ngrams, length_controlled_win_rate


def test_the_examples_in_the_docstrings_hold() -> None:
    tested = doctest.testmod(diversity)
    assert tested.attempted
    assert not tested.failed


def test_texts_that_repeat_each_other_are_less_distinct() -> None:
    assert distinct_ngrams(["abc", "def"], 2) == 1
    assert distinct_ngrams(["abc", "abc"], 2) == 0.5
    assert distinct_ngrams(["aaaa"], 2) == pytest.approx(1 / 3)
    assert distinct_ngrams(["a"], 2) is None


def judged(count: int, *, better: float, per_token: float, longer: float) -> tuple[list[float], list[float]]:
    """Judges who prefer the new one by `better`, and every token more by `per_token` (logits)."""
    rng = random.Random(0)
    differences = [rng.gauss(longer, 20) for _ in range(count)]
    chances = [1 / (1 + math.exp(-(better + per_token * one))) for one in differences]
    return [float(rng.random() < chance) for chance in chances], differences


def test_wins_by_length_alone_are_no_wins_at_equal_length() -> None:
    wins, longer_by = judged(4000, better=0.0, per_token=0.1, longer=20)
    assert sum(wins) / len(wins) > 0.75
    found = length_controlled_win_rate(wins, longer_by)
    assert found == pytest.approx(0.5, abs=0.06)


def test_a_policy_that_is_better_wins_at_equal_length_too() -> None:
    wins, longer_by = judged(4000, better=1.0, per_token=0.02, longer=-20)
    assert length_controlled_win_rate(wins, longer_by) == pytest.approx(1 / (1 + math.exp(-1)), abs=0.05)


def test_where_lengths_are_equal_it_is_the_win_rate() -> None:
    wins = [1.0, 1.0, 1.0, 0.5, 0.0, 0.0, 1.0, 1.0]
    assert length_controlled_win_rate(wins, [0.0] * 8) == pytest.approx(sum(wins) / 8, abs=1e-3)
    assert length_controlled_win_rate([], []) is None


@pytest.mark.parametrize("wins", [[1.0] * 9, [0.0] * 9])
def test_it_stays_a_number_where_every_comparison_is_won_or_lost(wins: list[float]) -> None:
    found = length_controlled_win_rate(wins, [float(number) for number in range(9)])
    assert found is not None
    assert 0 <= found <= 1
    assert (found > 0.9) == (wins[0] == 1.0)


def test_a_random_policy_remembers_nothing_of_the_fixed_text(tiny_policy: Path) -> None:
    model, tokenizer = loading.load_policy(str(tiny_policy)), loading.load_tokenizer(str(tiny_policy))
    found = forgetting.nats_on_fixed_text(model, tokenizer)
    assert found == pytest.approx(math.log(len(tokenizer)), abs=0.2)
