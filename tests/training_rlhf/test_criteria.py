"""Ratings by several criteria: learnt apart by a head each, kept by their names, added up as the reward."""

import shutil
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("trl")
pytestmark = pytest.mark.training

import torch  # noqa: E402
from safetensors.torch import load_file  # noqa: E402

from tests.training_rlhf.conftest import pair_row, write_rows, write_run  # noqa: E402
from tests.training_rlhf.test_encoders import save_encoder  # noqa: E402
from training.rlhf import criteria, evaluation, loading, preflight, recipe, rendering, rewards, scoring  # noqa: E402
from training.rlhf.config import ConfigError, RunConfig  # noqa: E402
from training.rlhf.failures import Refused  # noqa: E402
from training.rlhf.rows.rated import joined  # noqa: E402
from training.rlhf.rows.single_rows import read_ratings  # noqa: E402
from training.rlhf.run_dir import ProgressWriter, RunDir, read_jsonl  # noqa: E402
from training.rlhf.sampling import Sampled  # noqa: E402

WEIGHTS = {"Kind": 1.0, "brief": -0.5}


def opposed(number: int) -> list[dict[str, Any]]:
    """A rater likes a name for its kindness, and finds the same text anything but brief."""
    pair = pair_row(number)
    named = number % 2 == 1
    shared = {"prompt": pair["prompt"], "completion": pair["chosen" if named else "rejected"], "rater": 1}
    return [
        {**shared, "criterion": "kind", "rating": 5 if named else 1},
        {**shared, "criterion": "brief", "rating": 1 if named else 5},
        {**shared, "criterion": "odd", "rating": 3},
    ]


def rated_run(folder: Path, model: Path, *, pairs: int = 0, **config: Any) -> RunDir:
    config.setdefault("reward_learning", {"criteria": WEIGHTS})
    config["training"] = {"epochs": 8.0, "learning_rate": 3e-3, **config.get("training", {})}
    run_dir = write_run(folder, model=model, method="reward_model", pairs=pairs, **config)
    for split, start, count in (("train", 0, 40), ("test", 1000, 24)):
        rows = [row for number in range(start, start + count) for row in opposed(number)]
        write_rows(run_dir.data / f"ratings.{split}.jsonl", rows)
    return run_dir


def trained(run_dir: RunDir) -> dict[str, Any]:
    config = RunConfig.load(run_dir.config)
    report = preflight.check(run_dir, config)
    assert report["ok"], report["errors"]
    recipe.train(run_dir, config, ProgressWriter(run_dir))
    return evaluation.evaluate_reward_model(run_dir, config, ProgressWriter(run_dir))


@pytest.mark.parametrize(("kind", "tuning"), [("llama", "full"), ("llama", "lora"), ("bert", "full")])
def test_two_criteria_that_disagree_are_learnt_apart(
    kind: str, tuning: str, tmp_path: Path, tiny_policy: Path
) -> None:
    model = tiny_policy if kind == "llama" else save_encoder(tmp_path / "encoder", kind)
    training = {"learning_rate": 1e-2} if tuning == "lora" else {}
    run_dir = rated_run(
        tmp_path / "run", model, tuning={"kind": tuning, "lora_rank": 4}, training=training
    )  # fmt: skip
    found = trained(run_dir)["criteria"]
    assert [found[name]["share"] for name in WEIGHTS] == [1.0, -0.5]
    for name in WEIGHTS:
        assert found[name]["spearman"] > 0.8, name
        assert found[name]["order"] is None  # one completion for each prompt
        assert found[name]["acceptable"]["f1"] > 0.9
    heads = load_file(run_dir.model / criteria.FILE)
    assert {name for name in heads if not name.endswith(".bias")} == set(WEIGHTS)

    # Anybody can load it, and what it says is the weighted sum of what its criteria say.
    plain, tokenizer = loading.load_reward_model(run_dir.model)
    talks = [[*row["prompt"], *row["chosen"]] for row in map(pair_row, range(3))]
    alone = scoring.reward_scores(plain, tokenizer, talks)
    known = criteria.load(run_dir.model)
    assert known is not None
    criteria.widen(plain, known)
    rows = [rendering.conversation_ids(tokenizer, talk) for talk in talks]
    every = scoring.columns_of_tokens(plain, rows, pad_id=int(tokenizer.pad_token_id))
    for total, (first, kindness, brief) in zip(alone, every, strict=True):
        assert total == pytest.approx(first, abs=1e-5)
        assert total == pytest.approx(kindness - 0.5 * brief, abs=2e-2)


def test_one_score_cannot_say_both_and_follows_the_heavier_one(tmp_path: Path, tiny_policy: Path) -> None:
    learning = {"criteria": {"kind": 3.0, "brief": 1.0}, "one_head_each": False}
    run_dir = rated_run(tmp_path / "run", tiny_policy, reward_learning=learning)
    trained(run_dir)
    assert not (run_dir.model / criteria.FILE).exists()
    model, tokenizer = loading.load_reward_model(run_dir.model)
    named, other = (
        scoring.reward_scores(
            model, tokenizer, [[*pair_row(n)["prompt"], *pair_row(n)[side]] for n in (1, 3)]
        )
        for side in ("chosen", "rejected")
    )
    assert min(named) > max(other)


def test_the_criteria_are_parts_of_the_reward_of_an_online_method(tmp_path: Path, tiny_policy: Path) -> None:
    run_dir = rated_run(tmp_path / "run", tiny_policy, training={"epochs": 1.0})
    trained(run_dir)
    given = {
        "name": "taste",
        "kind": "model",
        "location": str(run_dir.model),
        "options": {"min_accuracy": 0.0},
    }
    config = RunConfig.from_json({"method": "ppo", "model": str(tiny_policy), "rewards": [given]})
    loaded = rewards.load_rewards(config)
    assert loaded.beside == ["taste Kind", "taste brief"]
    samples = [Sampled(text="Hi", finish="eos", prompt_ids=(1, 5), ids=(80 + n, 81, 2)) for n in range(3)]
    found = loaded.score([[{"role": "user", "content": "Hi"}]] * 3, samples)
    parts = zip(found.parts["taste Kind"], found.parts["taste brief"], strict=True)
    assert found.total == pytest.approx([kind - 0.5 * brief for kind, brief in parts], abs=2e-2)


def test_comparisons_and_ratings_resume_to_the_same_weights(tmp_path: Path, tiny_policy: Path) -> None:
    """Also the heads and their cut points."""
    short = {"epochs": 1.0, "save_every": 4}
    whole = rated_run(tmp_path / "whole", tiny_policy, pairs=8, training=short)
    found = trained(whole)
    kept = list(read_jsonl(whole.path / "scores.jsonl"))  # what an ensemble is measured by
    assert [row["table"] for row in kept] == ["pairs"] + ["ratings"] * 24
    assert kept[0]["comparisons"] == [[0, 1, 1.0]] and len(kept[0]["scores"]) == 2
    assert found["scores"]["n"] == 26 and found["scores"]["std"] > 0
    halves = rated_run(tmp_path / "halves", tiny_policy, pairs=8, training=short)
    config = RunConfig.load(halves.config)
    recipe.train(halves, config, ProgressWriter(halves))
    checkpoints = sorted(halves.checkpoints.glob("checkpoint-*"), key=lambda one: int(one.name.split("-")[1]))
    for late in checkpoints[1:]:
        shutil.rmtree(late)
    recipe.train(halves, config, ProgressWriter(halves))
    for name_of in ("model.safetensors", criteria.FILE):
        one, other = load_file(whole.model / name_of), load_file(halves.model / name_of)
        assert all(torch.equal(one[name], other[name]) for name in one)
    assert (whole.model / "rating_heads.json").read_text() == (halves.model / "rating_heads.json").read_text()


def test_a_criterion_that_nobody_rated_is_refused_before_the_start(tmp_path: Path, tiny_policy: Path) -> None:
    run_dir = rated_run(tmp_path / "run", tiny_policy, reward_learning={"criteria": {"kind": 1, "safe": 1}})
    report = preflight.check(run_dir, RunConfig.load(run_dir.config))
    assert "Nobody rated by the criterion safe" in report["errors"][0]["what"]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"a": 0.0}, "not 0"),
        ({"a": "much"}, "a number"),
        ({" ": 1.0}, "a name"),
        ({"a": 1.0, "A ": 2.0}, "each criterion once"),
    ],
)
def test_weights_that_cannot_be_are_no_recipe(given: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        RunConfig.from_json({"method": "reward_model", "model": "m", "reward_learning": {"criteria": given}})
    negative = {"criteria": {"a": -1.0}, "one_head_each": False}
    with pytest.raises(ConfigError, match="above 0, where one score"):
        RunConfig.from_json({"method": "reward_model", "model": "m", "reward_learning": negative})


def test_only_the_criteria_that_count_are_read(tmp_path: Path) -> None:
    write_rows(tmp_path / "ratings.jsonl", opposed(1))
    rows = read_ratings(tmp_path / "ratings.jsonl")
    (one,) = joined(rows, wanted=["KIND", "brief"])
    assert (one.criteria, one.ratings) == (("kind", "brief"), (5.0, 1.0))
    assert joined(rows, wanted=["safe"]) == []


def test_damaged_heads_are_refused_with_words(tmp_path: Path) -> None:
    (tmp_path / criteria.FILE).write_bytes(b"nothing")
    with pytest.raises(Refused, match="heads of a reward model's criteria"):
        criteria.load(tmp_path)
    assert criteria.load(tmp_path / "elsewhere") is None
