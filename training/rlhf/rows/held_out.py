"""prompts.test.jsonl: the held-out prompts to which a trained policy writes, and those that do not fit it.

Preflight counts them, evaluation uses them, both by the same rule: what does not fit is left out and counted,
never cut, and one odd prompt does not end a run.
"""

from typing import Any, NamedTuple

from transformers import PretrainedConfig, PreTrainedTokenizerBase

from training.rlhf import rendering
from training.rlhf.config import RunConfig
from training.rlhf.failures import Refused
from training.rlhf.model_files import positions
from training.rlhf.rows.door import Message
from training.rlhf.run_dir import RunDir, read_jsonl
from training.rlhf.tuning_kinds import virtual_tokens

MOST = 256  # prompts are written to; more would cost time and narrow the interval little
FILE = "prompts.test.jsonl"


class Prompt(NamedTuple):
    line: int  # in the file, from 0
    messages: list[Message]


class HeldOut(NamedTuple):
    prompts: list[Prompt]
    too_long: int
    refused: int  # by the chat template
    longest: int  # tokens, of all that can be rendered
    tokens: int  # of those that are kept
    limit: int

    @property
    def dropped(self) -> int:
        return self.too_long + self.refused


def limit_of(config: RunConfig, model_config: PretrainedConfig) -> int:
    """Tokens that a prompt may have: as in training, and so that the longest completion has room after it."""
    room = positions(model_config) - virtual_tokens.room(config.tuning) - config.sampling.max_new_tokens
    return min(room, config.training.max_length)


def read(
    run_dir: RunDir, config: RunConfig, tokenizer: PreTrainedTokenizerBase, model_config: PretrainedConfig
) -> HeldOut:
    """All prompts that fit, in the file's order. Raises Refused for a line that is no prompt."""
    limit = limit_of(config, model_config)
    kept, lengths, refused = [], [], 0
    for line, row in enumerate(_rows(run_dir)):
        prompt = Prompt(line, _messages(row, line))
        try:
            length = len(rendering.prompt_ids(tokenizer, prompt.messages))
        except rendering.RenderError:
            refused += 1
            continue
        lengths.append(length)
        if length <= limit:
            kept.append(prompt)
    return HeldOut(
        prompts=kept,
        too_long=len(lengths) - len(kept),
        refused=refused,
        longest=max(lengths, default=0),
        tokens=sum(length for length in lengths if length <= limit),
        limit=limit,
    )


def _rows(run_dir: RunDir) -> list[Any]:
    try:
        return list(read_jsonl(run_dir.data / FILE))
    except ValueError as error:
        raise Refused(f"A line is not JSON: {error}.", FILE, "Write the file again.") from error


def _messages(row: Any, line: int) -> list[Message]:
    turns: Any = row.get("prompt") if isinstance(row, dict) else None
    whole = isinstance(turns, list) and bool(turns)
    for turn in turns if whole else []:
        fields = [turn.get(name) for name in ("role", "content")] if isinstance(turn, dict) else [None]
        whole = whole and all(isinstance(field, str) for field in fields)
    if not whole:
        raise Refused(
            "Expected a prompt: a list of messages, each with a role and a content.",
            f"{FILE}, line {line + 1}",
            "Correct the row.",
        )
    return [{"role": turn["role"], "content": turn["content"]} for turn in turns]
