"""Trained models on held-out prompts and comparisons: what is written down, and what is left out."""

import json
import shutil
import weakref
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

import torch

from tests.training_rlhf.conftest import pair_row, rating_row, save_tiny_policy
from training.rlhf import evaluation, loading, progress, rating_head, scoring
from training.rlhf.config import RunConfig, Sampling
from training.rlhf.failures import Refused
from training.rlhf.measures import figures
from training.rlhf.method_settings import RewardLearning
from training.rlhf.model_files import causal_config
from training.rlhf.rows import held_out
from training.rlhf.run_dir import ProgressWriter, RunDir, read_jsonl

pytestmark = pytest.mark.training


def test_logprobs_do_not_depend_on_batch_and_padding(tiny_policy: Path) -> None:
    model = loading.load_policy(str(tiny_policy))
    prompts, completions = [[5, 6, 7, 8], [9], [10, 11]], [[20, 21], [22, 23, 24, 25], [26]]
    together = scoring.completion_logprobs(model, prompts, completions, pad_id=0)
    for prompt, completion, found in zip(prompts, completions, together, strict=True):
        with torch.inference_mode():
            logp = model(torch.tensor([prompt + completion])).logits[0].log_softmax(-1)
        expected = [logp[len(prompt) + place - 1, token].item() for place, token in enumerate(completion)]
        assert found.tolist() == pytest.approx(expected, abs=1e-5)


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
    assert found["kl"] > 0 and abs(found["kl"] - found["kl_k1"]) < 5 * found["kl_standard_error"]
    assert found["kl_note"] == "" and found["prompts_dropped"] == 0
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
    assert found["prompts"] == 0 and found["length_new"] is None and found["kl"] is None
    assert run_dir.completions.read_text() == ""


@pytest.mark.parametrize("drawn_with", [{"top_p": 0.9}, {"temperature": 0.0}], ids=["top-p", "greedy"])
def test_where_texts_are_not_the_policys_own_no_kl_is_claimed(
    drawn_with: dict[str, Any], tiny_policy: Path, tmp_path: Path
) -> None:
    run_dir = run_folder(tmp_path / "run", prompts_test=[{"prompt": [{"role": "user", "content": "Hi"}]}] * 4)
    save_tiny_policy(run_dir.model, seed=1)
    config = RunConfig(
        method="dpo", model=str(tiny_policy), sampling=Sampling(max_new_tokens=4, **drawn_with)
    )
    found = evaluation.evaluate_policy(run_dir, config, ProgressWriter(run_dir))
    assert found["kl"] is None and found["kl_standard_error"] is None and "top-p" in found["kl_note"]
    assert found["length_new"] >= 1
    json.dumps(found, allow_nan=False)


def test_a_prompt_that_cannot_be_used_is_left_out_and_counted(tiny_policy: Path, tmp_path: Path) -> None:
    """Too long for the model's positions, refused by the template; lines are still counted as in the file."""
    texts = ["x" * 300, "Hi", "x" * 240, "refuse me", "Ho"]
    prompts = [{"prompt": [{"role": "user", "content": text}]} for text in texts]
    run_dir = run_folder(tmp_path / "run", prompts_test=prompts)
    save_tiny_policy(run_dir.model, seed=1)
    tokenizer = loading.load_tokenizer(str(run_dir.model))
    tokenizer.chat_template = (
        "{%- if messages[0]['content'] == 'refuse me' -%}{{ raise_exception('no') }}{%- endif -%}"
        + tokenizer.chat_template
    )
    tokenizer.save_pretrained(run_dir.model)
    config = RunConfig(method="dpo", model=str(tiny_policy), sampling=Sampling(max_new_tokens=32))
    found = evaluation.evaluate_policy(run_dir, config, ProgressWriter(run_dir))
    assert (found["prompts"], found["prompts_dropped"]) == (2, 3)
    assert found["kl"] is not None
    rows = list(read_jsonl(run_dir.completions))
    assert [(row["request"], row["policy"]) for row in rows] == [
        (1, "new"),
        (4, "new"),
        (1, "old"),
        (4, "old"),
    ]


def test_a_line_that_is_no_prompt_is_refused_with_its_number(tiny_policy: Path, tmp_path: Path) -> None:
    bad: Any
    for bad in ({"prompt": []}, {"prompt": [{"role": "user"}]}, {"prompt": "Hi"}, [], {}):
        run_dir = run_folder(tmp_path / json.dumps(bad))
        good = {"prompt": [{"role": "user", "content": "Hi"}]}
        (run_dir.data / "prompts.test.jsonl").write_text(json.dumps(good) + "\n" + json.dumps(bad) + "\n")
        tokenizer = loading.load_tokenizer(str(tiny_policy))
        with pytest.raises(Refused, match="line 2"):
            held_out.read(
                run_dir,
                RunConfig(method="dpo", model=str(tiny_policy)),
                tokenizer,
                causal_config(str(tiny_policy)),
            )


def test_one_policy_is_in_memory_at_a_time(
    tiny_policy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_dir = run_folder(tmp_path / "run", prompts_test=[{"prompt": [{"role": "user", "content": "Hi"}]}] * 4)
    save_tiny_policy(run_dir.model, seed=1)
    loaded: list[weakref.ref[Any]] = []
    load = loading.load_policy

    def watched(location: str, **options: Any) -> Any:
        assert all(one() is None for one in loaded)
        model = load(location, **options)
        loaded.append(weakref.ref(model))
        return model

    monkeypatch.setattr(loading, "load_policy", watched)
    config = RunConfig(method="dpo", model=str(tiny_policy), sampling=Sampling(max_new_tokens=4))
    found = evaluation.evaluate_policy(run_dir, config, ProgressWriter(run_dir))
    assert len(loaded) == 2 and found["kl"] is not None


def test_a_stop_is_heard_between_two_batches_of_reading(
    tiny_policy: Path, reward_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = loading.load_policy(str(tiny_policy))
    scorer, tokenizer = loading.load_reward_model(reward_model)
    talk = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    for model, read in (
        (
            policy,
            lambda: scoring.completion_logprobs(policy, [[5]] * 9, [[6]] * 9, pad_id=0, batch_size=2),
        ),
        (scorer, lambda: scoring.reward_scores(scorer, tokenizer, [talk] * 9, batch_size=2)),
    ):
        batches: list[int] = []

        def count(*_: Any, batches: list[int] = batches) -> None:
            batches.append(1)
            monkeypatch.setattr(progress._Stop, "requested", True)

        hook = model.register_forward_hook(count)
        with pytest.raises(progress.Cancelled):
            read()
        hook.remove()
        monkeypatch.setattr(progress._Stop, "requested", False)
        assert len(batches) == 1


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
    assert found["calibration_note"] == ""  # no margin in these rows


def test_figures_of_a_model_that_was_trained_with_margins_say_so(reward_model: Path, tmp_path: Path) -> None:
    run_dir = run_folder(tmp_path / "run", pairs_test=[pair_row(number, margin=3.0) for number in range(4)])
    run_dir.model.symlink_to(reward_model)
    for use_margin in (True, False):
        config = RunConfig(
            method="reward_model",
            model=str(reward_model),
            reward_learning=RewardLearning(use_margin=use_margin),
        )
        found = evaluation.evaluate_reward_model(run_dir, config, ProgressWriter(run_dir))
        assert bool(found["calibration_note"]) == use_margin


def test_a_reward_model_is_measured_on_held_out_ratings(reward_model: Path, tmp_path: Path) -> None:
    rows = [rating_row(number) for number in range(24)]
    run_dir = run_folder(tmp_path / "run", ratings_test=rows)
    shutil.copytree(reward_model, run_dir.model)
    config = RunConfig(method="reward_model", model=str(reward_model))
    without = evaluation.evaluate_reward_model(run_dir, config, ProgressWriter(run_dir))
    assert without["accuracy"] is None and without["ratings"]["mae"] is None
    assert without["ratings"]["acceptable"] is None and without["ratings"]["spearman"] is not None

    # A head under which every score means a 5.
    first, increments = torch.tensor([-50.0]), torch.tensor([1.0, 1.0, 1.0])
    rating_head.save(
        rating_head.OrdinalHead([1, 2, 3, 4, 5], first=first, increments=increments), run_dir.model
    )
    found = evaluation.evaluate_reward_model(run_dir, config, ProgressWriter(run_dir))
    ratings = [row["rating"] for row in rows]
    assert found["ratings"]["mae"] == pytest.approx(sum(5 - one for one in ratings) / 24, abs=1e-5)
    acceptable = found["ratings"]["acceptable"]
    assert (acceptable["from"], acceptable["recall"], acceptable["precision"]) == (4, 1, 0.5)
    assert found["ratings"]["spearman"] == without["ratings"]["spearman"]
    assert json.loads(run_dir.evaluation.read_text()) == found
