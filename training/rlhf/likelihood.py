"""What SFT and continued pretraining share: a policy learns to find given tokens likely.

TRL's SFT trainer over rows that we tokenised. The loss is the mean of -log p over all learnt tokens of a
step, however they are spread over its batches (transformers #34191), as in TRL; where all weights are 1 the
losses are TRL's own (tests/training_rlhf/test_sft.py). Log-probabilities are in nats.
"""

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from datasets import Dataset
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

from training.rlhf import scoring
from training.rlhf.config import RunConfig
from training.rlhf.fitting import Checkpointed, settings
from training.rlhf.losses.preference_loss import mean_over_elements
from training.rlhf.run_dir import RunDir
from training.rlhf.tuning import make_ready, peft_config, prepare

IGNORED = -100  # a label that is not learnt


class Labelled(NamedTuple):
    """Tokens of which all from number `start` on are learnt; the first of all has nothing to be told from."""

    ids: list[int]
    start: int = 0
    weight: float = 1.0

    @property
    def learnt(self) -> int:
        return len(self.ids) - max(self.start, 1)


@dataclass
class LabelledCollator:
    """A batch of labelled rows, padded on the right; it counts as many elements as tokens that are learnt."""

    pad_token_id: int

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        input_ids, attention_mask = scoring.padded([row["ids"] for row in rows], pad_id=self.pad_token_id)
        labels = input_ids.masked_fill(attention_mask == 0, IGNORED)
        for place, row in enumerate(rows):
            labels[place, : row["start"]] = IGNORED
        return {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "labels": labels,
            "weight": torch.tensor([row["weight"] for row in rows]),
            "elements": int((labels[:, 1:] != IGNORED).sum()),
        }


class LikelihoodTrainer(Checkpointed, SFTTrainer):
    """SFTTrainer whose rows have weights: one of weight 1/2 pulls half as hard with each of its tokens."""

    held_out: tuple[float, int] = (0.0, 0)  # nats and tokens of the evaluation under way

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        outputs = model(
            input_ids=inputs["input_ids"],
            attention_mask=inputs["attention_mask"],
            labels=inputs["labels"],
            fused_lm_head=True,
            use_cache=False,
        )
        nats = -outputs.log_probs.sum(dim=1)  # (rows,): 0 where nothing is learnt
        tokens = self.divisor(inputs, training=model.training)
        loss = mean_over_elements(nats, weight=inputs["weight"], elements=max(tokens, 1))
        self._note(inputs, outputs, nats=nats, training=model.training)
        return (loss, outputs) if return_outputs else loss

    @torch.no_grad()
    def _note(self, inputs: dict[str, Any], outputs: Any, *, nats: Tensor, training: bool) -> None:
        """TRL's metrics under TRL's names, fetched from the device at once."""
        learnt = max(inputs["elements"], 1)
        values = [outputs.entropy.sum(), outputs.is_top1.sum(), nats.sum(), inputs["attention_mask"].sum()]
        entropy, right, lost, read = torch.stack([value.float() for value in values]).tolist()
        mode = "train" if training else "eval"
        self._metrics[mode]["entropy"].append(entropy / learnt)
        self._metrics[mode]["mean_token_accuracy"].append(right / learnt)
        if training:
            self._total_train_tokens += int(read)
        else:
            self.held_out = (self.held_out[0] + lost, self.held_out[1] + inputs["elements"])
        self._metrics[mode]["num_tokens"] = [self._total_train_tokens]

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """`eval_loss` is TRL's, a mean over batches; the perplexity is that of all held-out tokens."""
        nats, tokens = self.held_out
        if tokens and "eval_loss" in logs:
            logs["eval_perplexity"] = math.exp(min(nats / tokens, 700.0))
            self.held_out = (0.0, 0)
        super().log(logs, start_time)


def trainer_of(
    *,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    train: list[Labelled],
    test: list[Labelled],
    config: RunConfig,
    run_dir: RunDir,
) -> LikelihoodTrainer:
    arguments = SFTConfig(
        **settings(config.training, seed=config.seed, output_dir=run_dir.checkpoints, tuning=config.tuning),
        max_length=None,
        dataset_kwargs={"skip_prepare_dataset": True},  # tokenised by us, and nothing too long is left in it
        remove_unused_columns=False,  # none is unused, and TRL does not know all
    )
    prepare(model, config)
    trainer = LikelihoodTrainer(
        model=model,
        args=arguments,
        train_dataset=_dataset(train),
        eval_dataset=_dataset(test) if test else None,
        processing_class=tokenizer,
        data_collator=LabelledCollator(pad_token_id=int(tokenizer.pad_token_id)),
        peft_config=peft_config(config, task="CAUSAL_LM"),
    )
    make_ready(trainer.model, config)
    return trainer


def _dataset(rows: list[Labelled]) -> Dataset:
    return Dataset.from_list([row._asdict() | {"length": len(row.ids)} for row in rows])
