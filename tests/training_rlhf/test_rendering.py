"""Text for models: ours and TRL's trainers must read the same tokens."""

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

from transformers import PreTrainedTokenizerBase

from training.rlhf import failures, loading, rendering
from training.rlhf.run_dir import EXIT_REFUSED, RunDir

pytestmark = pytest.mark.training

# ChatML: after EOS comes a newline, so the last token of a conversation is not EOS.
CHATML = (
    "{%- for message in messages -%}"
    "{{- '<|user|>' + message['role'] + '\n' + message['content'] + eos_token + '\n' -}}"
    "{%- endfor -%}{%- if add_generation_prompt -%}{{- '<|user|>assistant\n' -}}{%- endif -%}"
)
# As Llama 2: refuses roles that do not alternate, ends the prompt within the user's turn.
STRICT = (
    "{{- bos_token -}}{%- for message in messages -%}"
    "{%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}"
    "{{- raise_exception('roles must alternate') -}}"
    "{%- endif -%}"
    "{%- if message['role'] == 'user' -%}{{- '[INST] ' + message['content'] + ' [/INST]' -}}"
    "{%- else -%}{{- ' ' + message['content'] + eos_token -}}{%- endif -%}"
    "{%- endfor -%}"
)
CONVERSATIONS: list[list[dict[str, str]]] = [
    [{"role": "user", "content": "Hello?"}, {"role": "assistant", "content": "Hello!"}],
    [
        {"role": "user", "content": "  Grüße, 你好 🎈 \n\n"},
        {"role": "assistant", "content": "\n Line\n\tcode:\n    x = 1\n"},
        {"role": "user", "content": "And?"},
        {"role": "assistant", "content": ""},
    ],
]


@pytest.fixture(params=["own", "default", "chatml", "strict", "starter"])
def tokenizer(request: pytest.FixtureRequest, tiny_policy: Path) -> PreTrainedTokenizerBase:
    if request.param == "starter":
        from training.rlhf.starter.build import SHIPPED

        return loading.load_tokenizer(str(SHIPPED))
    tokenizer = loading.load_tokenizer(str(tiny_policy))
    if request.param == "default":
        tokenizer.chat_template = None
        rendering.ensure_template(tokenizer)
    elif request.param in ("chatml", "strict"):
        tokenizer.chat_template = CHATML if request.param == "chatml" else STRICT
    return tokenizer


def prepared_by(trainer: str, tokenizer: PreTrainedTokenizerBase, row: dict[str, Any]) -> dict[str, Any]:
    """What a TRL trainer makes of a row, through its own preparation, without a model."""
    from types import SimpleNamespace

    import trl
    from datasets import Dataset

    kind = getattr(trl, f"{trainer}Trainer")
    args = SimpleNamespace(
        dataset_num_proc=None,
        max_length=None,
        truncation_mode="keep_start",
        assistant_only_loss=False,
        dataset_text_field="text",
        shuffle_dataset=False,
        packing_strategy="bfd",
        seed=0,
    )
    bare = object.__new__(kind)
    bare._tokenizer = tokenizer
    bare.chat_template = None
    bare.completion_only_loss = True
    rows = Dataset.from_list([row])
    if trainer == "SFT":
        prepared = bare._prepare_dataset(rows, tokenizer, args, False, None, "train")
    else:
        prepared = bare._prepare_dataset(rows, tokenizer, args, "train")
    return dict(prepared[0])


@pytest.mark.parametrize("conversation", CONVERSATIONS, ids=["one turn", "two turns"])
def test_dpo_of_trl_reads_the_same_tokens(
    tokenizer: PreTrainedTokenizerBase, conversation: list[dict[str, str]]
) -> None:
    prompt, answer = conversation[:-1], conversation[-1:]
    other = [{"role": "assistant", "content": "Zzz"}]
    theirs = prepared_by("DPO", tokenizer, {"prompt": prompt, "chosen": answer, "rejected": other})
    before, after = rendering.prompt_and_completion_ids(tokenizer, prompt, answer)
    _, worse = rendering.prompt_and_completion_ids(tokenizer, prompt, other)
    assert theirs["prompt_ids"] + theirs["chosen_ids"] == before + after
    assert theirs["prompt_ids"] + theirs["rejected_ids"] == before + worse
    assert theirs["prompt_ids"] == before


@pytest.mark.parametrize("conversation", CONVERSATIONS, ids=["one turn", "two turns"])
def test_the_reward_trainer_of_trl_reads_the_same_tokens(
    tokenizer: PreTrainedTokenizerBase, conversation: list[dict[str, str]]
) -> None:
    prompt, answer = conversation[:-1], conversation[-1:]
    theirs = prepared_by("Reward", tokenizer, {"prompt": prompt, "chosen": answer, "rejected": answer})
    assert theirs["chosen_ids"] == rendering.conversation_ids(tokenizer, conversation)


@pytest.mark.parametrize("conversation", CONVERSATIONS, ids=["one turn", "two turns"])
def test_sft_of_trl_reads_the_same_tokens_and_learns_the_completion(
    tokenizer: PreTrainedTokenizerBase, conversation: list[dict[str, str]]
) -> None:
    prompt, answer = conversation[:-1], conversation[-1:]
    theirs = prepared_by("SFT", tokenizer, {"prompt": prompt, "completion": answer})
    before, after = rendering.prompt_and_completion_ids(tokenizer, prompt, answer)
    assert theirs["input_ids"] == before + after
    assert [label for label in theirs["labels"] if label != -100] == after


def test_the_text_that_is_shown_is_the_text_that_is_read(tokenizer: PreTrainedTokenizerBase) -> None:
    for conversation in CONVERSATIONS:
        text = rendering.render_conversation(tokenizer, conversation)
        read = rendering.conversation_ids(tokenizer, conversation)
        assert tokenizer(text, add_special_tokens=False)["input_ids"] == read


def test_a_completion_teaches_to_stop(tokenizer: PreTrainedTokenizerBase) -> None:
    _, after = rendering.prompt_and_completion_ids(tokenizer, CONVERSATIONS[0][:1], CONVERSATIONS[0][1:])
    assert tokenizer.eos_token_id in after
    assert rendering.end_ids(tokenizer) == [tokenizer.eos_token_id]
    assert rendering.template_problems(tokenizer) == []


def test_a_template_that_never_ends_a_turn_is_reported(tiny_policy: Path) -> None:
    tokenizer = loading.load_tokenizer(str(tiny_policy))
    tokenizer.chat_template = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
    assert any("never stop" in problem for problem in rendering.template_problems(tokenizer))


def test_a_template_that_rewrites_earlier_turns_is_reported(tiny_policy: Path) -> None:
    """As templates that drop the reasoning of earlier turns do."""
    tokenizer = loading.load_tokenizer(str(tiny_policy))
    tokenizer.chat_template = (
        "{% for message in messages %}"
        "{{ message['content'] if loop.last else '...' }}{{ eos_token }}{% endfor %}"
    )
    assert any("Earlier turns" in problem for problem in rendering.template_problems(tokenizer))


def test_two_bos_tokens_are_reported(tiny_policy: Path) -> None:
    tokenizer = loading.load_tokenizer(str(tiny_policy))
    tokenizer.chat_template = "{{- bos_token -}}" + tokenizer.chat_template
    assert any("2 BOS" in problem for problem in rendering.template_problems(tokenizer))


def test_the_token_that_closes_a_turn_ends_it_also_when_it_is_not_eos(tiny_policy: Path) -> None:
    tokenizer = loading.load_tokenizer(str(tiny_policy))
    tokenizer.eos_token = "<|bos|>"
    closing = tokenizer.convert_tokens_to_ids("<|end|>")
    assert rendering.end_ids(tokenizer) == [tokenizer.eos_token_id, closing]


def test_a_token_that_opens_the_answer_does_not_end_it(tiny_policy: Path) -> None:
    """Where the prompt ends before the assistant's header, the header is part of what is learnt."""
    tokenizer = loading.load_tokenizer(str(tiny_policy))
    tokenizer.chat_template = (
        "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}{% endfor %}"
    )
    assert rendering.end_ids(tokenizer) == [tokenizer.eos_token_id]
    assert not rendering.ends_turns(tokenizer)


def test_a_turn_that_another_special_token_closes_is_one_that_ends(tiny_policy: Path) -> None:
    """As in chat models that kept the base model's EOS: the sampler stops at the token that closes."""
    tokenizer = loading.load_tokenizer(str(tiny_policy))
    tokenizer.eos_token = "<|bos|>"
    assert rendering.ends_turns(tokenizer)
    assert rendering.NEVER_STOPS not in rendering.template_problems(tokenizer)


def test_a_refused_conversation_is_the_inputs_fault_and_says_where_and_what_to_do(tmp_path: Path) -> None:
    error = rendering.RenderError("The chat template refuses turns of system, user: no system role")
    said, code = failures.explain(error, run_dir=RunDir(tmp_path))
    assert code == EXIT_REFUSED
    assert "no system role" in said["what"]
    assert "template" in said["where"] and "template" in said["do"]


def test_a_conversation_that_the_template_refuses_is_named(tiny_policy: Path) -> None:
    tokenizer = loading.load_tokenizer(str(tiny_policy))
    tokenizer.chat_template = STRICT
    with pytest.raises(rendering.RenderError, match="user, user: roles must alternate"):
        rendering.prompt_ids(tokenizer, [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}])


def test_the_hash_changes_with_the_template_and_with_eos(tiny_policy: Path) -> None:
    tokenizer = loading.load_tokenizer(str(tiny_policy))
    before = rendering.template_hash(tokenizer)
    assert before == rendering.template_hash(loading.load_tokenizer(str(tiny_policy)))
    tokenizer.eos_token = "<|bos|>"
    changed = rendering.template_hash(tokenizer)
    tokenizer.chat_template = CHATML
    assert len({before, changed, rendering.template_hash(tokenizer)}) == 3
