"""AI preferences: a real server judges pairs; what it says is counted, and what it wants is learnt."""

import doctest
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("trl")
pytestmark = pytest.mark.training

from tests.training_rlhf.conftest import MakeRun, run_child, write_rows  # noqa: E402
from tests.training_rlhf.constitutional import (  # noqa: E402
    PRINCIPLES,
    make_constitutional,
    prefers,
    two_texts,
    write_constitution,
)
from tests.training_rlhf.test_judge import Server, server  # noqa: E402
from training.rlhf import ai_preferences, loading, preflight, progress, recipe, sampling  # noqa: E402
from training.rlhf.config import ConfigError, RunConfig, Sampling  # noqa: E402
from training.rlhf.constitutional import made_data  # noqa: E402
from training.rlhf.progress import Cancelled  # noqa: E402
from training.rlhf.run_dir import ProgressWriter, RunDir, read_jsonl  # noqa: E402

__all__ = ["server"]  # a fixture


def make(run_dir: RunDir) -> dict[str, Any]:
    result = ai_preferences.make(run_dir, RunConfig.load(run_dir.config), ProgressWriter(run_dir))
    made: dict[str, Any] = result["evaluation"]["made"]
    return made


def rows_of(run_dir: RunDir) -> list[Any]:
    return list(read_jsonl(run_dir.path / ai_preferences.FILE))


def judged_by(make_run: MakeRun, server: Server, **config: Any) -> RunDir:
    own = {"judge": server.address, "retries": 1} | config.pop("ai_preferences", {})
    return make_constitutional(make_run, "ai_preferences", ai_preferences=own, **config)


def test_the_examples_in_the_docstrings_hold() -> None:
    tested = doctest.testmod(ai_preferences)
    assert tested.attempted > 2
    assert not tested.failed


def test_each_pair_is_judged_in_both_orders_by_a_principle_of_the_constitution(
    make_run: MakeRun, server: Server
) -> None:
    server.answer = prefers("e")
    run_dir = judged_by(make_run, server)
    made = make(run_dir)
    rows = rows_of(run_dir)
    assert len(rows) == 9
    for row in rows:
        found = [text["text"].count("e") for text in row["completions"]]
        wanted = 0.5 if found[0] == found[1] else float(found[0] > found[1])
        assert row["p"] == wanted
        assert row["outcome"] == ("tie" if wanted == 0.5 else "preferred")
    assert len(server.asked) == 18
    asked = [str(body["messages"][0]["content"]) for body in server.asked]
    assert all(any(one["comparison"] in text for one in PRINCIPLES) for text in asked)
    assert made["verdicts"]["nonsense"] == made["verdicts"]["inconsistent"] == 0
    assert made["outcomes"]["preferred"] + made["outcomes"]["tie"] == 9


def test_nonsense_and_choices_of_a_place_are_counted_apart_and_are_no_preference(
    make_run: MakeRun, server: Server
) -> None:
    def answer(body: dict[str, Any]) -> str:
        asked = str(body["messages"][0]["content"])
        return "I like both!" if "kind?" in asked else "A" if "brief?" in asked else prefers("e")(body)

    server.answer = answer
    run_dir = judged_by(make_run, server, prompts=30)
    made = make(run_dir)
    by = made["principles"]
    assert by["1"]["nonsense"] == sum(by["1"].values()) > 0
    assert by["2"]["inconsistent"] == sum(by["2"].values()) > 0
    assert made["outcomes"]["undecided"] == made["verdicts"]["nonsense"] + made["verdicts"]["inconsistent"]
    assert all((row["p"] is None) == (row["outcome"] == "undecided") for row in rows_of(run_dir))


def test_several_principles_vote_and_their_mean_is_the_probability(make_run: MakeRun, server: Server) -> None:
    def answer(body: dict[str, Any]) -> str:
        asked = str(body["messages"][0]["content"])
        longer = len(two_texts(body)[0]) > len(two_texts(body)[1])
        chosen = longer if "brief?" not in asked else not longer
        return "A" if chosen else "B"

    server.answer = answer
    run_dir = judged_by(make_run, server, ai_preferences={"principles": 3})
    make(run_dir)
    told = [row for row in rows_of(run_dir) if len({len(one["text"]) for one in row["completions"]}) == 2]
    assert told
    for row in told:
        first_is_longer = len(row["completions"][0]["text"]) > len(row["completions"][1]["text"])
        assert row["p"] == pytest.approx(2 / 3 if first_is_longer else 1 / 3)
        assert [one["verdict"] for one in row["said"]].count("nonsense") == 0


def test_a_run_that_was_stopped_leaves_the_same_bytes_as_one_that_was_not(
    make_run: MakeRun, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.answer = prefers("e")
    monkeypatch.setattr(made_data, "AT_ONCE", 2)
    whole = judged_by(make_run, server)
    make(whole)
    run_dir = judged_by(make_run, server)
    generate, calls = sampling.generate, []

    def stopping(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if len(calls) == 3:
            monkeypatch.setattr(progress._Stop, "requested", True)
        return generate(*args, **kwargs)

    with monkeypatch.context() as patched:
        patched.setattr(sampling, "generate", stopping)
        with pytest.raises(Cancelled):
            make(run_dir)
    assert not (run_dir.path / ai_preferences.FILE).exists()
    monkeypatch.setattr(progress._Stop, "requested", False)
    asked = len(server.asked)
    make(run_dir)
    assert len(server.asked) - asked == 10  # two pairs were judged before
    path = ai_preferences.FILE
    assert (run_dir.path / path).read_bytes() == (whole.path / path).read_bytes()


@pytest.mark.parametrize("judge", ["", "another"])
def test_a_policy_judges_too_and_what_it_says_is_only_text(
    judge: str, make_run: MakeRun, tiny_policy: Path
) -> None:
    own = {"judge": str(tiny_policy.parent / tiny_policy.name) + "/" if judge else "", "max_tokens": 4}
    run_dir = make_constitutional(make_run, "ai_preferences", prompts=3, ai_preferences=own)
    made = make(run_dir)
    assert made["verdicts"]["nonsense"] == made["outcomes"]["undecided"] == 5  # a random policy says no A
    assert all(row["p"] is None and row["said"][0]["verdict"] == "nonsense" for row in rows_of(run_dir))


def test_a_judge_that_does_not_answer_is_refused_before_the_start(make_run: MakeRun, server: Server) -> None:
    server.answer = lambda body: (500, "on fire")
    run_dir = judged_by(make_run, server)
    report = preflight.check(run_dir, RunConfig.load(run_dir.config))
    assert not report["ok"]
    assert "HTTP 500 on fire" in report["errors"][0]["what"]
    server.answer = prefers("e")
    report = preflight.check(run_dir, RunConfig.load(run_dir.config))
    assert report["ok"] and not any("the judge said" in one for one in report["warnings"])
    server.answer = lambda body: "Gladly: A!"
    report = preflight.check(run_dir, RunConfig.load(run_dir.config))
    assert report["ok"]
    assert any("the judge said “Gladly: A!”" in one for one in report["warnings"])


@pytest.mark.parametrize(
    ("chosen", "words"),
    [
        ({"sampling": {"temperature": 0}}, "two completions are to differ"),
        ({"ai_preferences": {"judge": "http://key@host/v1"}}, "a key does not belong"),
        ({"ai_preferences": {"principles": 0}}, "principles is 0"),
    ],
)
def test_a_recipe_that_cannot_work_is_refused(chosen: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        RunConfig.from_json({"method": "ai_preferences", "model": "m", **chosen})


def test_dpo_on_ai_preferences_moves_towards_what_the_judge_prefers(
    make_run: MakeRun, server: Server
) -> None:
    """A policy that says one of two things, a judge that likes one of them, and what DPO makes of that."""
    server.answer = prefers("kind")
    policy = says_two_things(make_run)
    run_dir = judged_by(make_run, server, model=policy, prompts=120, sampling={"max_new_tokens": 12})
    write_constitution(run_dir, [PRINCIPLES[0]])
    done = run_child(run_dir)
    assert done.returncode == 0, done.stdout
    pairs = [pair for row in rows_of(run_dir) if row["split"] == "train" and (pair := as_pair(row))]
    assert len(pairs) > 15
    learns = make_run("dpo", model=policy, dpo={"sft_weight": 1.0}, training=FAST | {"epochs": 10})
    write_rows(learns.data / "pairs.train.jsonl", pairs)
    recipe.train(learns, RunConfig.load(learns.config), ProgressWriter(learns))
    before, after = (kindness_of(folder) for folder in (policy, str(learns.model)))
    assert 0.25 < before < 0.75
    assert after > before + 0.2, f"{before:.2f} to {after:.2f}"


FAST = {"learning_rate": 3e-3, "batch_size": 8, "bf16": False, "max_length": 128, "warmup_ratio": 0.0}


def says_two_things(make_run: MakeRun) -> str:
    """The tiny policy after SFT on as many kind answers as rude ones; its folder."""
    run_dir = make_run("sft", training=FAST | {"epochs": 20})
    rows = [
        {
            "prompt": [{"role": "user", "content": f"Say {number}."}],
            "completion": [{"role": "assistant", "content": ("kind", "rude")[number % 2]}],
        }
        for number in range(3000, 3080)
    ]
    write_rows(run_dir.data / "demonstrations.train.jsonl", rows)
    write_rows(run_dir.data / "pairs.train.jsonl", [])
    recipe.train(run_dir, RunConfig.load(run_dir.config), ProgressWriter(run_dir))
    return str(run_dir.model)


def as_pair(row: Any) -> dict[str, Any] | None:
    one, other = ([{"role": "assistant", "content": text["text"]}] for text in row["completions"])
    if row["outcome"] != "preferred":
        return None
    chosen, rejected = (one, other) if row["p"] > 0.5 else (other, one)
    return {"prompt": row["prompt"], "chosen": chosen, "rejected": rejected}


def kindness_of(folder: str) -> float:
    """How often a policy says "kind"."""
    model, tokenizer = loading.load_policy(folder), loading.load_tokenizer(folder)
    prompts = [[{"role": "user", "content": f"Say {number}."}] for number in range(2000, 2100)]
    drawn = sampling.generate(model, tokenizer, prompts, sampling=Sampling(max_new_tokens=12), seed=1)
    return sum("kind" in one.text for one in drawn) / len(drawn)
