"""A policy writes: reproducible, from its own distribution, and whole or not at all."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

import torch
from transformers import GenerationConfig

from training.rlhf import loading, progress, rendering, sampling
from training.rlhf.config import RunConfig, Sampling
from training.rlhf.failures import Refused
from training.rlhf.run_dir import ProgressWriter, RunDir, read_jsonl, write_json
from training.rlhf.starter import world
from training.rlhf.starter.build import SHIPPED

pytestmark = pytest.mark.training

TALKS = [[{"role": "user", "content": "Hello" + "!" * number}] for number in (1, 20, 5, 9, 0)]
STORIES = [[{"role": "user", "content": prompt}] for prompt in world.prompts(8, seed=3)]


@pytest.fixture(scope="module")
def policy(tiny_policy: Path) -> tuple[Any, Any]:
    model, tokenizer = loading.load_policy(str(tiny_policy)), loading.load_tokenizer(str(tiny_policy))
    loading.fit(model, tokenizer, where=str(tiny_policy))
    return model, tokenizer


@pytest.fixture(scope="module")
def starter() -> tuple[Any, Any]:
    """A policy that was trained: its texts are long, and sure enough of themselves to be shaped."""
    model, tokenizer = loading.load_policy(str(SHIPPED)), loading.load_tokenizer(str(SHIPPED))
    loading.fit(model, tokenizer, where=str(SHIPPED))
    return model, tokenizer


def texts(drawn: list[sampling.Sampled]) -> list[str]:
    return [one.text for one in drawn]


def test_the_seed_fixes_what_is_written(policy: tuple[Any, Any]) -> None:
    settings = Sampling(max_new_tokens=12, batch_size=2)
    first = sampling.generate(*policy, TALKS, sampling=settings, seed=1)
    torch.manual_seed(99)
    assert sampling.generate(*policy, TALKS, sampling=settings, seed=1) == first
    assert texts(sampling.generate(*policy, TALKS, sampling=settings, seed=2)) != texts(first)


def test_sampling_leaves_the_callers_random_numbers_alone(policy: tuple[Any, Any]) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    sampling.generate(*policy, TALKS, sampling=Sampling(max_new_tokens=4), seed=1)
    assert torch.equal(torch.rand(3), expected)


def test_the_same_prompt_twice_gives_two_draws_in_one_batch_and_across_batches(
    policy: tuple[Any, Any],
) -> None:
    for batch_size in (1, 8):
        settings = Sampling(max_new_tokens=16, batch_size=batch_size)
        assert len(set(texts(sampling.generate(*policy, TALKS[:1] * 6, sampling=settings, seed=3)))) == 6


def test_without_temperature_the_likeliest_token_is_taken_whoever_shares_the_batch(
    policy: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Greedy, against a loop without cache, batch or padding."""
    model, tokenizer = policy
    monkeypatch.setattr(sampling, "_FIRST_STRETCH", 3)  # 3, then 6 more tokens
    settings = Sampling(max_new_tokens=9, temperature=0, batch_size=2)
    drawn = sampling.generate(model, tokenizer, TALKS, sampling=settings, seed=0)
    for talk, one in zip(TALKS, drawn, strict=True):
        ids = rendering.prompt_ids(tokenizer, talk)
        for token in one.ids:
            assert token == model(torch.tensor([ids])).logits[0, -1].argmax().item()
            ids.append(token)


# Each shapes what the starter writes in 40 tokens: transformers fills settings that ours leave from these.
@pytest.mark.parametrize(
    "declared",
    [
        {"repetition_penalty": 1.1}, {"top_k": 1}, {"min_p": 0.3}, {"typical_p": 0.2}, {"num_beams": 3},
        {"no_repeat_ngram_size": 2}, {"min_new_tokens": 39}, {"suppress_tokens": list(range(100, 500))},
        {"bad_words_ids": [[number] for number in range(100, 500)]}, {"temperature": 0.1}, {"top_p": 0.1},
        {"max_time": 0.0}, {"epsilon_cutoff": 0.1},
    ],
    ids=lambda declared: next(iter(declared)),
)  # fmt: skip
def test_what_a_model_declares_for_its_generation_does_not_shape_the_draw(
    starter: tuple[Any, Any], declared: dict[str, Any]
) -> None:
    """The texts are those of the same weights without it: they are the policy's own samples."""
    model, tokenizer = starter
    settings = Sampling(max_new_tokens=40)
    expected = sampling.generate(model, tokenizer, STORIES, sampling=settings, seed=5)
    before = model.generation_config
    model.generation_config = GenerationConfig(**(before.to_dict() | declared))  # type: ignore[no-untyped-call]
    try:
        assert sampling.generate(model, tokenizer, STORIES, sampling=settings, seed=5) == expected
        assert getattr(model.generation_config, next(iter(declared))) == next(iter(declared.values()))
    finally:
        model.generation_config = before


def test_samples_follow_the_models_probabilities(policy: tuple[Any, Any]) -> None:
    model, tokenizer = policy
    drawn = sampling.generate(model, tokenizer, TALKS[:1] * 400, sampling=Sampling(max_new_tokens=1), seed=0)
    with torch.inference_mode():
        logits = model(torch.tensor([rendering.prompt_ids(tokenizer, TALKS[0])])).logits[0, -1]
    probabilities = logits.float().softmax(-1)
    surprise = -sum(probabilities[one.ids[0]].log().item() for one in drawn) / len(drawn)
    entropy = -(probabilities * probabilities.log()).sum().item()
    assert surprise == pytest.approx(entropy, abs=0.1)


def test_a_stop_is_heard_at_the_next_token_and_leaves_the_model_as_it_was(
    policy: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, tokenizer = policy
    declared = model.generation_config
    steps = []

    def count(*_: Any) -> None:
        steps.append(1)
        monkeypatch.setattr(progress._Stop, "requested", len(steps) == 3)

    hook = model.register_forward_hook(count)
    try:
        with pytest.raises(progress.Cancelled):
            sampling.generate(model, tokenizer, TALKS, sampling=Sampling(max_new_tokens=30), seed=0)
    finally:
        hook.remove()
    assert len(steps) == 3
    assert model.generation_config is declared


def test_a_turn_ends_at_eos_and_says_so(policy: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer = policy
    letter = tokenizer.convert_tokens_to_ids("a")
    ends = [tokenizer.eos_token_id, *range(100, len(tokenizer))]
    monkeypatch.setattr(model.generation_config, "eos_token_id", ends)
    monkeypatch.setattr(sampling, "_FIRST_STRETCH", 2)
    drawn = sampling.generate(model, tokenizer, TALKS * 4, sampling=Sampling(max_new_tokens=6), seed=0)
    assert {one.finish for one in drawn} == {"eos", "length"}
    for one in drawn:
        ended = one.ids[-1] in ends
        assert one.finish == ("eos" if ended else "length")
        assert ended or one.tokens == 6
        assert not set(one.ids[:-1]) & set(ends)
        assert "<|end|>" not in one.text and "<|pad|>" not in one.text
    assert letter not in ends


def test_a_prompt_longer_than_the_model_keeps_its_end(policy: tuple[Any, Any]) -> None:
    talk = [{"role": "user", "content": "x" * 2000}]
    drawn = sampling.generate(*policy, [talk, *TALKS], sampling=Sampling(max_new_tokens=5), seed=0)
    assert len(drawn) == 6 and drawn[0].tokens >= 1
    for asked, one in zip([talk, *TALKS], drawn, strict=True):
        whole = rendering.prompt_ids(policy[1], asked)
        assert list(one.prompt_ids) == whole[-251:]  # 256 positions, 5 of them for what is written


def test_more_tokens_than_the_model_has_positions_are_as_many_as_fit(policy: tuple[Any, Any]) -> None:
    (one,) = sampling.generate(*policy, TALKS[:1], sampling=Sampling(max_new_tokens=100_000), seed=0)
    assert len(one.prompt_ids) + one.tokens <= 256


def test_no_text_holds_a_nul(policy: tuple[Any, Any]) -> None:
    _, tokenizer = policy
    ids = tokenizer("a\0b", add_special_tokens=False)["input_ids"]
    assert (
        sampling.as_sampled(tokenizer, [], ids, [tokenizer.eos_token_id]).text
        == "a\N{REPLACEMENT CHARACTER}b"
    )


@pytest.fixture
def sampling_run(tmp_path: Path, tiny_policy: Path) -> Callable[..., tuple[RunDir, RunConfig]]:
    def make(requests: list[dict[str, Any]], **settings: Any) -> tuple[RunDir, RunConfig]:
        run_dir = RunDir(tmp_path)
        run_dir.data.mkdir(exist_ok=True)
        config = RunConfig(
            method="sample",
            policies={"7": str(tiny_policy), "8": str(tiny_policy)},
            sampling=Sampling(max_new_tokens=6, batch_size=4, **settings),
        )
        write_json(run_dir.config, config.to_json())
        lines = [json.dumps(request) for request in requests]
        (run_dir.data / "requests.jsonl").write_text("\n".join(lines) + "\n")
        return run_dir, config

    return make


def test_a_run_writes_what_was_asked_in_order_with_progress(
    sampling_run: Callable[..., tuple[RunDir, RunConfig]],
) -> None:
    wanted = [["7", "7"], ["8", "7"], ["7"], ["8"]]
    requests = [{"prompt": talk, "policies": who} for talk, who in zip(TALKS, wanted, strict=False)]
    run_dir, config = sampling_run(requests)
    sampling.run(run_dir, config, ProgressWriter(run_dir))
    rows = list(read_jsonl(run_dir.completions))
    assert [(row["request"], row["policy"]) for row in rows] == [
        (0, "7"), (0, "7"), (1, "8"), (1, "7"), (2, "7"), (3, "8"),
    ]  # fmt: skip
    assert rows[0]["text"] != rows[1]["text"]
    assert all(row["finish"] in ("eos", "length") and 1 <= row["tokens"] <= 6 for row in rows)
    lines = list(run_dir.progress_after(0))
    assert lines[-1]["step"] == lines[-1]["total_steps"] == 6
    steps = [line["step"] for line in lines]
    assert steps == sorted(steps)


def test_two_policies_of_the_same_weights_do_not_write_the_same(
    sampling_run: Callable[..., tuple[RunDir, RunConfig]],
) -> None:
    run_dir, config = sampling_run([{"prompt": talk, "policies": ["7", "8"]} for talk in TALKS])
    sampling.run(run_dir, config, ProgressWriter(run_dir))
    rows = list(read_jsonl(run_dir.completions))
    assert [one["text"] for one in rows[0::2]] != [one["text"] for one in rows[1::2]]


def test_a_run_that_is_stopped_leaves_no_completions(
    sampling_run: Callable[..., tuple[RunDir, RunConfig]], monkeypatch: pytest.MonkeyPatch
) -> None:
    run_dir, config = sampling_run([{"prompt": talk, "policies": ["7"]} for talk in TALKS])
    monkeypatch.setattr(progress._Stop, "requested", True)
    with pytest.raises(progress.Cancelled):
        sampling.run(run_dir, config, ProgressWriter(run_dir))
    assert sorted(path.name for path in run_dir.path.iterdir()) == ["config.json", "data", "progress.jsonl"]


@pytest.mark.parametrize(
    ("requests", "message"),
    [([], "nothing to write"), ([{"prompt": TALKS[0], "policies": ["9"]}], "Request 0 asks '9'")],
)
def test_requests_that_cannot_be_met_are_refused(
    sampling_run: Callable[..., tuple[RunDir, RunConfig]], requests: list[dict[str, Any]], message: str
) -> None:
    run_dir, config = sampling_run(requests)
    with pytest.raises(Refused, match=message):
        sampling.run(run_dir, config, ProgressWriter(run_dir))
    assert not run_dir.completions.exists()
