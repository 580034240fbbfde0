"""Rejection sampling: what is drawn, what of it is kept, and that nothing is drawn twice."""

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("trl")
pytestmark = pytest.mark.training

from tests.training_rlhf.conftest import MakeRun, write_rows  # noqa: E402
from training.rlhf import loading, online_prompts, progress, rejection_sampling, sampling  # noqa: E402
from training.rlhf.config import RunConfig  # noqa: E402
from training.rlhf.failures import Refused  # noqa: E402
from training.rlhf.model_files import causal_config  # noqa: E402
from training.rlhf.progress import Cancelled  # noqa: E402
from training.rlhf.rejection_sampling import DrawnRow, best, draw, figures  # noqa: E402
from training.rlhf.rows.single_rows import read_prompts  # noqa: E402
from training.rlhf.run_dir import ProgressWriter, RunDir, read_jsonl  # noqa: E402

VOWELS = {"name": "vowels", "kind": "regex", "options": {"pattern": "[aeiou]", "mode": "count"}}


def drawn(*completions: tuple[str, str, float]) -> DrawnRow:
    return {
        "line": 4,
        "prompt": [{"role": "user", "content": "Hello?"}],
        "completions": [
            {"text": text, "finish": finish, "tokens": len(text), "reward": reward, "parts": {}}
            for text, finish, reward in completions
        ],
    }


@pytest.fixture
def run(make_run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> RunDir:
    """Seven prompts, two at a time, each with four completions."""
    monkeypatch.setattr(rejection_sampling, "_AT_ONCE", 8)
    run_dir = make_run(
        "rejection_sampling",
        rewards=[VOWELS],
        rejection_sampling={"completions_per_prompt": 4},
        sampling={"max_new_tokens": 6},
    )
    rows = [{"prompt": [{"role": "user", "content": f"Say {number}."}]} for number in range(7)]
    write_rows(run_dir.data / "prompts.train.jsonl", rows)
    return run_dir


def draw_in(run_dir: RunDir) -> list[DrawnRow]:
    prompts = read_prompts(run_dir.data / "prompts.train.jsonl")
    return draw(run_dir, RunConfig.load(run_dir.config), prompts, ProgressWriter(run_dir))


def test_the_best_that_ended_is_imitated_however_good_a_cut_one_was() -> None:
    row = drawn(("cut", "length", 9.0), ("good", "eos", 2.0), ("as good", "eos", 2.0), ("bad", "eos", -1.0))
    found = best(row)
    assert found is not None
    assert found.completion == [{"role": "assistant", "content": "good"}]
    assert (found.prompt, found.line) == (row["prompt"], 4)
    assert best(drawn(("cut", "length", 9.0), ("too", "length", 1.0))) is None


def test_figures_are_those_of_all_that_was_drawn() -> None:
    rows = [
        drawn(("ab", "eos", 1.0), ("abcd", "length", 3.0)),
        drawn(("", "length", 0.0), ("x", "length", 0.0)),
    ]
    assert figures(rows) == {
        "reward": 1.0, "eos_rate": 0.25, "completions/mean_length": 1.75, "reward_best": 1.0
    }  # fmt: skip
    assert "reward_best" not in figures(rows[1:])


def test_every_prompt_is_written_to_as_often_as_asked_and_scored(run: RunDir) -> None:
    rows = draw_in(run)
    assert [row["line"] for row in rows] == list(range(1, 8))
    assert all(len(row["completions"]) == 4 for row in rows)
    every = [one for row in rows for one in row["completions"]]
    assert len({one["text"] for one in every}) > 20  # they differ
    assert all(one["reward"] == one["parts"]["vowels"] for one in every)
    assert all(one["reward"] == sum(map("aeiou".count, one["text"])) for one in every)
    assert rows == list(read_jsonl(run.path / rejection_sampling.FILE))
    told = [line["values"] for line in read_jsonl(run.progress) if line["values"]]
    assert [set(values) >= {"reward", "eos_rate"} for values in told] == [True] * 4


def test_what_is_drawn_is_not_drawn_again(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = draw_in(run)
    monkeypatch.setattr(loading, "load_policy", lambda *args, **kwargs: pytest.fail("it draws again"))
    assert draw_in(run) == rows


def test_a_run_that_was_stopped_goes_on_drawing_where_it_stood(
    run: RunDir, make_run: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    generate = sampling.generate
    seeds: list[int] = []

    def generate_twice(*args: Any, **kwargs: Any) -> Any:
        seeds.append(kwargs["seed"])
        if len(seeds) == 3:
            monkeypatch.setattr(progress._Stop, "requested", True)
        return generate(*args, **kwargs)

    with monkeypatch.context() as patched:
        patched.setattr(sampling, "generate", generate_twice)
        with pytest.raises(Cancelled):
            draw_in(run)
    draft = run.path / f".{rejection_sampling.FILE}"
    assert not (run.path / rejection_sampling.FILE).exists()
    assert len(draft.read_text().splitlines()) == 4
    with open(draft, "a") as file:
        file.write(json.dumps(drawn(("half a chunk", "eos", 1.0))) + '\n{"line": 6, "pro')  # it died here
    monkeypatch.setattr(progress._Stop, "requested", False)

    resumed: list[int] = []

    def noting(*args: Any, **kwargs: Any) -> Any:
        resumed.append(kwargs["seed"])
        return generate(*args, **kwargs)

    monkeypatch.setattr(sampling, "generate", noting)
    parts = draw_in(run)
    assert len(resumed) == 2
    assert resumed[0] == seeds[2]
    (run.path / rejection_sampling.FILE).unlink()
    assert draw_in(run) == parts


def test_prompts_without_room_for_an_answer_are_left_out_and_counted(run: RunDir, tiny_policy: Path) -> None:
    long = {"prompt": [{"role": "user", "content": "x" * 250}]}  # of 256 positions, six are for the answer
    with open(run.data / "prompts.train.jsonl", "a") as file:
        file.write(json.dumps(long) + "\n")
    config, tokenizer = RunConfig.load(run.config), loading.load_tokenizer(str(tiny_policy))
    reads = causal_config(str(tiny_policy))
    found, rows = online_prompts.usable(run, config, tokenizer, reads)
    assert (len(found), rows["train"]) == (7, {"kept": 7, "dropped": 1})
    write_rows(run.data / "prompts.train.jsonl", [long])
    with pytest.raises(Refused, match="1 are longer than 250 tokens"):
        online_prompts.usable(run, config, tokenizer, reads)


def test_learning_the_best_makes_the_next_completions_better(run: RunDir, make_run: MakeRun) -> None:
    settings = {"learning_rate": 5e-3, "epochs": 8, "batch_size": 4, "schedule": "constant", "bf16": False}
    run_dir = make_run(
        "rejection_sampling",
        rewards=[VOWELS],
        rejection_sampling={"completions_per_prompt": 128},
        sampling={"max_new_tokens": 40},
        training=settings,
    )
    (run.data / "prompts.train.jsonl").rename(run_dir.data / "prompts.train.jsonl")
    config = RunConfig.load(run_dir.config)
    result = rejection_sampling.train(run_dir, config, ProgressWriter(run_dir))
    rows: list[DrawnRow] = list(read_jsonl(run_dir.path / rejection_sampling.FILE))
    kept = sum(best(row) is not None for row in rows)
    assert kept == 7
    assert result["rows"]["train"] == {"kept": kept, "dropped": 7 - kept}
    assert sum(result["rows"]["test"].values()) == 2
    assert result["steps"] == -(-kept // 4) * 8
    assert result["lineage"]["parent"] == config.model
    told = list(read_jsonl(run_dir.progress))
    assert [line["step"] for line in told if "reward_best" in line["values"]] == [*range(1, 8), 7]
    losses = [(line["step"], line["values"]["loss"]) for line in told if "loss" in line["values"]]
    assert [step for step, _ in losses] == list(range(1, result["steps"] + 1))
    held_out = [(line["step"], line["values"]["eval_loss"]) for line in told if "eval_loss" in line["values"]]
    assert len(held_out) >= 9  # before the first step, after each of 8 epochs
    assert held_out[0][0] == 0
    assert held_out[-1][1] < held_out[0][1]
    assert result["held_out"]["eval_loss"] == pytest.approx(held_out[-1][1])
    before = figures(rows)["eos_rate"]
    tokenizer, model = loading.load_tokenizer(str(run_dir.model)), loading.load_policy(str(run_dir.model))
    asked = [row["prompt"] for row in rows] * 16
    again = sampling.generate(model, tokenizer, asked, sampling=config.sampling, seed=9)
    vowels = sum(sum(map("aeiou".count, one.text)) / one.tokens for one in again) / len(again)
    drawn_before = [one for row in rows for one in row["completions"]]
    vowels_before = sum(one["reward"] / one["tokens"] for one in drawn_before) / len(drawn_before)
    assert vowels > vowels_before
    assert sum(one.finish == "eos" for one in again) / len(again) > before  # only what ended was imitated
