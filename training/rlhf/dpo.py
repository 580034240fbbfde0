"""DPO: a policy learns from pairs directly, without a reward model in between (2305.18290).

TRL's trainer, with what people said about each pair: how strongly they preferred (a margin inside the
sigmoid, 2402.10571), how much the row counts (a weight), and how sure they are (a soft label; a tie is 0.5).
On request a negative log-likelihood on the chosen completion keeps its probability from falling (2404.19733,
equation 1). Where all of that is neutral, the losses are TRL's own (tests/training_rlhf/test_dpo.py). Other
losses than the sigmoid read margin and label as training.rlhf.losses.preference_loss says.

The reference's log-probabilities are computed once, before training: 6 instead of 8 operations for a
parameter and token in each further epoch, and no second model in memory.
"""

from dataclasses import dataclass
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from trl.trainer.dpo_config import DPOConfig
from trl.trainer.dpo_trainer import DataCollatorForPreference, DPOTrainer

from training.rlhf import rendering
from training.rlhf.config import RunConfig
from training.rlhf.data import Element, Split, read_pairs
from training.rlhf.fitting import Checkpointed, settings
from training.rlhf.losses.preference_loss import (
    comparison_loss,
    hinge_loss,
    implicit_rewards,
    ipo_loss,
    mean_over_elements,
    negative_log_likelihood,
    robust_loss,
    share_above,
)
from training.rlhf.method_settings import Dpo
from training.rlhf.reference import ReferenceFirst
from training.rlhf.rows.row_checks import comparison_errors
from training.rlhf.run_dir import RunDir, RunError
from training.rlhf.tuning import make_ready, peft_config, prepare, without_dropout

WHILE_MADE = "Computing the reference's log-probabilities"
_SAID = ("margin", "weight", "p")  # what people said about a pair, beside its tokens


def tables(run_dir: RunDir, config: RunConfig, split: Split) -> dict[str, list[Element]]:
    return {"pairs": read_pairs(run_dir.data / f"pairs.{split}.jsonl")}


def errors(train: list[Element], *, config: RunConfig, where: str) -> list[RunError]:
    return comparison_errors(train, where=where)


def tokenized(elements: list[Element], tokenizer: PreTrainedTokenizerBase, *, use_margin: bool) -> Dataset:
    """Rows for the trainer: the tokens that both conversations begin with, and how each goes on."""
    return Dataset.from_list([_row(element, tokenizer, use_margin=use_margin) for element in elements])


def _row(element: Element, tokenizer: PreTrainedTokenizerBase, *, use_margin: bool) -> dict[str, Any]:
    (said,) = element.comparisons
    before, chosen = rendering.prompt_and_completion_ids(
        tokenizer, element.prompt, element.completions[said.chosen]
    )
    also_before, rejected = rendering.prompt_and_completion_ids(
        tokenizer, element.prompt, element.completions[said.rejected]
    )
    shared = min(len(before), len(also_before))
    return {
        "prompt_ids": before[:shared],
        "chosen_ids": before[shared:] + chosen,
        "rejected_ids": also_before[shared:] + rejected,
        "length": max(len(before) + len(chosen), len(also_before) + len(rejected)),
        "margin": said.margin if use_margin else 0.0,
        "weight": said.weight,
        "p": said.p,
    }


@dataclass
class PairCollator(DataCollatorForPreference):
    """TRL's batch of a pair's tokens, and what people said about each pair."""

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        batch: dict[str, Any] = super().torch_call(examples)
        said = {name: torch.tensor([example[name] for example in examples]) for name in _SAID}
        return batch | said | {"elements": len(examples)}


class PairTrainer(Checkpointed, ReferenceFirst, DPOTrainer):
    """DPOTrainer whose loss knows margin, weight, soft label and an SFT term."""

    def __init__(self, *, own: Dpo, **kwargs: Any) -> None:
        self.own = own
        self.sft_weight = own.sft_weight
        super().__init__(**kwargs)

    def _prepare_dataset(self, dataset: Dataset, *args: Any) -> Dataset:
        return dataset  # tokenized by us, and nothing too long is left in it

    def compute_ref_log_probs(self, model: Any, inputs: dict[str, Any]) -> Any:
        tokens = {name: value for name, value in inputs.items() if name not in (*_SAID, "elements")}
        return super().compute_ref_log_probs(model, tokens)  # type: ignore[no-untyped-call]

    def _compute_loss(self, model: Any, inputs: dict[str, Any], return_outputs: bool) -> Any:
        mask = inputs["completion_mask"]  # (2 * pairs, tokens), chosen first
        outputs = model(
            input_ids=inputs["input_ids"],
            attention_mask=inputs["attention_mask"],
            labels=inputs["input_ids"].masked_fill(mask == 0, -100),
            fused_lm_head=True,
            use_cache=False,
        )
        # (2 * pairs, tokens - 1), 0 where the mask is; what virtual tokens before the text put out is cut off
        token_logps = outputs.log_probs[:, 1 - mask.shape[1] :]
        logps = token_logps.sum(dim=1)
        reference = torch.cat([inputs["ref_chosen_logps"], inputs["ref_rejected_logps"]])
        rewards = implicit_rewards(logps, reference_logps=reference, beta=self.beta)
        losses = self._losses(rewards, tokens=mask.sum(dim=1), margin=inputs["margin"], p=inputs["p"])
        elements = self.divisor(inputs, training=model.training)
        loss = mean_over_elements(losses, weight=inputs["weight"], elements=elements)
        if self.sft_weight:
            decided = (inputs["p"] > 0.5)[:, None]  # a tie has no chosen completion to imitate
            liked = mask[: len(losses), 1:] * decided
            imitated = negative_log_likelihood(
                token_logps[: len(losses)], mask=liked, weight=inputs["weight"]
            )
            loss = loss + self.sft_weight * imitated * (len(losses) / elements)
        self._note(inputs, rewards=rewards, logps=logps, training=model.training)
        return (loss, outputs) if return_outputs else loss

    def _losses(self, rewards: Tensor, *, tokens: Tensor, margin: Tensor, p: Tensor) -> Tensor:
        """Shapes: (2 * pairs,) of rewards and tokens, chosen first, and (pairs,)."""
        if self.own.loss == "ipo":  # per token; the margin is that of whole completions, spread over them
            margin = margin / tokens.view(2, -1).float().mean(dim=0).clamp(min=1)
            rewards = rewards / tokens.clamp(min=1)
        chosen, rejected = rewards.chunk(2)
        difference = chosen - rejected
        if self.own.loss == "ipo":
            return ipo_loss(difference, margin=margin, p=p, beta=self.own.beta)
        if self.own.loss == "hinge":
            return hinge_loss(difference, margin=margin, p=p)
        if self.own.loss == "robust":
            return robust_loss(difference, margin=margin, p=p, flipped=self.own.label_smoothing)
        return comparison_loss(difference, margin=margin, p=p)

    @torch.no_grad()
    def _note(self, inputs: dict[str, Any], *, rewards: Tensor, logps: Tensor, training: bool) -> None:
        """TRL's metrics under TRL's names, fetched from the device at once."""
        chosen, rejected = rewards.chunk(2)
        chosen_logps, rejected_logps = logps.chunk(2)
        values = {
            "rewards/chosen": chosen.mean(),
            "rewards/rejected": rejected.mean(),
            "rewards/accuracies": share_above(chosen - rejected, p=inputs["p"]),
            "rewards/margins": (chosen - rejected).mean(),
            "logps/chosen": chosen_logps.mean(),
            "logps/rejected": rejected_logps.mean(),
        }
        tokens = inputs["attention_mask"].sum()
        *numbers, count = torch.stack([*values.values(), tokens]).tolist()
        mode = "train" if training else "eval"
        for name, number in zip(values, numbers, strict=True):
            if number == number:  # nan: nothing but ties in this batch
                self._metrics[mode][name].append(number)
        self._total_train_tokens += int(count) if mode == "train" else 0
        self._metrics[mode]["num_tokens"] = [self._total_train_tokens]


def make_trainer(
    *,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    train: list[Element],
    test: list[Element],
    config: RunConfig,
    run_dir: RunDir,
) -> PairTrainer:
    """A trainer over the model as it is now, which is also the reference."""
    training = config.training
    arguments = DPOConfig(
        **settings(training, seed=config.seed, output_dir=run_dir.checkpoints, tuning=config.tuning),
        beta=config.dpo.beta,
        max_length=None,
        precompute_ref_log_probs=True,
        remove_unused_columns=False,  # none is unused, and TRL does not know all
    )
    without_dropout(model)
    prepare(model, config)
    trainer = PairTrainer(
        own=config.dpo,
        model=model,
        args=arguments,
        train_dataset=tokenized(train, tokenizer, use_margin=config.dpo.use_margin),
        eval_dataset=tokenized(test, tokenizer, use_margin=config.dpo.use_margin) if test else None,
        processing_class=tokenizer,
        data_collator=PairCollator(pad_token_id=tokenizer.pad_token_id),
        peft_config=peft_config(config, task="CAUSAL_LM"),
    )
    make_ready(trainer.model, config)
    return trainer
