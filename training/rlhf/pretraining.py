"""Continued pretraining: a policy reads the texts of a field before it learns to answer (2004.10964).

All texts are joined, with EOS after each, and cut into blocks of `max_length` tokens; every token is learnt.
Nothing is padded but the last block, and nothing is left out. A token may see the end of the text before its
own, as in GPT-3 (2005.14165, appendix B): EOS tells that it does not belong.
"""

from collections.abc import Iterable

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from training.rlhf import rendering
from training.rlhf.checks.estimate import length_limit
from training.rlhf.config import RunConfig
from training.rlhf.data import Split
from training.rlhf.likelihood import Labelled, LikelihoodTrainer, trainer_of
from training.rlhf.rows.single_rows import TextRow, read_texts
from training.rlhf.run_dir import RunDir


def tables(run_dir: RunDir, config: RunConfig, split: Split) -> dict[str, list[TextRow]]:
    return {"texts": read_texts(run_dir.data / f"texts.{split}.jsonl")}


def blocks(rows: Iterable[TextRow], tokenizer: PreTrainedTokenizerBase, *, length: int) -> list[Labelled]:
    """What a batch counts as one: `length` tokens of one text after the other, the last one fewer."""
    ids = [token for row in rows for token in rendering.text_ids(tokenizer, row.text)]
    cut = [Labelled(ids[start : start + length]) for start in range(0, len(ids), length)]
    return [block for block in cut if block.learnt > 0]


def make_trainer(
    *,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    train: list[TextRow],
    test: list[TextRow],
    config: RunConfig,
    run_dir: RunDir,
) -> LikelihoodTrainer:
    length = length_limit(config, model.config)
    return trainer_of(
        model=model,
        tokenizer=tokenizer,
        train=blocks(train, tokenizer, length=length),
        test=blocks(test, tokenizer, length=length),
        config=config,
        run_dir=run_dir,
    )
