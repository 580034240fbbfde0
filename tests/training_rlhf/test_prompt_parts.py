"""A policy's system prompt and examples: read the same wherever it writes or learns, and not rewarded."""

import doctest
import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

from tests.training_rlhf.conftest import MakeRun, write_rows
from training.rlhf import (
    distillation,
    learners,
    loading,
    online_prompts,
    preflight,
    prompt_parts,
    rendering,
    rewards,
    sampling,
)
from training.rlhf.config import RunConfig
from training.rlhf.failures import Refused
from training.rlhf.method_settings import ConfigError
from training.rlhf.model_files import causal_config
from training.rlhf.prompt_parts import PromptParts, as_read, under, without
from training.rlhf.rows import held_out
from training.rlhf.run_dir import ProgressWriter, RunDir, read_jsonl

PARTS: dict[str, Any] = {
    "system_prompt": "Be brief.",
    "examples": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hey"}],
}
SAID = PromptParts.from_json(PARTS)
PROMPT = [{"role": "user", "content": "Say hello."}]


def config_of(run_dir: RunDir) -> RunConfig:
    return RunConfig.load(run_dir.config)


def test_the_examples_in_the_docstrings_hold() -> None:
    assert doctest.testmod(prompt_parts).failed == 0


@pytest.mark.parametrize(
    "prompt",
    [
        PROMPT,
        [{"role": "system", "content": "Rhyme."}, *PROMPT],
        [*PROMPT, {"role": "assistant", "content": "Hello."}, *PROMPT],
    ],
)
@pytest.mark.parametrize(
    "parts", [PARTS, {"system_prompt": "Be brief."}, {"examples": PARTS["examples"]}, {}]
)
def test_what_stands_before_a_prompt_can_be_taken_away_again(parts: Any, prompt: Any) -> None:
    said = PromptParts.from_json(parts)
    read = as_read(said, prompt)
    assert without(said, read) == prompt
    assert read[-len(PROMPT) :] == PROMPT
    assert sum(turn["role"] == "system" for turn in read) <= 1


def test_other_words_are_another_version_and_none_have_none() -> None:
    assert len(SAID.version) == 12 and not PromptParts().version
    assert SAID.version == PromptParts.from_json(json.loads(json.dumps(SAID.to_json()))).version
    assert SAID.version != PromptParts.from_json(PARTS | {"system_prompt": "Be brief!"}).version


@pytest.mark.parametrize(
    "parts",
    [
        {"examples": [{"role": "user", "content": "Hi"}]},
        {"examples": [{"role": "assistant", "content": "Hi"}, {"role": "user", "content": "Hi"}]},
        {"examples": [{"role": "user", "content": " "}, {"role": "assistant", "content": "x"}]},
        {"examples": "Hi"},
        {"system_prompt": 3},
        {"prompt": "x"},
    ],
)
def test_what_are_no_parts_is_refused(parts: Any) -> None:
    with pytest.raises(ConfigError, match="prompt_parts"):
        PromptParts.from_json(parts)


@pytest.mark.parametrize("method", ["pretraining", "reward_model", "distillation"])
def test_a_method_that_would_not_read_them_refuses_them(method: str) -> None:
    recipe = {"method": method, "model": "x/y", "prompt_parts": {"model": PARTS}}
    with pytest.raises(ConfigError, match="no policy of this name"):
        RunConfig.from_json(recipe | {"distillation": {"system_prompt": "Be brief."}})


def test_training_and_evaluation_read_rows_under_them(make_run: MakeRun, tiny_policy: Path) -> None:
    run_dir = make_run("dpo", pairs=4, prompt_parts={"model": PARTS})
    config = config_of(run_dir)
    (rows,) = learners.tables(run_dir, config, "train").values()
    plain = learners.tables(run_dir, config_of(make_run("dpo", pairs=4)), "train")["pairs"]
    assert [row.prompt for row in rows] == [as_read(SAID, row.prompt) for row in plain]
    tokenizer = loading.load_tokenizer(str(tiny_policy))
    found = held_out.read(run_dir, config, tokenizer, causal_config(str(tiny_policy)))
    assert [one.messages for one in found.prompts] == [as_read(SAID, one.asked) for one in found.prompts]
    short = {"name": "short", "kind": "length", "options": {"target": 4}}
    run_dir = make_run("rloo", prompt_parts={"model": PARTS}, rewards=[short])
    write_rows(run_dir.data / "prompts.train.jsonl", [{"prompt": PROMPT}])
    config = config_of(run_dir)
    usable, _ = online_prompts.usable(run_dir, config, tokenizer, causal_config(str(tiny_policy)))
    assert [row.prompt for row in usable] == [as_read(SAID, PROMPT)]


def test_a_policy_trained_under_them_says_so(make_run: MakeRun) -> None:
    from training.rlhf import recipe

    run_dir = make_run("sft", pairs=4, prompt_parts={"model": PARTS}, training={"max_steps": 1})
    result = recipe.train(run_dir, config_of(run_dir), ProgressWriter(run_dir))
    assert result["lineage"]["prompt_version"] == SAID.version
    assert prompt_parts.beside(run_dir.model) == SAID


def test_what_is_rewarded_is_the_prompt_alone(make_run: MakeRun, tiny_policy: Path) -> None:
    length = {"name": "length", "kind": "length", "options": {"target": 4}}
    run_dir = make_run("rejection_sampling", prompt_parts={"model": PARTS}, rewards=[length])
    named = rewards.load_rewards(config_of(run_dir))
    heard: list[Any] = []

    def hear(prompts: Any, samples: Any) -> list[float]:
        heard.extend(zip(prompts, samples, strict=True))
        return [0.0] * len(samples)

    named.parts["length"] = hear
    tokenizer = loading.load_tokenizer(str(tiny_policy))
    read = as_read(SAID, PROMPT)
    sample = sampling.Sampled(
        text="x", finish="eos", prompt_ids=tuple(rendering.prompt_ids(tokenizer, read)), ids=(7, 2)
    )
    named.score([read], [sample])
    ((prompt, scored),) = heard
    assert prompt == PROMPT
    assert list(scored.prompt_ids) == rendering.prompt_ids(tokenizer, PROMPT)


def test_a_teacher_reads_its_own_parts_and_the_recipes_prompt() -> None:
    config = RunConfig.from_json(
        {
            "method": "distillation",
            "model": "x/y",
            "distillation": {"system_prompt": "Rhyme."},
            "prompt_parts": {"teacher": PARTS},
        }
    )
    read = distillation.prefixed(config, PROMPT)
    assert [turn["content"] for turn in read] == ["Be brief.\n\nRhyme.", "Hi", "Hey", "Say hello."]


def test_a_prompt_is_distilled_into_weights_that_do_without(make_run: MakeRun) -> None:
    from training.rlhf import recipe

    run_dir = make_run("distillation", prompt_parts={"teacher": PARTS}, training={"max_steps": 1})
    write_rows(run_dir.data / "prompts.train.jsonl", [{"prompt": PROMPT}] * 4)
    config = config_of(run_dir)
    assert preflight.check(run_dir, config)["ok"]
    result = recipe.train(run_dir, config, ProgressWriter(run_dir))
    assert result["lineage"]["prompt_version"] == ""
    assert not prompt_parts.beside(run_dir.model)
    long = {"teacher": {"system_prompt": "Be brief. " * 30}}
    refused = make_run("distillation", prompt_parts=long)
    write_rows(refused.data / "prompts.train.jsonl", [{"prompt": PROMPT}] * 4)
    (error,) = preflight.check(refused, config_of(refused))["errors"]
    assert "4 of 4 prompts leave no room" in error["what"]


def sampling_run(folder: Path, policy: Path, **config: Any) -> RunDir:
    run_dir = RunDir(folder)
    requests = [{"prompt": PROMPT, "policies": ["plain", "prompted"]} for _ in range(3)]
    write_rows(run_dir.data / "requests.jsonl", requests)
    recipe = {
        "method": "sample",
        "policies": {"plain": str(policy), "prompted": str(policy)},
        "prompt_parts": {"prompted": PARTS},
        "sampling": {"max_new_tokens": 8},
    }
    run_dir.config.write_text(json.dumps(recipe | config), encoding="utf-8")
    return run_dir


def test_a_sampling_run_writes_under_them(tmp_path: Path, tiny_policy: Path) -> None:
    run_dir = sampling_run(tmp_path, tiny_policy)
    sampling.run(run_dir, config_of(run_dir), ProgressWriter(run_dir))
    written = [line["text"] for line in read_jsonl(run_dir.completions) if line["policy"] == "prompted"]
    tokenizer = loading.load_tokenizer(str(tiny_policy))
    model = loading.load_policy(str(tiny_policy))
    loading.fit(model, tokenizer, where="")
    drawn = sampling.generate(
        model,
        tokenizer,
        [as_read(SAID, PROMPT)] * 3,
        sampling=config_of(run_dir).sampling,
        seed=sampling.policy_seed(0, 1),
    )
    assert written == [one.text for one in drawn]


def test_parts_that_would_be_cut_are_refused_before_anything_is_drawn(
    tmp_path: Path, tiny_policy: Path
) -> None:
    long = {"prompted": {"system_prompt": "Be brief. " * 30}}
    run_dir = sampling_run(tmp_path, tiny_policy, prompt_parts=long)
    report = preflight.check(run_dir, config_of(run_dir))
    assert not report["ok"]
    assert "the model has 256 positions" in report["errors"][0]["what"]
    with pytest.raises(Refused, match="256 positions"):
        sampling.run(run_dir, config_of(run_dir), ProgressWriter(run_dir))


def test_rows_without_parts_stay_the_same_rows() -> None:
    rows = [object()]
    assert under(PromptParts(), rows) == rows
