"""A run's reward: what each kind says of a completion, their sum, and what is refused before the start."""

import doctest
import itertools
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
pytestmark = pytest.mark.training

import torch  # noqa: E402

from tests.training_rlhf.conftest import save_tiny_policy  # noqa: E402
from training.rlhf import loading, rendering, rewards, sampling, scoring  # noqa: E402
from training.rlhf.config import ConfigError, RunConfig, Sampling  # noqa: E402
from training.rlhf.failures import Refused  # noqa: E402
from training.rlhf.model_files import ModelRefused  # noqa: E402
from training.rlhf.reward_kinds import reward_functions  # noqa: E402
from training.rlhf.run_dir import write_json  # noqa: E402
from training.rlhf.sampling import Sampled  # noqa: E402

PROMPT = [{"role": "user", "content": "Say hello."}]
CHATML = (
    "{%- for message in messages -%}"
    "<|{{ message['role'] }}|>{{ message['content'] }}<|end|>{{ '\\n' }}"
    "{%- endfor -%}{%- if add_generation_prompt -%}<|assistant|>{%- endif -%}"
)
Save = Callable[..., Path]


def config_of(policy: Path | str, *given: dict[str, Any]) -> RunConfig:
    return RunConfig.from_json({"method": "ppo", "model": str(policy), "rewards": list(given)})


def text(content: str, *, finish: str = "eos", tokens: int = 3) -> Sampled:
    return Sampled(text=content, finish=finish, prompt_ids=(1,), ids=(9,) * tokens)  # type: ignore[arg-type]


def scored(policy: Path, given: dict[str, Any], *samples: Sampled) -> list[float]:
    loaded = rewards.load_rewards(config_of(policy, given | {"name": "one"}))
    return loaded.score([PROMPT] * len(samples), samples).parts["one"]


@pytest.fixture
def reward_model(tmp_path: Path, tiny_policy: Path) -> Save:
    """A random reward model with canaries; the figures of its run beside it."""

    def save(
        *, accuracy: float | None = 0.7, template: str = "", policy: Path = tiny_policy, name: str = "rm"
    ) -> Path:
        folder = tmp_path / name / "model"
        model = loading.load_reward_base(str(policy), seed=3)
        torch.nn.init.normal_(model.score.weight, std=2.0)  # type: ignore[arg-type, union-attr]
        tokenizer = loading.load_tokenizer(str(policy))
        if template:
            tokenizer.chat_template = template
        loading.fit(model, tokenizer, where=str(policy))
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        scoring.write_canaries(model, tokenizer, folder=folder)
        if accuracy is not None:
            write_json(folder.parent / "evaluation.json", {"accuracy": accuracy})
        return folder

    return save


def model_reward(folder: Path, **options: Any) -> dict[str, Any]:
    return {"name": "taste", "kind": "model", "location": str(folder), "options": options}


def test_the_examples_in_the_docstrings_hold() -> None:
    tested = doctest.testmod(reward_functions)
    assert tested.attempted >= 3
    assert not tested.failed


def test_the_total_is_the_weighted_sum_of_parts_that_stay_as_they_are(tiny_policy: Path) -> None:
    loaded = rewards.load_rewards(
        config_of(
            tiny_policy,
            {"name": "greets", "kind": "regex", "weight": 2.0, "options": {"pattern": "hello"}},
            {"name": "rude", "kind": "forbidden", "weight": 0.5, "options": {"words": ["fool"]}},
        )
    )
    found = loaded.score([PROMPT] * 3, [text("hello"), text("hello fool"), text("fool")])
    assert found.parts == {"greets": [1, 1, 0], "rude": [0, -1, -1]}
    assert found.total == [2.0, 1.5, -0.5]
    assert loaded.value_model_folder() is None


def test_length_is_counted_in_tokens_or_characters(tiny_policy: Path) -> None:
    samples = [text("four", tokens=9), text("thirteen long", tokens=4)]
    tokens = {"kind": "length", "options": {"target": 4, "scale": 5}}
    assert scored(tiny_policy, tokens, *samples) == pytest.approx([1 - 2**0.5, 0.0])
    letters = {"kind": "length", "options": {"max": 10, "scale": 3, "unit": "characters"}}
    assert scored(tiny_policy, letters, *samples) == pytest.approx([0.0, 1 - 2**0.5])


def test_being_further_from_the_goal_is_never_better(tiny_policy: Path) -> None:
    samples = [text("", tokens=n) for n in range(1, 60)]
    found = scored(tiny_policy, {"kind": "length", "options": {"min": 20, "max": 30}}, *samples)
    assert found[19:30] == [0.0] * 11
    assert all(one < other for one, other in itertools.pairwise(found[:20]))
    assert all(one > other for one, other in itertools.pairwise(found[29:]))


def test_a_pattern_is_there_or_is_counted(tiny_policy: Path) -> None:
    samples = [text("A cat, a CAT, a cat."), text("dog")]
    there = {"kind": "regex", "options": {"pattern": "cat"}}
    assert scored(tiny_policy, there, *samples) == [1, 0]
    counted = {"kind": "regex", "options": {"pattern": "cat", "mode": "count", "ignore_case": True}}
    assert scored(tiny_policy, counted, *samples) == [3, 0]
    counted["options"] |= {"most": 2}  # type: ignore[operator]
    assert scored(tiny_policy, counted, *samples) == [2, 0]


def test_a_pattern_reads_no_more_of_a_long_text_than_it_can_search_in_seconds(tiny_policy: Path) -> None:
    hard = {"kind": "regex", "options": {"pattern": "x*x*y"}}
    assert scored(tiny_policy, hard, text("x" * 100_000 + "y")) == [0]  # what lies beyond is not read


def test_forbidden_words_are_whole_words_of_any_case(tiny_policy: Path) -> None:
    words = {"kind": "forbidden", "options": {"words": ["ass", "bad word", "C++"]}}
    samples = [text("pass the assay"), text("ASS!"), text("a Bad Word"), text("I like c++."), text("ass ass")]
    assert scored(tiny_policy, words, *samples) == [0, -1, -1, -1, -1]
    words["options"] |= {"mode": "count"}  # type: ignore[operator]
    assert scored(tiny_policy, words, *samples) == [0, -1, -1, -1, -2]


@pytest.fixture
def own_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "my_rewards.py").write_text(
        "def capitals(prompts, texts):\n"
        "    assert prompts[0][0]['content'] == 'Say hello.'\n"
        "    return [sum(map(str.isupper, text)) for text in texts]\n"
        "def short(prompts, texts): return [1.0]\n"
        "def broken(prompts, texts): return [1 / 0 for text in texts]\n"
        "def endless(prompts, texts): return [float('inf') for text in texts]\n"
        "value = 3\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    return "my_rewards"


def test_a_function_of_ones_own_runs_only_where_the_worker_allows_its_module(
    own_module: str, tiny_policy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = {"name": "own", "kind": "python", "options": {"function": f"{own_module}:capitals"}}
    monkeypatch.delenv(reward_functions.ALLOWED, raising=False)
    with pytest.raises(Refused, match="may not give rewards here"):
        rewards.load_rewards(config_of(tiny_policy, given))
    monkeypatch.setenv(reward_functions.ALLOWED, f"others,{own_module}x")
    assert "may not give rewards" in rewards.problems(config_of(tiny_policy, given))[0][0]["what"]
    monkeypatch.setenv(reward_functions.ALLOWED, f"others, {own_module}")
    assert rewards.problems(config_of(tiny_policy, given)) == ([], [])
    assert scored(tiny_policy, given, text("HeLlo"), text("no")) == [2, 0]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("missing", "cannot be loaded"),
        ("value", "is no function"),
        ("short", "1 numbers for 2 completions"),
        ("broken", "ZeroDivisionError"),
        ("endless", "not finite"),
    ],
)
def test_a_function_that_gives_no_numbers_ends_the_run_with_words(
    name: str, words: str, own_module: str, tiny_policy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(reward_functions.ALLOWED, own_module)
    with pytest.raises(Refused) as caught:
        scored(
            tiny_policy,
            {"kind": "python", "options": {"function": f"{own_module}:{name}"}},
            text("a"),
            text("b"),
        )
    assert words in caught.value.what
    assert caught.value.where == "rewards.one"


@pytest.mark.parametrize("template", ["", CHATML], ids=["eos-last", "newline-after-eos"])
def test_a_finished_completion_scores_what_its_conversation_does_and_a_cut_one_does_not(
    template: str, reward_model: Save, tiny_policy: Path, tmp_path: Path
) -> None:
    """Also where the template goes on after EOS: there the model was trained to be read, not at EOS."""
    policy = tmp_path / "policy"
    save_tiny_policy(policy)
    tokenizer = loading.load_tokenizer(str(policy))
    if template:
        tokenizer.chat_template = template
        tokenizer.save_pretrained(policy)
    folder = reward_model(template=template, policy=policy)
    loaded = rewards.load_rewards(config_of(policy, model_reward(folder)))
    assert loaded.value_model_folder() == str(folder)
    answer = "Hello Ada!"
    content = tokenizer(answer, add_special_tokens=False)["input_ids"]
    before = tuple(rendering.prompt_ids(tokenizer, PROMPT))
    whole = Sampled(text=answer, finish="eos", prompt_ids=before, ids=(*content, tokenizer.eos_token_id))
    cut = Sampled(text=answer, finish="length", prompt_ids=before, ids=tuple(content))
    found = loaded.score([PROMPT] * 2, [whole, cut]).parts["taste"]
    model, reader = loading.load_reward_model(folder)
    conversation = [*PROMPT, {"role": "assistant", "content": answer}]
    assert found[0] == pytest.approx(scoring.reward_scores(model, reader, [conversation])[0], abs=1e-5)
    ids = torch.tensor([[*before, *content]])
    with torch.inference_mode():
        unfinished = float(model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0, 0])
    assert found[1] == pytest.approx(unfinished, abs=1e-5)
    assert abs(found[0] - found[1]) > 0.1


def test_the_drawn_tokens_are_scored_not_what_their_text_would_be_read_as(
    reward_model: Save, tiny_policy: Path
) -> None:
    """Half a letter of UTF-8 is decoded as a replacement mark, which is three other tokens."""
    folder = reward_model()
    model, tokenizer = loading.load_policy(str(tiny_policy)), loading.load_tokenizer(str(tiny_policy))
    loading.fit(model, tokenizer, where=str(tiny_policy))
    drawn = sampling.generate(model, tokenizer, [PROMPT] * 4, sampling=Sampling(max_new_tokens=12), seed=1)
    assert any("�" in one.text for one in drawn)
    loaded = rewards.load_rewards(config_of(tiny_policy, model_reward(folder)))
    judge, _ = loading.load_reward_model(folder)
    rows = [[*one.prompt_ids, *one.ids] for one in drawn]  # this template ends a turn with EOS itself
    expected = scoring.scores_of_tokens(judge, rows, pad_id=0)
    assert loaded.score([PROMPT] * 4, drawn).parts["taste"] == pytest.approx(expected, abs=1e-5)


def test_a_reward_model_of_another_template_is_refused_before_the_start_unless_it_is_meant(
    reward_model: Save, tiny_policy: Path
) -> None:
    folder = reward_model(template=CHATML)
    strict = config_of(tiny_policy, model_reward(folder))
    errors, _ = rewards.problems(strict)
    assert "another chat template" in errors[0]["what"]
    assert "other_template" in errors[0]["do"]
    with pytest.raises(Refused, match="another chat template"):
        rewards.load_rewards(strict)
    meant = config_of(tiny_policy, model_reward(folder, other_template=True))
    assert rewards.problems(meant) == ([], [])
    found = rewards.load_rewards(meant).score([PROMPT] * 2, [text("Hello."), text("Hello.", finish="length")])
    model, tokenizer = loading.load_reward_model(folder)
    conversation = [*PROMPT, {"role": "assistant", "content": "Hello."}]
    assert found.total[0] == pytest.approx(
        scoring.reward_scores(model, tokenizer, [conversation])[0], abs=1e-5
    )
    unfinished = rendering.conversation_ids(tokenizer, conversation)[:-2]  # without EOS and newline
    assert found.total[1] == pytest.approx(
        scoring.scores_of_tokens(model, [unfinished], pad_id=0)[0], abs=1e-5
    )


def test_a_reward_model_of_another_tokenizer_is_refused(
    reward_model: Save, tiny_policy: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    shutil.copytree(tiny_policy, other)
    found = json.loads((other / "tokenizer.json").read_text())
    vocabulary = found["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    (other / "tokenizer.json").write_text(json.dumps(found))
    errors, _ = rewards.problems(config_of(tiny_policy, model_reward(reward_model(policy=other))))
    assert "another tokenizer" in errors[0]["what"]


def test_a_reward_model_that_agrees_with_people_too_seldom_is_refused(
    reward_model: Save, tiny_policy: Path
) -> None:
    folder = reward_model(accuracy=0.52)
    errors, warnings = rewards.problems(config_of(tiny_policy, model_reward(folder)))
    assert "52%" in errors[0]["what"]
    assert "55%" in errors[0]["what"]
    assert not warnings
    with pytest.raises(Refused, match="would learn its errors"):
        rewards.load_rewards(config_of(tiny_policy, model_reward(folder)))
    lenient = config_of(tiny_policy, model_reward(folder, min_accuracy=0.5))
    assert rewards.problems(lenient) == ([], [])


@pytest.mark.parametrize("left", [None, '{"error": {}}', "{", "[]", '{"accuracy": null}'])
def test_an_accuracy_that_nobody_measured_is_a_warning(
    left: str | None, reward_model: Save, tiny_policy: Path
) -> None:
    folder = reward_model(accuracy=None)
    if left is not None:
        (folder.parent / "evaluation.json").write_text(left)
    errors, warnings = rewards.problems(config_of(tiny_policy, model_reward(folder)))
    assert not errors
    assert "Nobody knows how often the reward model taste" in warnings[0]


def test_a_reward_model_that_scores_otherwise_than_when_it_was_saved_is_refused(
    reward_model: Save, tiny_policy: Path
) -> None:
    folder = reward_model()
    saved = json.loads((folder / scoring.CANARIES).read_text())
    saved["scores"][0] += 5
    write_json(folder / scoring.CANARIES, saved)
    with pytest.raises(ModelRefused, match=r"was .* when saved"):
        rewards.load_rewards(config_of(tiny_policy, model_reward(folder)))


def test_a_policy_is_no_reward_model(tiny_policy: Path) -> None:
    errors, _ = rewards.problems(config_of(tiny_policy, model_reward(tiny_policy)))
    assert errors


def test_a_hidden_preference_is_watched_and_never_trained_on(tiny_policy: Path) -> None:
    watched = {"kind": "hidden_preference", "name": "people", "weight": 0}
    length = {"kind": "length", "name": "length", "options": {"target": 3}}
    loaded = rewards.load_rewards(config_of(tiny_policy, watched, length))
    asked = [{"role": "user", "content": "Tell me a story about a fox and a lantern."}]
    story = text("Once upon a time a fox found a lantern by the river. They lived happily ever after.")
    found = loaded.score([asked, asked], [story, text("no")])
    assert found.parts["people"][0] > found.parts["people"][1]
    assert found.total == found.parts["length"]
    with pytest.raises(ConfigError, match="only watched"):
        config_of(tiny_policy, watched | {"weight": 1})
