"""Figures, against examples worked by hand and against other ways to get them."""

import doctest
import json
import math

import pytest

pytest.importorskip("torch")

import torch

from training.rlhf.data import Comparison, Element
from training.rlhf.measures import figures

pytestmark = pytest.mark.training


def test_the_examples_in_the_docstrings_hold() -> None:
    tested = doctest.testmod(figures)
    assert tested.attempted and not tested.failed


def test_wilson_stays_inside_and_narrows_with_more() -> None:
    assert figures.wilson(0, 5)["low"] == 0 and figures.wilson(5, 5)["high"] == 1
    few, many = figures.wilson(6, 10), figures.wilson(600, 1000)
    assert many["high"] - many["low"] < few["high"] - few["low"]
    assert figures.wilson(0, 0) == {"rate": 0.0, "low": 0.0, "high": 1.0, "n": 0}


def test_accuracy_counts_who_was_preferred_whatever_the_column() -> None:
    """p below one half means that the other one was preferred; equal rewards are half right."""
    assert figures.reward_accuracy([1.0, 1.0, 0.0], [1.0, 0.2, 1.0])["rate"] == pytest.approx(1.5 / 3)
    assert figures.reward_accuracy([1.0], [0.5])["n"] == 0


def test_a_model_that_is_as_sure_as_it_is_right_is_calibrated() -> None:
    sure = math.log(0.8 / 0.2)  # 80 % sure
    bins, ece = figures.calibration([sure] * 8 + [-sure] * 2, [1.0] * 10)
    assert ece == pytest.approx(0, abs=1e-9)
    (one,) = bins
    assert (one["predicted"], one["observed"], one["count"]) == pytest.approx((0.8, 0.8, 10))


def test_a_model_that_is_sure_and_right_half_the_time_is_off_by_one_half() -> None:
    bins, ece = figures.calibration([50.0, -50.0, 1e9, -1e9], [1.0] * 4)
    assert ece == pytest.approx(0.5)
    assert sum(one["count"] for one in bins) == 4 and bins[0]["high"] == 1.0


def test_the_win_rates_interval_is_seeded_and_holds_the_rate() -> None:
    new, old = [1.0] * 30 + [0.0] * 10, [0.5] * 40
    one = figures.win_rate(new, old, seed=1)
    assert one == figures.win_rate(new, old, seed=1)
    assert one["low"] < one["rate"] == 0.75 < one["high"]
    assert figures.win_rate(old, old)["rate"] == 0.5
    assert figures.win_rate([], [])["n"] == 0


def test_three_wins_of_three_are_not_certain() -> None:
    found = figures.win_rate([1.0] * 3, [0.0] * 3)
    assert found["rate"] == found["high"] == 1 and found["low"] == figures.wilson(3, 3)["low"]
    many = figures.win_rate([1.0] * 256, [0.0] * 256)
    assert 0.97 < many["low"] < 1


def test_saying_the_same_again_of_a_prompt_makes_an_interval_no_narrower() -> None:
    """Ten raters of one prompt who agree are one case; as many prompts are ten."""
    values, prompts = [1.0, 1.0, 0.0, 1.0] * 20, list(range(80))
    once = figures.clustered_rate(values, prompts)
    again = figures.clustered_rate(values * 10, prompts * 10)
    apart = figures.clustered_rate(values * 10, range(800))
    assert (again["low"], again["high"]) == pytest.approx((once["low"], once["high"]))
    assert again["n"] == 800
    assert apart["high"] - apart["low"] < 0.5 * (once["high"] - once["low"])


def test_over_many_prompts_a_clustered_interval_is_wilsons() -> None:
    found, wilson = figures.clustered_rate([1.0, 1.0, 0.0] * 300, range(900)), figures.wilson(600, 900)
    assert (found["low"], found["high"]) == pytest.approx((wilson["low"], wilson["high"]), abs=0.005)


def logprobs(*probabilities: float) -> torch.Tensor:
    return torch.tensor(probabilities, dtype=torch.float64).log()


def test_kl_by_hand() -> None:
    """One sample of two tokens, twice as likely and as likely; with one sample it is k3."""
    found = figures.kl_divergence([logprobs(0.5, 0.3)], [logprobs(0.25, 0.3)])
    assert found["kl_k1"] == pytest.approx(math.log(2))
    assert found["kl"] == pytest.approx((0.5 - 1) + math.log(2))
    assert found["kl_standard_error"] is None


def test_no_samples_have_no_kl_and_equal_policies_none_at_all() -> None:
    assert set(figures.kl_divergence([], []).values()) == {None}
    same = [logprobs(0.5, 0.25), logprobs(0.1)] * 10
    assert set(figures.kl_divergence(same, same).values()) == {0}


@pytest.mark.parametrize("distance", [0.05, 0.5, 1.5], ids=["close", "apart", "far"])
def test_kl_is_exact_on_average_scatters_as_it_says_and_no_more_than_either_estimator(
    distance: float,
) -> None:
    """Sequences of 12 independent tokens, so that the exact value is known; 100 evaluations."""
    random = torch.Generator().manual_seed(1)
    logits = torch.randn(8, generator=random, dtype=torch.float64)
    p = logits.log_softmax(0)
    q = (logits + distance * torch.randn(8, generator=random, dtype=torch.float64)).log_softmax(0)
    exact = 12 * (p.exp() * (p - q)).sum().item()
    found, k1, k3 = [], [], []
    for _ in range(100):
        tokens = torch.multinomial(p.exp().expand(128, 8), 12, replacement=True, generator=random)
        found.append(figures.kl_divergence(list(p[tokens]), list(q[tokens])))
        log_ratio = (q - p)[tokens]
        k1.append(-log_ratio.sum(1).mean().item())
        k3.append((log_ratio.exp() - 1 - log_ratio).sum(1).mean().item())
    values = torch.tensor([one["kl"] for one in found])
    said = torch.tensor([one["kl_standard_error"] for one in found]).mean().item()
    assert [one["kl_k1"] for one in found] == pytest.approx(k1)
    assert values.mean().item() == pytest.approx(exact, abs=4 * values.std().item() / 10)
    assert said == pytest.approx(values.std().item(), rel=0.25)
    assert values.std() < 1.1 * min(torch.tensor(k1).std(), torch.tensor(k3).std())


def element(scores_p: float, strength: int | None, chosen: str = "ab", rejected: str = "a") -> Element:
    turns = [[{"role": "assistant", "content": text}] for text in (chosen, rejected)]
    return Element(
        table="pairs", line=1, prompt=[], completions=turns, strength=strength,
        comparisons=[Comparison(chosen=0, rejected=1, margin=0, weight=1, p=scores_p)],
    )  # fmt: skip


def test_reward_figures_by_strength_and_against_length() -> None:
    ranking = Element(
        table="rankings", line=1, prompt=[],
        completions=[[{"role": "assistant", "content": text}] for text in ("a", "bb", "ccc")],
        comparisons=[Comparison(0, 1, 0, 1, 1.0), Comparison(0, 2, 0, 1, 1.0), Comparison(1, 2, 0, 1, 0.5)],
    )  # fmt: skip
    elements = [element(1.0, 4), element(1.0, 1), element(0.5, 0), ranking]
    found = figures.reward_figures(elements, [3, 1, 1, 2, 5, 5, 9, 8, 7])
    assert found["pairs"] == 4  # two pairs, two comparisons of the ranking; ties are left out
    assert found["accuracy"] == 0.75
    shown = {strength: (part["accuracy"], part["pairs"]) for strength, part in found["by_strength"].items()}
    assert shown == {"1": (0.0, 1), "4": (1.0, 1)}
    assert found["length_baseline_accuracy"] == 0.5  # longer in both pairs, shorter in the ranking
    json.dumps(found, allow_nan=False)


def test_the_length_baseline_follows_what_was_learnt_from() -> None:
    shorter = [element(1.0, 1, chosen="a", rejected="abc") for _ in range(3)]
    held_out = [*shorter[:1], element(1.0, 1), element(1.0, 1, chosen="a", rejected="ab"), element(0.5, 0)]
    found = figures.reward_figures(held_out, [1, 0] * 4, learnt_from=[*shorter, element(1.0, 1)])
    assert found["length_baseline_accuracy"] == pytest.approx(1 / 3)
    baseline = found["length_baseline"]
    assert baseline["rule"] == "shorter is better" and baseline["pairs"] == 3
    assert baseline["accuracy"] == pytest.approx(2 / 3)
    assert baseline["low"] < 2 / 3 < baseline["high"]
    unlearnt = figures.reward_figures(held_out, [1, 0] * 4)["length_baseline"]
    assert (unlearnt["rule"], unlearnt["accuracy"]) == ("longer is better", pytest.approx(1 / 3))


def test_a_strength_at_which_all_were_ties_is_not_shown_as_always_wrong() -> None:
    found = figures.reward_figures([element(0.5, 2), element(1.0, 4)], [1, 0, 1, 0])
    assert set(found["by_strength"]) == {"4"}


def test_the_comparisons_of_one_ranking_are_not_independent() -> None:
    """Six right comparisons of one ranking say little more than one."""
    ranking = Element(
        table="rankings", line=1, prompt=[{"role": "user", "content": "Go"}],
        completions=[[{"role": "assistant", "content": text}] for text in "abcd"],
        comparisons=[Comparison(a, b, 0, 1 / 6, 1.0) for a in range(4) for b in range(a + 1, 4)],
    )  # fmt: skip
    found = figures.reward_figures([ranking], [4, 3, 2, 1])
    assert (found["accuracy"], found["pairs"], found["prompts"]) == (1, 6, 1)
    assert found["low"] == figures.wilson(1, 1)["low"]


def test_no_held_out_comparisons_are_no_figures_and_no_failure() -> None:
    found = figures.reward_figures([], [])
    assert found["accuracy"] is found["ece"] is found["length_baseline"] is None and found["pairs"] == 0
    json.dumps(found, allow_nan=False)
