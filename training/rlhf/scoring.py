"""Reward models score conversations; their canaries show when one is not read as it was trained.

A reward model is a sequence classifier with one output, read at the conversation's last token (an encoder at
its first, which sees the whole text). Where that is follows from the rendering, so scores always come from
here: a model trained at one token and read at the one before it gave a margin of 0.03 instead of 6.8.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from training.rlhf import rendering, run_dir
from training.rlhf.model_files import is_encoder, positions
from training.rlhf.progress import raise_if_stopped
from training.rlhf.tuning_kinds import virtual_tokens

CANARIES = "canaries.json"
_TOLERANCE = 0.02  # other kernels and bf16 storage move a score by less; another reading point by far more
_QUESTION = "Tell me a story about a fox and a lantern."
_CANARY_ANSWERS = (
    "Once upon a time a fox found a lantern. The fox gave it to an old owl. They lived happily ever after.",
    "Once upon a time a fox found a lantern. The fox broke it and ran away.",
    "no",
    "An answer in other letters: äöü, 你好, Ω.",
)


class CanaryMismatch(Exception):
    """A reward model no longer gives the scores that it was saved with; the message shows the widest gap."""


def reward_scores(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    conversations: Sequence[rendering.Messages],
    *,
    batch_size: int = 32,
) -> list[float]:
    """One score for each conversation (prompt and answer together), in order."""
    rows = [rendering.conversation_ids(tokenizer, messages) for messages in conversations]
    return scores_of_tokens(model, rows, pad_id=int(tokenizer.pad_token_id), batch_size=batch_size)


@torch.inference_mode()
def scores_of_tokens(
    model: PreTrainedModel, rows: Sequence[Sequence[int]], *, pad_id: int, batch_size: int = 32
) -> list[float]:
    """One score for each row of token ids, read at its end. Longest first, to pad little.

    A row over the model's positions loses its oldest tokens, as the score is read at the end; but for an
    encoder not the very first, where its score is read.
    Raises Cancelled between two batches when a stop was asked for.
    """
    limit = positions(model.config) - virtual_tokens.count(model)
    kept = int(is_encoder(model.config))
    rows = [row if len(row) <= limit else [*row[:kept], *row[kept - limit :]] for row in rows]
    order = sorted(range(len(rows)), key=lambda index: -len(rows[index]))
    scores = [0.0] * len(rows)
    for start in range(0, len(order), batch_size):
        raise_if_stopped()
        batch = order[start : start + batch_size]
        ids, mask = padded([rows[index] for index in batch], pad_id=pad_id)
        logits = model(input_ids=ids.to(model.device), attention_mask=mask.to(model.device)).logits
        for index, score in zip(batch, logits[:, 0].float().tolist(), strict=True):
            scores[index] = score
    return scores


@torch.inference_mode()
def completion_logprobs(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    completions: Sequence[Sequence[int]],
    *,
    pad_id: int,
    batch_size: int = 32,
    temperature: float = 1.0,
) -> list[torch.Tensor]:
    """Log-probability of each token of each completion after its prompt: one tensor [tokens] for each.

    At a temperature, but of the whole distribution: they say nothing of what was drawn with top-p below 1 or
    greedily. Raises Cancelled between two batches when a stop was asked for.
    """
    rows = [[*prompt, *completion] for prompt, completion in zip(prompts, completions, strict=True)]
    order = sorted(range(len(rows)), key=lambda index: -len(rows[index]))
    found: dict[int, torch.Tensor] = {}
    for start in range(0, len(order), batch_size):
        raise_if_stopped()
        batch = order[start : start + batch_size]
        ids, mask = padded([rows[index] for index in batch], pad_id=pad_id)
        ids, mask = ids.to(model.device), mask.to(model.device)
        # No prompt of the batch is shorter, so logits before it would be wasted: a large vocabulary is wide.
        first = min(len(prompts[index]) for index in batch)
        keep = ids.shape[1] - first + 1
        logits = model(input_ids=ids, attention_mask=mask, logits_to_keep=keep).logits
        for place, index in enumerate(batch):  # row by row: fp32 of a whole batch may not fit
            begin, tokens = len(prompts[index]) - first, len(completions[index])
            row = logits[place, begin : begin + tokens].float() / temperature  # [tokens, vocabulary]
            chosen = row.gather(1, ids[place, first + begin :][:tokens, None])[:, 0]
            found[index] = (chosen - row.logsumexp(dim=-1)).cpu()
    return [found[index] for index in range(len(rows))]


def padded(
    rows: Sequence[Sequence[int]], *, pad_id: int, left: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and attention mask, both [rows, longest]; padded on the right unless `left`."""
    longest = max(map(len, rows))
    ids = torch.full((len(rows), longest), pad_id)
    mask = torch.zeros((len(rows), longest), dtype=torch.long)
    for place, row in enumerate(rows):
        span = slice(longest - len(row), longest) if left else slice(0, len(row))
        ids[place, span] = torch.tensor(row)
        mask[place, span] = 1
    return ids, mask


def write_canaries(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, folder: Path) -> None:
    """Store with a trained reward model what it says of fixed conversations, and how they were rendered."""
    conversations = _canaries()
    run_dir.write_json(
        folder / CANARIES,
        {
            "template_hash": rendering.template_hash(tokenizer),
            "texts": [rendering.render_conversation(tokenizer, messages) for messages in conversations],
            "scores": reward_scores(model, tokenizer, conversations),
        },
    )


def check_canaries(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, folder: Path) -> None:
    """Raise CanaryMismatch when the model scores or reads its canaries otherwise than when it was saved.

    A model that was saved without canaries (a foreign one) passes.
    """
    path = folder / CANARIES
    if not path.exists():
        return
    saved = json.loads(path.read_text(encoding="utf-8"))
    if saved["template_hash"] != rendering.template_hash(tokenizer):
        raise CanaryMismatch("The chat template is not the one that the reward model was trained with.")
    now = reward_scores(model, tokenizer, _canaries())
    spread = max(saved["scores"]) - min(saved["scores"])
    for text, before, after in zip(saved["texts"], saved["scores"], now, strict=True):
        if not abs(before - after) <= _TOLERANCE * (1 + spread):
            raise CanaryMismatch(
                f"The reward of {text[:60]!r} was {before:.4f} when saved and is {after:.4f}."
            )


def _canaries() -> list[list[dict[str, str]]]:
    question = {"role": "user", "content": _QUESTION}
    return [[question, {"role": "assistant", "content": answer}] for answer in _CANARY_ANSWERS]
