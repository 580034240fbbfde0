"""Text for models: the one place where a conversation becomes tokens.

Every trainer, the reward model's scorer and the sampler read conversations through these functions, so a
reward model is read where it was trained and a policy is trained on what it sees when it writes. They equal
what TRL's SFT, DPO and reward trainers do by themselves, to the token (tests/training_rlhf/test_rendering.py
holds them together). A completion ends as the template ends an assistant's turn, usually with EOS.

A text that spells out a special token ("<|end|>") is read as that token, here as in TRL.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from training.rlhf.failures import RenderError as RenderError

Messages = Sequence[Mapping[str, str]]

# For a tokenizer that brings no chat template (a base model). Turns carry their role's name on a line of its
# own, because such a tokenizer has no special token to spare; content is trimmed, so that no token can join
# the end of the prompt with the beginning of the answer. EOS ends each turn of the assistant.
_DEFAULT_TURNS = (
    "{%- for message in messages -%}"
    "{{- message['role'] | capitalize + ':\\n' -}}"
    "{%- if message['role'] == 'assistant' -%}"
    "{%- generation -%}{{- (message['content'] | trim) + eos_token -}}{%- endgeneration -%}"
    "{%- else -%}{{- (message['content'] | trim) + '\\n\\n' -}}{%- endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- 'Assistant:\\n' -}}{%- endif -%}"
)
NEVER_STOPS = "An answer does not end with EOS, so a model trained on it may never stop."
_PROBE: list[dict[str, str]] = [{"role": "user", "content": "Is it raining?"}]
_PROBE_ANSWER: list[dict[str, str]] = [{"role": "assistant", "content": "Not today."}]
_OTHER_ANSWER: list[dict[str, str]] = [{"role": "assistant", "content": "It rains"}]


def ensure_template(tokenizer: PreTrainedTokenizerBase) -> None:
    """Give the tokenizer our default chat template if it has none; it is saved with the tokenizer."""
    if not tokenizer.chat_template:
        opens_with_bos = tokenizer.bos_token_id is not None and (
            tokenizer("x")["input_ids"][0] == tokenizer.bos_token_id
        )
        tokenizer.chat_template = ("{{- bos_token -}}" if opens_with_bos else "") + _DEFAULT_TURNS


def render_conversation(
    tokenizer: PreTrainedTokenizerBase, messages: Messages, *, add_generation_prompt: bool = False
) -> str:
    """The conversation as the model reads it, for people: canaries, previews, error messages."""
    return str(_apply(tokenizer, messages, tokenize=False, add_generation_prompt=add_generation_prompt))


def conversation_ids(tokenizer: PreTrainedTokenizerBase, messages: Messages) -> list[int]:
    """Tokens of a whole conversation: what a reward model scores, at its last token."""
    return list(_apply(tokenizer, messages, tokenize=True, return_dict=True)["input_ids"])


def text_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Tokens of a document: with BOS if the tokenizer sets it by itself, and with EOS."""
    ids = list(tokenizer(text)["input_ids"])
    return ids if ids[-1:] == [tokenizer.eos_token_id] else [*ids, int(tokenizer.eos_token_id)]


def prompt_ids(tokenizer: PreTrainedTokenizerBase, messages: Messages) -> list[int]:
    """Tokens up to where the assistant begins to write."""
    return list(
        _apply(tokenizer, messages, tokenize=True, return_dict=True, add_generation_prompt=True)["input_ids"]
    )


def prompt_and_completion_ids(
    tokenizer: PreTrainedTokenizerBase, prompt: Messages, completion: Messages
) -> tuple[list[int], list[int]]:
    """Split a conversation where the completion begins.

    As in TRL the completion begins where `prompt` and `prompt + completion` diverge, which for a template
    that keeps prefixes is the end of the prompt.
    """
    before = prompt_ids(tokenizer, prompt)
    whole = conversation_ids(tokenizer, [*prompt, *completion])
    shared = 0
    for one, other in zip(before, whole, strict=False):
        if one != other:
            break
        shared += 1
    return whole[:shared], whole[shared:]


def end_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Tokens that end the assistant's turn: EOS, and the special token with which the template closes it.

    They differ for chat models whose tokenizer kept the base model's EOS.
    """
    found = [] if tokenizer.eos_token_id is None else [int(tokenizer.eos_token_id)]
    _, completion = prompt_and_completion_ids(tokenizer, _PROBE, _PROBE_ANSWER)
    special = set(tokenizer.all_special_ids) | set(tokenizer.get_added_vocab().values())
    # White space may follow it, as in ChatML; an answer that follows it says that it opens a turn.
    last = next((token for token in reversed(completion) if str(tokenizer.decode([token])).strip()), None)
    if last is not None and last in special and last not in found:
        found.append(last)
    return found


def closing_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The tokens with which the template closes an assistant's last turn: what all answers end with.

    A reward model is read at the last of them, so what a policy drew is scored as a finished turn once they
    stand at its end, and as an unfinished one without them.
    """
    one, other = (
        prompt_and_completion_ids(tokenizer, _PROBE, answer)[1] for answer in (_PROBE_ANSWER, _OTHER_ANSWER)
    )
    shared = 0
    while shared < min(len(one), len(other)) and one[-1 - shared] == other[-1 - shared]:
        shared += 1
    return one[len(one) - shared :]


def ends_turns(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Does an answer hold a token at which the sampler stops? A policy learns to stop from nothing else."""
    _, completion = prompt_and_completion_ids(tokenizer, _PROBE, _PROBE_ANSWER)
    return not set(end_ids(tokenizer)).isdisjoint(completion)


def template_hash(tokenizer: PreTrainedTokenizerBase) -> str:
    """Fingerprint of how text is rendered: the template and the special tokens that it uses.

    Kept with every model that we save; training and serving under different ones is a known way to get
    nonsense (LLaMA-Factory #8720).
    """
    seen = [tokenizer.chat_template, tokenizer.bos_token, tokenizer.eos_token]
    return hashlib.sha256(json.dumps(seen, ensure_ascii=False).encode()).hexdigest()


def template_problems(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """What makes the template unfit for training, one sentence each; found by rendering a short probe."""
    before = prompt_ids(tokenizer, _PROBE)
    whole = conversation_ids(tokenizer, [*_PROBE, *_PROBE_ANSWER])
    again = conversation_ids(tokenizer, [*_PROBE, *_PROBE_ANSWER, *_PROBE])
    problems = []
    if whole[: len(before)] != before:
        problems.append("The prompt alone is rendered differently from the prompt with an answer.")
    if again[: len(whole)] != whole:
        problems.append("Earlier turns are rendered differently once later turns follow.")
    if not ends_turns(tokenizer):
        problems.append(NEVER_STOPS)
    bos = tokenizer.bos_token_id
    if bos is not None and bos != tokenizer.eos_token_id and whole.count(bos) > 1:
        problems.append(f"A conversation has {whole.count(bos)} BOS tokens instead of one.")
    return problems


def _apply(tokenizer: PreTrainedTokenizerBase, messages: Messages, **options: Any) -> Any:
    try:
        return tokenizer.apply_chat_template([dict(message) for message in messages], **options)
    except TemplateError as error:
        roles = ", ".join(message["role"] for message in messages)
        raise RenderError(f"The chat template refuses turns of {roles}: {error}") from error
