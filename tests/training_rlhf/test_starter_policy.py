"""The policy that the repository ships: small, whole, quick, and with room to learn."""

import random
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

import torch
from trl.chat_template_utils import is_chat_template_prefix_preserving, is_chat_template_stop_token_trained

from training.rlhf import loading, rendering, sampling
from training.rlhf.config import Sampling
from training.rlhf.starter import build, hidden_preference, world

pytestmark = pytest.mark.training


@pytest.fixture(scope="module")
def starter() -> tuple[Any, Any]:
    where = str(build.SHIPPED)
    model, tokenizer = loading.load_policy(where), loading.load_tokenizer(where)
    loading.fit(model, tokenizer, where=where)
    return model, tokenizer


def test_the_shipped_policy_is_small_and_loads_in_fp32(starter: tuple[Any, Any]) -> None:
    model, tokenizer = starter
    assert (build.SHIPPED / "model.safetensors").stat().st_size <= 4_000_000
    assert 700_000 < model.num_parameters() < 1_300_000
    assert model.dtype == torch.float32
    assert 512 <= len(tokenizer) <= 1024
    assert model.config.max_position_embeddings >= 1024


def test_padding_eos_and_roles_are_tokens_of_their_own(starter: tuple[Any, Any]) -> None:
    _, tokenizer = starter
    assert tokenizer.pad_token_id != tokenizer.eos_token_id
    assert tokenizer.bos_token_id is None
    for name in (build.SYSTEM, build.USER, build.ASSISTANT, build.END, build.PAD):
        assert len(tokenizer(name)["input_ids"]) == 1


def test_any_text_comes_through_the_tokenizer_unchanged(starter: tuple[Any, Any]) -> None:
    _, tokenizer = starter
    for text in ("Grüße, 你好 🎈👩‍🚀", "  def f():\n\treturn 1\n\n\n", "\0\x01\x7f", "ﷺ a\u0301 \u200b end "):
        ids = tokenizer(text)["input_ids"]
        assert tokenizer.decode(ids, clean_up_tokenization_spaces=False) == text


def test_words_of_the_world_are_single_tokens(starter: tuple[Any, Any]) -> None:
    _, tokenizer = starter
    assert all(len(tokenizer(f" {word}")["input_ids"]) == 1 for word in world.CREATURES + world.THINGS)


def test_the_template_suits_trl(starter: tuple[Any, Any]) -> None:
    _, tokenizer = starter
    assert rendering.template_problems(tokenizer) == []
    assert is_chat_template_prefix_preserving(tokenizer)
    assert is_chat_template_stop_token_trained(tokenizer)


def test_a_conversation_with_a_system_turn_is_rendered_turn_by_turn(starter: tuple[Any, Any]) -> None:
    _, tokenizer = starter
    talk = [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Ho"},
        {"role": "user", "content": "?"},
    ]
    assert rendering.render_conversation(tokenizer, talk, add_generation_prompt=True) == (
        "<|system|>Be kind.<|end|><|user|>Hi<|end|><|assistant|>Ho<|end|><|user|>?<|end|><|assistant|>"
    )


def test_it_tells_stories_of_the_world_that_end_and_vary_in_quality(starter: tuple[Any, Any]) -> None:
    prompts = world.prompts(96, seed=1, split="test")
    talks = [[{"role": "user", "content": prompt}] for prompt in prompts]
    drawn = sampling.generate(*starter, talks, sampling=Sampling(max_new_tokens=128, batch_size=96), seed=0)
    assert sum(one.finish == "eos" for one in drawn) / 96 > 0.9
    scores = [hidden_preference.score(p, one.text) for p, one in zip(prompts, drawn, strict=True)]
    assert 2 < sum(scores) / 96 < 7
    assert sum(score >= 8 for score in scores) >= 3 and sum(score <= 2 for score in scores) >= 10
    asked = [
        sum(w in world.words_of(one.text) for w in world.asked_for(p) if w)
        for p, one in zip(prompts, drawn, strict=True)
    ]
    assert 0.2 < sum(count == 2 for count in asked) / 96 < 0.8


def test_a_build_of_a_few_steps_makes_a_whole_policy_and_the_seed_fixes_it(tmp_path: Path) -> None:
    for name in ("one", "two"):
        build.build(tmp_path / name, seed=3, steps=3, rows=2)
    one, two = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("one", "two"))
    assert one == two
    where = str(tmp_path / "one")
    loading.fit(loading.load_policy(where), loading.load_tokenizer(where), where=where)


def test_no_test_prompt_is_in_what_the_starter_learns_from() -> None:
    learnt = {talk[0]["content"] for talk in build.conversations(3000, seed=random.Random(0).randrange(99))}
    assert not learnt & set(world.prompts(1188, seed=0, split="test"))
