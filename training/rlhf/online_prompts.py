"""The prompts that an online method writes to while it learns: those that leave room for a completion."""

import math

from transformers import PretrainedConfig, PreTrainedTokenizerBase

from training.rlhf import rendering
from training.rlhf.config import RunConfig
from training.rlhf.failures import Refused
from training.rlhf.model_files import positions
from training.rlhf.rows import held_out
from training.rlhf.rows.door import Message
from training.rlhf.rows.single_rows import PromptRow, read_prompts
from training.rlhf.run_dir import RunDir


def usable(
    run_dir: RunDir, config: RunConfig, tokenizer: PreTrainedTokenizerBase, model_config: PretrainedConfig
) -> tuple[list[PromptRow], dict[str, dict[str, int]]]:
    """Training prompts that leave room for a completion, and how many of each split are kept and dropped.

    What the chat template refuses is dropped as well. Raises Refused when none is left.
    """
    path = run_dir.data / "prompts.train.jsonl"
    limit = min(config.training.max_length, positions(model_config)) - config.sampling.max_new_tokens
    found = read_prompts(path)
    kept = [row for row in found if _length(tokenizer, row.prompt) <= limit]
    if not kept:
        raise Refused(
            f"No prompt is left to write to; {len(found)} are longer than {limit} tokens or do not suit the "
            "chat template." if found else "There is no prompt to write to.",
            str(path),
            "Raise max_length or lower max_new_tokens, or freeze a dataset that holds prompts.",
        )  # fmt: skip
    test = held_out.read(run_dir, config, tokenizer, model_config)
    return kept, {
        "train": {"kept": len(kept), "dropped": len(found) - len(kept)},
        "test": {"kept": len(test.prompts), "dropped": test.dropped},
    }


def _length(tokenizer: PreTrainedTokenizerBase, prompt: list[Message]) -> float:
    try:
        return len(rendering.prompt_ids(tokenizer, prompt))
    except rendering.RenderError:
        return math.inf
