"""How well a policy foretells what it did not learn from: nats for a token, and perplexity.

Of a demonstration the completion is foretold, after its prompt; of a text every token but the first of each
stretch that the model reads at once. A mean over tokens, so that a long row counts for more than a short one.
"""

import math
from collections.abc import Sequence
from typing import TypedDict

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from training.rlhf import scoring
from training.rlhf.likelihood import Labelled
from training.rlhf.model_files import positions
from training.rlhf.pretraining import blocks
from training.rlhf.rows.single_rows import Demonstration, TextRow
from training.rlhf.sft import labelled


class Perplexity(TypedDict):
    """Figures as evaluation.json holds them; `low` and `high` are a 95 % interval of `nats_per_token`.

    The perplexity is e to the nats for a token: of how many tokens, all as likely, the next one seems drawn.
    """

    nats_per_token: float
    low: float | None  # null: fewer than two rows tell nothing of how rows differ
    high: float | None
    perplexity: float
    tokens: int
    rows: int


def perplexity(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Demonstration | TextRow],
    *,
    batch_size: int = 32,
) -> Perplexity | None:
    """Figures of all rows together; None where there is nothing to foretell.

    A demonstration that exceeds the model's positions is left out, as in training. Raises Cancelled between
    two batches when a stop was asked for.
    """
    limit = positions(model.config)
    parts: list[tuple[int, Labelled]] = []  # number of the row, and what is read of it at once
    for number, row in enumerate(rows):
        if isinstance(row, TextRow):
            parts += [(number, block) for block in blocks([row], tokenizer, length=limit)]
        else:
            parts += [(number, one) for one in labelled([row], tokenizer) if len(one.ids) <= limit]
    logps = scoring.completion_logprobs(
        model,
        [part.ids[: max(part.start, 1)] for _, part in parts],
        [part.ids[max(part.start, 1) :] for _, part in parts],
        pad_id=int(tokenizer.pad_token_id),
        batch_size=batch_size,
    )
    cost: dict[int, tuple[float, int]] = {}  # nats and tokens of each row
    for (number, _), found in zip(parts, logps, strict=True):
        nats, tokens = cost.get(number, (0.0, 0))
        cost[number] = (nats - float(found.sum()), tokens + len(found))
    return figures(list(cost.values()))


def figures(cost: Sequence[tuple[float, int]]) -> Perplexity | None:
    """Of rows' nats and tokens. Rows differ and their tokens belong together, so the interval is over rows:
    that of a ratio of two means (Cochran, "Sampling Techniques", section 6.4).

    >>> round(figures([(math.log(2), 1), (3 * math.log(2), 3)])["perplexity"], 6)
    2.0
    """
    tokens = sum(count for _, count in cost)
    if not tokens:
        return None
    mean = sum(nats for nats, _ in cost) / tokens
    low = high = None
    if len(cost) > 1:
        spread = sum((nats - mean * count) ** 2 for nats, count in cost) * len(cost) / (len(cost) - 1)
        low, high = (mean + sign * 1.96 * math.sqrt(spread) / tokens for sign in (-1, 1))
    return Perplexity(
        nats_per_token=mean,
        low=low,
        high=high,
        perplexity=math.exp(min(mean, 700.0)),  # more is no number any more,
        tokens=tokens,
        rows=len(cost),
    )
