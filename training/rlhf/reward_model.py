"""The reward model: a scalar head on a policy's body, trained on pairs and rankings together.

TRL's trainer knows pairs with a margin. Here one element of a batch may also be a ranking of K completions:
all C(K, 2) comparisons are read in one forward pass of K texts and count as one element (InstructGPT,
2203.02155, section 3.5). Comparisons carry margin, weight and a soft label (a tie is 0.5). Where all of that
is neutral, the losses are TRL's own (tests/training_rlhf/test_reward_model.py).

The score is read at the last token of the same rendering that scores and RL read (training.rlhf.scoring).
"""

from dataclasses import dataclass
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from trl.trainer.reward_config import RewardConfig
from trl.trainer.reward_trainer import RewardTrainer

from training.rlhf import rendering, scoring
from training.rlhf.config import RunConfig
from training.rlhf.data import Comparison, Element, Split, read_pairs, read_rankings, without_pairs_of
from training.rlhf.fitting import Checkpointed, settings
from training.rlhf.preference_loss import comparison_loss, mean_over_elements, share_above
from training.rlhf.row_checks import comparison_errors
from training.rlhf.run_dir import RunDir, RunError
from training.rlhf.tuning import make_ready, peft_config, prepare, without_dropout


def tables(run_dir: RunDir, config: RunConfig, split: Split) -> dict[str, list[Element]]:
    """A dataset lists the pairs of its rankings as pairs too: those are read once, as rankings."""
    pairs = read_pairs(run_dir.data / f"pairs.{split}.jsonl")
    rankings = read_rankings(run_dir.data / f"rankings.{split}.jsonl")
    return {"pairs": without_pairs_of(rankings, pairs), "rankings": rankings}


def errors(train: list[Element], *, config: RunConfig, where: str) -> list[RunError]:
    return comparison_errors(train, where=where)


def tokenized(elements: list[Element], tokenizer: PreTrainedTokenizerBase, *, use_margin: bool) -> Dataset:
    """Rows for the trainer: the tokens of each conversation, and the columns of the comparisons."""
    return Dataset.from_list([_row(element, tokenizer, use_margin=use_margin) for element in elements])


def _row(element: Element, tokenizer: PreTrainedTokenizerBase, *, use_margin: bool) -> dict[str, Any]:
    messages = [element.conversation(number) for number in range(len(element.completions))]
    conversations = [rendering.conversation_ids(tokenizer, one) for one in messages]
    said = element.comparisons
    return {
        "conversations": conversations,
        "length": max(map(len, conversations)),
        "chosen": [one.chosen for one in said],
        "rejected": [one.rejected for one in said],
        "margin": [one.margin if use_margin else 0.0 for one in said],
        "weight": [one.weight for one in said],
        "p": [one.p for one in said],
    }


@dataclass
class ElementCollator:
    """A batch: all conversations of all elements, and comparisons that point at them by number."""

    pad_token_id: int

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        conversations = [ids for row in rows for ids in row["conversations"]]
        input_ids, attention_mask = scoring.padded(conversations, pad_id=self.pad_token_id)
        comparisons: list[Comparison] = []
        first = 0  # number of the element's first conversation in the batch
        for row in rows:
            for chosen, rejected, margin, weight, p in zip(
                *(row[name] for name in Comparison._fields), strict=True
            ):
                comparisons.append(Comparison(first + chosen, first + rejected, margin, weight, p))
            first += len(row["conversations"])
        return {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "elements": len(rows),
        } | {name: torch.tensor([getattr(one, name) for one in comparisons]) for name in Comparison._fields}


class ComparisonTrainer(Checkpointed, RewardTrainer):
    """RewardTrainer over elements of any number of completions."""

    def _prepare_dataset(self, dataset: Dataset, *args: Any) -> Dataset:
        return dataset  # tokenized by us, and nothing too long is left in it

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        outputs = model(
            input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], use_cache=False
        )
        scores = outputs.logits[:, 0].float()  # (conversations,)
        difference = scores[inputs["chosen"]] - scores[inputs["rejected"]]  # (comparisons,)
        losses = comparison_loss(difference, margin=inputs["margin"], p=inputs["p"])
        elements = self.divisor(inputs, training=model.training)
        loss = mean_over_elements(losses, weight=inputs["weight"], elements=elements)
        self._note(inputs, scores=scores, difference=difference, training=model.training)
        return (loss, outputs) if return_outputs else loss

    @torch.no_grad()
    def _note(self, inputs: dict[str, Any], *, scores: Tensor, difference: Tensor, training: bool) -> None:
        """TRL's metrics under TRL's names, fetched from the device at once."""
        values = {
            "min_reward": scores.min(),
            "mean_reward": scores.mean(),
            "max_reward": scores.max(),
            "accuracy": share_above(difference, p=inputs["p"]),
            "margin": difference.mean(),
        }
        *numbers, tokens = torch.stack([*values.values(), inputs["attention_mask"].sum()]).tolist()
        mode = "train" if training else "eval"
        for name, number in zip(values, numbers, strict=True):
            if number == number:  # nan: nothing but ties in this batch
                self._metrics[mode][name].append(number)
        self._total_train_tokens += int(tokens) if mode == "train" else 0
        self._metrics[mode]["num_tokens"] = [self._total_train_tokens]


def make_trainer(
    *,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    train: list[Element],
    test: list[Element],
    config: RunConfig,
    run_dir: RunDir,
) -> ComparisonTrainer:
    training = config.training
    arguments = RewardConfig(
        **settings(training, seed=config.seed, output_dir=run_dir.checkpoints, tuning=config.tuning),
        max_length=None,
        remove_unused_columns=False,  # none is unused, and TRL does not know all
    )
    without_dropout(model)
    prepare(model, config)
    trainer = ComparisonTrainer(
        model=model,
        args=arguments,
        train_dataset=tokenized(train, tokenizer, use_margin=config.reward_learning.use_margin),
        eval_dataset=tokenized(test, tokenizer, use_margin=config.reward_learning.use_margin)
        if test
        else None,
        processing_class=tokenizer,
        data_collator=ElementCollator(pad_token_id=int(tokenizer.pad_token_id)),
        peft_config=peft_config(config, task="SEQ_CLS"),
    )
    make_ready(trainer.model, config)
    return trainer
