"""What preflight finds before a run costs anything."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("trl")
pytestmark = pytest.mark.training

from tests.training_rlhf.conftest import (  # noqa: E402
    TEMPLATE,
    MakeRun,
    pair_row,
    ranking_row,
    run_child,
    write_rows,
)
from training.rlhf import loading, preflight  # noqa: E402
from training.rlhf.checks import estimate  # noqa: E402
from training.rlhf.config import RunConfig  # noqa: E402
from training.rlhf.run_dir import (  # noqa: E402
    EXIT_COMPLETE,
    EXIT_REFUSED,
    Preflight,
    RunDir,
)


def check(run_dir: RunDir) -> Preflight:
    return preflight.check(run_dir, RunConfig.load(run_dir.config))


def with_pairs(run_dir: RunDir, rows: list[dict[str, Any]], *, split: str = "train") -> RunDir:
    write_rows(run_dir.data / f"pairs.{split}.jsonl", rows)
    return run_dir


def test_a_run_that_can_start_is_described(make_run: MakeRun) -> None:
    report = check(make_run("reward_model", rankings=10))
    assert report["ok"], report["errors"]
    assert report["rows"]["pairs"]["train"]["kept"] == 40
    assert report["rows"]["rankings"] == {
        "train": {"kept": 10, "dropped": 0, "longest": 24, "ties": 0},
        "test": {"kept": 2, "dropped": 0, "longest": 27, "ties": 0},
    }
    assert report["template"]["sample"].startswith("<|bos|><|user|>Say hello, 0.<|end|><|assistant|>Hello")
    assert report["template"]["bos"] == 1
    assert report["template"]["eos_is_last"] is True
    assert len(report["template"]["hash"]) == 64
    guess = report["estimate"]
    assert guess["steps"] == 13  # 50 elements, 4 at once
    assert guess["parameters"] == 29_024 + 32  # and the head
    assert guess["seconds"] > 0
    assert guess["memory_bytes"] > 16 * guess["parameters"]
    assert guess["is_a_guess"] is True


def test_rows_that_are_too_long_are_counted_and_refused_when_they_are_many(make_run: MakeRun) -> None:
    long = [{"role": "assistant", "content": "x" * 100}]
    rows = [pair_row(number, **({"chosen": long} if number < 4 else {})) for number in range(40)]
    run_dir = with_pairs(make_run("dpo", training={"max_length": 64}), rows)
    report = check(run_dir)
    assert report["ok"]
    assert report["rows"]["pairs"]["train"] == {"kept": 36, "dropped": 4, "longest": 118, "ties": 0}
    assert "4 rows are longer than 64 tokens and will be left out." in report["warnings"]

    report = check(with_pairs(run_dir, [{**row, "chosen": long} for row in rows[:10]] + rows[10:]))
    assert not report["ok"]
    (error,) = report["errors"]
    assert "10 of 40 rows are longer than 64 tokens" in error["what"]
    assert error["where"] == "pairs.train"
    assert "max_length" in error["do"]


def test_rows_that_are_all_too_long_are_not_said_to_be_missing(make_run: MakeRun) -> None:
    report = check(make_run("dpo", training={"max_length": 8}))
    assert not report["ok"]
    assert all("longer than 8 tokens" in error["what"] for error in report["errors"])


def test_the_models_positions_limit_the_length(make_run: MakeRun) -> None:
    report = check(make_run("dpo", training={"max_length": 100_000}))
    assert any("256 positions" in warning for warning in report["warnings"])


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([], "no row to learn from"),
        ([pair_row(number, p=0.5) for number in range(8)], "ties"),
        ([pair_row(n, chosen=pair_row(n)["rejected"]) for n in range(8)], "same text"),
    ],
    ids=["empty", "all ties", "one text"],
)
@pytest.mark.parametrize("method", ["dpo", "reward_model"])
def test_a_dataset_that_teaches_nothing_is_refused(
    method: str, rows: list[dict[str, Any]], words: str, make_run: MakeRun
) -> None:
    report = check(with_pairs(make_run(method), rows))
    assert not report["ok"]
    assert words in report["errors"][0]["what"]


def test_rankings_that_are_all_ties_teach_nothing_either(make_run: MakeRun) -> None:
    run_dir = with_pairs(make_run("reward_model"), [])
    write_rows(run_dir.data / "rankings.train.jsonl", [ranking_row(n, [1, 1, 1]) for n in range(4)])
    assert "ties" in check(run_dir)["errors"][0]["what"]


def test_repeats_contradictions_and_leaks_are_counted(make_run: MakeRun) -> None:
    run_dir = make_run("dpo")
    rows = [pair_row(number) for number in range(20)]
    turned = {**rows[0], "chosen": rows[0]["rejected"], "rejected": rows[0]["chosen"]}
    with_pairs(run_dir, [*rows, rows[1], rows[1], turned])
    with_pairs(run_dir, [pair_row(3), pair_row(4), pair_row(2000)], split="test")
    warnings = " ".join(check(run_dir)["warnings"])
    assert "2 comparisons say again" in warnings
    assert "1 pairs of completions were judged one way and the other way" in warnings
    assert "2 prompts are on both sides of the split" in warnings


def test_a_damaged_row_is_an_error_and_not_a_crash(make_run: MakeRun) -> None:
    run_dir = with_pairs(make_run("dpo"), [pair_row(0), {"prompt": 1}])
    (error,) = check(run_dir)["errors"]
    assert error["where"] == "pairs.train.jsonl, line 2"


def test_a_tokenizer_with_more_tokens_than_the_model_has_embeddings_is_refused(
    make_run: MakeRun, tiny_policy: Path, tmp_path: Path
) -> None:
    policy = tmp_path / "short"
    policy.mkdir()
    for path in tiny_policy.iterdir():
        (policy / path.name).write_bytes(path.read_bytes())
    config = json.loads((policy / "config.json").read_text())
    (policy / "config.json").write_text(json.dumps(config | {"vocab_size": 100}))
    (error,) = check(make_run("dpo", model=policy))["errors"]
    assert "100 embeddings" in error["what"]
    assert error["where"] == str(policy)


def test_a_model_with_pickled_weights_is_refused(
    make_run: MakeRun, tiny_policy: Path, tmp_path: Path
) -> None:
    policy = tmp_path / "pickled"
    policy.mkdir()
    (policy / "config.json").write_bytes((tiny_policy / "config.json").read_bytes())
    (policy / "pytorch_model.bin").write_bytes(b"\x80")
    (error,) = check(make_run("dpo", model=policy))["errors"]
    assert "pickled" in error["what"]


def changed_policy(tiny_policy: Path, folder: Path, *, template: str = "", torn: bool = False) -> Path:
    shutil.copytree(tiny_policy, folder)
    if template:
        tokenizer = loading.load_tokenizer(str(folder))
        tokenizer.chat_template = template
        tokenizer.save_pretrained(folder)
    if torn:
        os.truncate(folder / "model.safetensors", 5000)
    return folder


def user(text: str) -> dict[str, Any]:
    return {"prompt": [{"role": "user", "content": text}]}


NO_BANG = "{% if messages[0]['content'] == '!' %}{{ raise_exception('no bangs') }}{% endif %}"


def test_held_out_prompts_are_counted_as_the_evaluation_will_use_them(
    make_run: MakeRun, tiny_policy: Path, tmp_path: Path
) -> None:
    policy = changed_policy(tiny_policy, tmp_path / "policy", template=NO_BANG + TEMPLATE)
    run_dir = make_run("dpo", model=policy, training={"max_length": 64})
    write_rows(run_dir.data / "prompts.test.jsonl", [user("a" * 10), user("!"), user("b" * 70), user("c")])
    report = check(run_dir)
    assert report["ok"], report["errors"]
    assert report["rows"]["prompts"]["test"] == {"kept": 2, "dropped": 2, "longest": 74, "ties": 0}
    assert "1 held-out prompts are longer than 64 tokens" in " ".join(report["warnings"])
    assert "1 held-out prompts are refused by the chat template" in " ".join(report["warnings"])


def test_a_completion_must_have_room_after_a_held_out_prompt(make_run: MakeRun) -> None:
    """256 positions; 200 of them for what is written."""
    run_dir = make_run("dpo", sampling={"max_new_tokens": 200})
    write_rows(run_dir.data / "prompts.test.jsonl", [user("a" * 60)])
    (error,) = check(run_dir)["errors"]
    assert "None of the 1 held-out prompts" in error["what"]
    assert error["where"] == "prompts.test.jsonl"
    assert "max_new_tokens (200)" in error["do"]
    write_rows(run_dir.data / "prompts.test.jsonl", [user("a" * 60), user("a" * 30)])
    assert check(run_dir)["ok"]


def test_a_run_without_held_out_prompts_may_start(make_run: MakeRun) -> None:
    run_dir = make_run("dpo")
    (run_dir.data / "prompts.test.jsonl").unlink()
    assert check(run_dir)["ok"]


def test_held_out_prompts_that_were_trained_on_are_counted_as_leaks(make_run: MakeRun) -> None:
    run_dir = make_run("dpo")
    prompts = [{"prompt": pair_row(number)["prompt"]} for number in (0, 1, 5000)]
    write_rows(run_dir.data / "prompts.test.jsonl", prompts)
    assert "2 prompts are on both sides of the split" in " ".join(check(run_dir)["warnings"])


def test_weights_that_are_cut_short_are_refused_before_they_are_read(
    make_run: MakeRun, tiny_policy: Path, tmp_path: Path
) -> None:
    torn = changed_policy(tiny_policy, tmp_path / "torn", torn=True)
    for run_dir in (
        make_run("dpo", model=torn),
        make_run("reward_model", model=torn),
        make_run("dpo", reward_model=str(torn)),
    ):
        (error,) = check(run_dir)["errors"]
        assert error["where"] == str(torn)
        assert "weights cannot be read" in error["what"]


def test_a_policy_that_would_never_learn_to_stop_is_refused_a_reward_model_warned(
    make_run: MakeRun, tiny_policy: Path, tmp_path: Path
) -> None:
    endless = "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}{% endfor %}"
    policy = changed_policy(tiny_policy, tmp_path / "endless", template=endless)
    report = check(make_run("dpo", model=policy))
    (error,) = report["errors"]
    assert "never stop" in error["what"] and "EOS" in error["do"]
    assert error["what"] not in report["warnings"]
    report = check(make_run("reward_model", model=policy))
    assert report["ok"]
    assert error["what"] in report["warnings"]


def test_whatever_goes_wrong_is_an_error_of_the_report(
    make_run: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise ZeroDivisionError("nobody thought of this")

    monkeypatch.setattr(estimate, "of", broken)
    (error,) = check(make_run("dpo"))["errors"]
    assert "nobody thought of this" in error["what"]
    assert error.keys() == {"what", "where", "do"}


def sampling_run(make_run: MakeRun, policy: Path, prompts: list[str]) -> RunDir:
    run_dir = make_run("sample", policies={"7": str(policy)}, sampling={"max_new_tokens": 200})
    write_rows(run_dir.data / "requests.jsonl", [user(text) | {"policies": ["7"]} for text in prompts])
    return run_dir


def test_a_sampling_run_is_checked_against_what_it_is_asked_for(
    make_run: MakeRun, tiny_policy: Path, tmp_path: Path
) -> None:
    policy = changed_policy(tiny_policy, tmp_path / "policy", template=NO_BANG + TEMPLATE)
    report = check(sampling_run(make_run, policy, ["a", "b" * 100]))
    assert report["ok"]
    assert "only the end of 1 prompts" in report["warnings"][0]
    (error,) = check(sampling_run(make_run, policy, ["a", "!"]))["errors"]
    assert "no bangs" in error["what"]
    torn = changed_policy(tiny_policy, tmp_path / "torn", torn=True)
    (error,) = check(sampling_run(make_run, torn, ["a"]))["errors"]
    assert error["where"] == str(torn)


def test_the_child_writes_what_it_found_and_says_whether_to_go_on(make_run: MakeRun) -> None:
    run_dir = make_run("reward_model", pairs=8)
    assert run_child(run_dir, "--preflight").returncode == EXIT_COMPLETE
    report = json.loads(run_dir.preflight.read_text())
    assert report["ok"] is True
    assert report.keys() == Preflight.__annotations__.keys()
    assert not run_dir.progress.exists()

    with_pairs(run_dir, [])
    assert run_child(run_dir, "--preflight").returncode == EXIT_REFUSED
    report = json.loads(run_dir.preflight.read_text())
    assert report["ok"] is False
    assert json.loads(run_dir.error.read_text()) == report["errors"][0]
