"""How much a run reads and writes: rows, tokens and operations of a step, by method. For the estimate alone.

Operations for a parameter and token are those of lessons-training.md: 2 to read or to write one, 6 to learn
from it. A method that draws writes as much as it may: nobody knows beforehand where a completion ends.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import ceil

from training.rlhf.config import RunConfig
from training.rlhf.data import Row
from training.rlhf.methods import METHODS
from training.rlhf.rows.door import Message
from training.rlhf.rows.single_rows import TextRow

READING = 2  # operations for a parameter and token: the reference, held-out rows, sampling


@dataclass(frozen=True)
class Workload:
    """`lengths`: tokens of each text of each row. `rows`: of an epoch, of which a step takes `at_once`.

    `extra`: operations for a parameter and token beside those of learning from it.
    """

    lengths: list[list[int]]
    rows: int
    at_once: int
    extra: float = 0.0


def lengths_of(
    rows: Sequence[Row], count_tokens: Callable[[list[Message]], int], *, block: int
) -> list[list[int]]:
    """Tokens of each text of each row; texts that are joined count as the blocks that they are cut into."""
    joined = [
        count_tokens([{"role": "user", "content": row.text}]) for row in rows if isinstance(row, TextRow)
    ]
    blocks = [[block]] * ceil(sum(joined) / block)
    read = [row.conversations() for row in rows]
    return blocks + [[count_tokens(one) for one in conversations] for conversations in read if conversations]


def of(config: RunConfig, lengths: list[list[int]]) -> Workload:
    """What an epoch over rows of these lengths is."""
    at_once = config.training.batch_size * config.training.gradient_accumulation
    if not METHODS[config.method].draws:
        return Workload(lengths, len(lengths), at_once)
    new = config.sampling.max_new_tokens
    whole = [[tokens + new for tokens in row] for row in lengths]
    match config.method:
        case "ppo":  # (8 + 12 E) N: written, read by four models, and learnt E times by two
            return Workload(whole, len(lengths), config.ppo.rollout_size, 2 + 12 * config.ppo.epochs)
        case "rloo":
            return Workload(whole, len(lengths) * config.rloo.completions_per_prompt, at_once, 3 * READING)
        case "grpo":
            return Workload(whole, len(lengths) * config.grpo.completions_per_prompt, at_once, 3 * READING)
        case "rejection_sampling":
            drawn = config.rejection_sampling.completions_per_prompt
            return Workload(whole, len(lengths), at_once, 2 * READING * drawn)
        case _:
            return Workload(whole, len(lengths), at_once, 2 * READING)
