"""The recipe: what is refused, and that it comes back from JSON as it was."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from training.rlhf.config import ConfigError, RunConfig, Sampling, Training, Tuning
from training.rlhf.method_settings import Dpo
from training.rlhf.tuning_settings import KINDS


def test_a_recipe_comes_back_from_json_as_it_was(tmp_path: Path) -> None:
    config = RunConfig(
        method="dpo",
        seed=7,
        model="policies/one",
        tuning=Tuning(kind="lora", lora_rank=8),
        training=Training(epochs=2, bf16=True),
        dpo=Dpo(beta=0.3),
        sampling=Sampling(temperature=0.7),
    )
    (tmp_path / "config.json").write_text(json.dumps(config.to_json()))
    assert RunConfig.load(tmp_path / "config.json") == config


def test_what_is_left_out_has_a_default() -> None:
    config = RunConfig.from_json({"method": "reward_model", "model": "here"})
    assert config.training == Training()
    assert config.tuning.kind == "full"


def test_a_recipe_of_format_1_still_runs() -> None:
    old = {"method": "dpo", "model": "here", "format": 1}
    config = RunConfig.from_json(old | {"training": {"epochs": 3.0, "beta": 0.3, "use_margin": False}})
    assert (config.training.epochs, config.dpo.beta, config.dpo.use_margin, config.format) == (
        3,
        0.3,
        False,
        2,
    )
    reward = RunConfig.from_json(
        old | {"method": "reward_model", "training": {"beta": 0.3, "use_margin": False}}
    )
    assert reward.reward_learning.use_margin is False


def test_only_the_section_of_its_own_method_is_written() -> None:
    written = RunConfig(method="dpo", model="here").to_json()
    assert {"dpo", "training", "tuning", "sampling"} <= set(written)
    assert not {"ppo", "kto", "reward_learning"} & set(written)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_tuning_goes_with_reward_models_and_dpo(kind: Any) -> None:
    for method in ("reward_model", "dpo"):
        config = RunConfig(method=method, model="here", tuning=Tuning(kind=kind))
        assert RunConfig.from_json(json.loads(json.dumps(config.to_json()))) == config


def test_a_pair_that_does_not_work_is_refused_with_its_reason() -> None:
    rewards = [{"name": "length", "kind": "length", "options": {"target": 4}}]
    recipe = {"method": "ppo", "model": "here", "rewards": rewards, "tuning": {"kind": "prompt"}}
    with pytest.raises(ConfigError, match=r"tuning\.kind is 'prompt' with ppo: .* value model"):
        RunConfig.from_json(recipe)
    assert RunConfig.from_json(recipe | {"tuning": {"kind": "lora"}}).tuning.kind == "lora"
    sampling = {"method": "sample", "policies": {"one": "here"}, "tuning": {"kind": "prefix"}}
    RunConfig.from_json(sampling | {"training": {"gradient_checkpointing": True}})  # trains nothing


@pytest.mark.parametrize("bf16", [None, True, False])
def test_whether_to_compute_in_bf16_may_be_left_to_the_device(bf16: bool | None, tmp_path: Path) -> None:
    written = {"method": "dpo", "model": "here", "training": {"bf16": bf16}}
    config = RunConfig.from_json(written)
    assert config.training.bf16 is bf16
    assert RunConfig.from_json(json.loads(json.dumps(config.to_json()))) == config
    assert Training().bf16 is None
    with pytest.raises(ConfigError, match="expected int"):
        RunConfig.from_json(written | {"seed": None})  # nothing else may


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"method": "trpo"}, "method is 'trpo'"),
        ({"method": "ppo"}, "rewards: ppo needs at least one reward function"),
        ({"dpo": {"beta": 0}}, "dpo.beta is 0"),
        ({"model": ""}, "model: name the folder"),
        ({"method": "sample"}, "policies"),
        ({"method": "sample", "policies": ["one"]}, "config.policies is ['one']: expected dict"),
        ({"method": "sample", "policies": {"one": 1}}, "policies.one is 1"),
        ({"seed": -1}, "seed is -1"),
        ({"seed": True}, "config.seed is True: expected int"),
        ({"format": 3}, "format is 3"),
        ({"lr": 1}, "config.lr: no such setting"),
        ({"training": {"learning_rate": 0}}, "learning_rate is 0"),
        ({"training": {"learning_rate": "1e-4"}}, "training.learning_rate is '1e-4': expected float"),
        ({"training": {"bf16": 1}}, "training.bf16 is 1: expected bool"),
        ({"training": {"max_steps": 0}}, "max_steps is 0"),
        ({"training": {"schedule": "steps"}}, "schedule is 'steps'"),
        ({"training": None}, "training: expected an object"),
        ({"tuning": {"kind": "magic"}}, "tuning.kind is 'magic': one of full, head, freeze, lora"),
        ({"tuning": {"lora_rank": 0}}, "tuning.lora_rank is 0: from 1 to 1024"),
        ({"tuning": {"lora_dropout": 1}}, "tuning.lora_dropout is 1"),
        ({"tuning": {"lora_targets": "head"}}, "tuning.lora_targets is 'head'"),
        ({"tuning": {"frozen_layers": 0}}, "tuning.frozen_layers is 0"),
        ({"tuning": {"bottleneck_size": 0}}, "tuning.bottleneck_size is 0"),
        ({"tuning": {"virtual_tokens": 0}}, "tuning.virtual_tokens is 0"),
        ({"tuning": {"double_quantisation": 1}}, "tuning.double_quantisation is 1: expected bool"),
        (
            {"tuning": {"kind": "prefix"}, "training": {"gradient_checkpointing": True}},
            "tuning.kind is 'prefix' with dpo: Prefix tuning hands",
        ),
        ({"sampling": {"top_p": 0}}, "top_p is 0"),
    ],
)
def test_nonsense_is_refused_by_the_name_of_the_setting(change: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(words)):
        RunConfig.from_json({"method": "dpo", "model": "here"} | change)


def reward(kind: str, location: str = "", **options: Any) -> dict[str, Any]:
    return {"name": "one", "kind": kind, "location": location, "options": options}


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (reward("model"), "rewards.one.location: name its folder"),
        (reward("model", "https://here"), "rewards.one.location is 'https://here': a folder"),
        (reward("model", "there", minimum=1), "rewards.one.minimum: no such option of kind model"),
        (reward("model", "there", min_accuracy="high"), "rewards.one.min_accuracy is 'high'"),
        (reward("model", "there", other_template=1), "rewards.one.other_template is 1"),
        (reward("model", "there", min_accuracy=2), "rewards.one: min_accuracy is 2"),
        (reward("length"), "rewards.one: give either target"),
        (reward("length", target=5, min=2), "rewards.one: give either target"),
        (reward("length", min=5, max=2), "rewards.one: min is 5: at most max (2)"),
        (reward("length", target=5, unit="words"), "unit is 'words'"),
        (reward("regex"), "rewards.one.pattern: has to be given"),
        (reward("regex", pattern="("), "pattern is no regular expression"),
        (reward("regex", pattern="(a+)+b"), "a repeat within a repeat may search for hours"),
        (reward("regex", pattern="(a|aa)*b"), "a repeat within a repeat may search for hours"),
        (reward("regex", pattern="(a?){30}a{30}"), "a repeat within a repeat may search for hours"),
        (reward("regex", pattern=".*a.*b.*c"), "at most 2 repeats of open length"),
        (reward("regex", pattern="a?" * 30), "at most 10 alternatives and optional parts"),
        (reward("forbidden", words=[]), "words: from 1 to 10,000"),
        (reward("forbidden", words=["a", " "]), "words: none may be empty"),
        (reward("forbidden", words="no"), "rewards.one.words is 'no': of the wrong type"),
        (reward("python", function="os.system"), "function is 'os.system': module:function"),
        (reward("judge", "here"), "rewards.one.rubric: has to be given"),
        (reward("judge", rubric="Be kind."), "name a local policy, or an address"),
        (reward("judge", "https://me:secret@here", rubric="Be kind."), "a key does not belong"),
        (reward("poem"), "rewards.one.kind is 'poem'"),
    ],
)
def test_options_of_a_reward_that_cannot_be_are_refused_by_name(given: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(words)):
        RunConfig.from_json({"method": "ppo", "model": "here", "rewards": [given]})


@pytest.mark.parametrize(
    ("method", "change", "words"),
    [
        (
            "rloo",
            {"training": {"batch_size": 6}},
            "rloo.completions_per_prompt is 4, which does not divide the 6",
        ),
        (
            "grpo",
            {"training": {"batch_size": 4}},
            "grpo.completions_per_prompt is 8, which does not divide the 4",
        ),
        ("grpo", {"sampling": {"temperature": 0}}, "sampling.temperature is 0"),
    ],
)
def test_a_step_that_does_not_hold_whole_groups_is_refused(
    method: str, change: dict[str, Any], words: str
) -> None:
    whole = {"method": method, "model": "here", "rewards": [reward("length", target=5)]}
    accumulated = {"training": {"batch_size": 4, "gradient_accumulation": 2}}
    assert RunConfig.from_json(whole | accumulated).training.gradient_accumulation == 2
    with pytest.raises(ConfigError, match=re.escape(words)):
        RunConfig.from_json(whole | change)
