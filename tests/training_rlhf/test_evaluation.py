"""Figures, against examples worked by hand and against other ways to get them."""

import doctest
import json
import math
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

import torch

from tests.training_rlhf.conftest import pair_row, save_tiny_policy
from training.rlhf import evaluation, figures, loading, rendering, scoring
from training.rlhf.config import RunConfig, Sampling
from training.rlhf.data import Comparison, Element
from training.rlhf.run_dir import ProgressWriter, RunDir, read_jsonl

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


def test_kl_by_hand() -> None:
    """One sample of two tokens: log ratios policy/reference are ln 2 and 0."""
    ours, theirs = torch.tensor([math.log(0.5), -1.0]), torch.tensor([math.log(0.25), -1.0])
    k1, k3 = figures.kl_estimates([ours], [theirs])
    assert k1 == pytest.approx(math.log(2))
    assert k3 == pytest.approx((0.5 - 1) + math.log(2))


def test_both_kl_estimates_approach_the_exact_value_and_k3_is_never_negative() -> None:
    torch.manual_seed(0)
    p, q = torch.randn(5).log_softmax(0), torch.randn(5).log_softmax(0)
    exact = (p.exp() * (p - q)).sum().item()
    draws = torch.multinomial(p.exp(), 20_000, replacement=True)
    ours, theirs = list(p[draws][:, None]), list(q[draws][:, None])
    k1, k3 = figures.kl_estimates(ours, theirs)
    assert k1 == pytest.approx(exact, rel=0.05) and k3 == pytest.approx(exact, rel=0.05)
    for one, other in zip(ours[:50], theirs[:50], strict=True):
        assert figures.kl_estimates([one], [other])[1] >= 0
    assert figures.kl_estimates(ours, ours) == (0, 0)


def test_logprobs_do_not_depend_on_batch_and_padding(tiny_policy: Path) -> None:
    model = loading.load_policy(str(tiny_policy))
    prompts, completions = [[5, 6, 7, 8], [9], [10, 11]], [[20, 21], [22, 23, 24, 25], [26]]
    together = evaluation.completion_logprobs(model, prompts, completions, pad_id=0)
    for prompt, completion, found in zip(prompts, completions, together, strict=True):
        with torch.inference_mode():
            logp = model(torch.tensor([prompt + completion])).logits[0].log_softmax(-1)
        expected = [logp[len(prompt) + place - 1, token].item() for place, token in enumerate(completion)]
        assert found.tolist() == pytest.approx(expected, abs=1e-5)


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
    assert found["by_strength"] == {
        "1": {"accuracy": 0.0, "pairs": 1},
        "4": {"accuracy": 1.0, "pairs": 1},
    }
    assert found["length_baseline_accuracy"] == 0.5  # longer in both pairs, shorter in the ranking
    json.dumps(found, allow_nan=False)


def test_no_held_out_comparisons_are_no_figures_and_no_failure() -> None:
    found = figures.reward_figures([], [])
    assert found["accuracy"] is None and found["pairs"] == 0
    json.dumps(found, allow_nan=False)


@pytest.fixture
def reward_model(tiny_policy: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "reward"
    tokenizer = loading.load_tokenizer(str(tiny_policy))
    model = loading.load_reward_base(str(tiny_policy), seed=0)
    loading.fit(model, tokenizer, where="")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    scoring.write_canaries(model, tokenizer, folder=folder)
    return folder


def run_folder(path: Path, **files: list[dict[str, Any]]) -> RunDir:
    run_dir = RunDir(path)
    run_dir.data.mkdir(parents=True)
    for name, rows in files.items():
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (run_dir.data / f"{name.replace('_', '.')}.jsonl").write_text(text)
    return run_dir


def test_a_policy_is_compared_with_the_one_it_came_from(
    tiny_policy: Path, reward_model: Path, tmp_path: Path
) -> None:
    prompts = [{"prompt": [{"role": "user", "content": f"Say {number}."}]} for number in range(300)]
    run_dir = run_folder(tmp_path / "run", prompts_test=prompts)
    save_tiny_policy(run_dir.model, seed=1)
    config = RunConfig(
        method="dpo",
        model=str(tiny_policy),
        reward_model=str(reward_model),
        sampling=Sampling(max_new_tokens=6, batch_size=128),
    )
    found = evaluation.evaluate_policy(run_dir, config, ProgressWriter(run_dir))
    assert json.loads(run_dir.evaluation.read_text()) == found
    assert found["prompts"] == 256
    assert found["win_rate_low"] <= found["win_rate_reward_model"] <= found["win_rate_high"]
    assert found["kl"] > 0 and found["kl"] == pytest.approx(found["kl_k1"], rel=0.3)
    assert 1 <= found["length_new"] <= 6 and 0 <= found["eos_rate_old"] <= 1
    rows = list(read_jsonl(run_dir.completions))
    assert [row["policy"] for row in rows] == ["new"] * 256 + ["old"] * 256
    assert [row["request"] for row in rows[:256]] == list(range(256))

    # The win rate can be had again from what was written.
    scorer, tokenizer = loading.load_reward_model(reward_model)
    rewards = scoring.reward_scores(
        scorer,
        tokenizer,
        [[*prompts[row["request"]]["prompt"], {"role": "assistant", "content": row["text"]}] for row in rows],
    )
    again = figures.win_rate(rewards[:256], rewards[256:])
    assert again["rate"] == pytest.approx(found["win_rate_reward_model"], abs=0.01)


def test_a_policy_that_did_not_move_has_no_kl_and_without_reward_model_no_win_rate(
    tiny_policy: Path, tmp_path: Path
) -> None:
    run_dir = run_folder(tmp_path / "run", prompts_test=[{"prompt": [{"role": "user", "content": "Hi"}]}] * 8)
    save_tiny_policy(run_dir.model)
    config = RunConfig(method="dpo", model=str(tiny_policy), sampling=Sampling(max_new_tokens=6))
    found = evaluation.evaluate_policy(run_dir, config, ProgressWriter(run_dir))
    assert found["kl"] == pytest.approx(0, abs=1e-6)
    assert found["win_rate_reward_model"] is None and found["reward_new"] is None


def test_a_policy_without_held_out_prompts_is_evaluated_to_nothing(tiny_policy: Path, tmp_path: Path) -> None:
    run_dir = run_folder(tmp_path / "run")
    save_tiny_policy(run_dir.model)
    config = RunConfig(method="dpo", model=str(tiny_policy))
    found = evaluation.evaluate_policy(run_dir, config, ProgressWriter(run_dir))
    assert found["prompts"] == 0 and found["length_new"] is None


def test_a_reward_model_is_measured_on_held_out_pairs(reward_model: Path, tmp_path: Path) -> None:
    rows = [pair_row(number, strength=1 + number % 4) for number in range(12)]
    run_dir = run_folder(tmp_path / "run", pairs_test=rows)
    run_dir.model.symlink_to(reward_model)
    config = RunConfig(method="reward_model", model=str(reward_model))
    found = evaluation.evaluate_reward_model(run_dir, config, ProgressWriter(run_dir))
    assert found["pairs"] == 12 and set(found["by_strength"]) == {"1", "2", "3", "4"}
    assert json.loads(run_dir.evaluation.read_text()) == found
    scorer, tokenizer = loading.load_reward_model(reward_model)
    right = 0
    for row in rows:
        better, worse = (
            scoring.reward_scores(scorer, tokenizer, [row["prompt"] + row[side]])[0]
            for side in ("chosen", "rejected")
        )
        right += better > worse
    assert found["accuracy"] == pytest.approx(right / 12)
    assert rendering.template_hash(tokenizer)
