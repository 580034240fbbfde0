"""KTO: a policy learns from single completions that people found good or bad (2402.01306).

TRL's trainer, with the weight of each row. Where all rows weigh alike the losses are TRL's own
(tests/training_rlhf/test_kto.py).

How far the policy has moved anyway is estimated from mismatched completions: each prompt of a batch with the
completion of the row before it. Their reference is computed once, like that of the rows, so rows keep their
neighbours: they are put in an order by the seed once, and come in it in every epoch.
"""

import json
import random
from dataclasses import dataclass
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from trl.trainer.kto_config import KTOConfig
from trl.trainer.kto_trainer import DataCollatorForUnpairedPreference, KTOTrainer

from training.rlhf import rendering
from training.rlhf.checks.estimate import length_limit
from training.rlhf.config import RunConfig
from training.rlhf.data import Split
from training.rlhf.failures import Refused
from training.rlhf.fitting import Checkpointed, GroupedByLength, settings
from training.rlhf.losses.preference_loss import mean_over_elements
from training.rlhf.losses.unpaired_loss import kl_estimate, kto_loss
from training.rlhf.method_settings import Kto
from training.rlhf.reference import ReferenceFirst
from training.rlhf.reward_kinds.verdicts import Verdicts, verdicts
from training.rlhf.rows.single_rows import Unpaired, read_ratings, read_unpaired
from training.rlhf.run_dir import RunDir, RunError
from training.rlhf.tuning import make_ready, peft_config, prepare, without_dropout

WHILE_MADE = "Computing the reference's log-probabilities"
MOST_GOOD = 4 / 3  # of what good completions weigh, to 1 of what bad ones do; at least 1 (equation 8)


def tables(run_dir: RunDir, config: RunConfig, split: Split) -> dict[str, list[Unpaired]]:
    """Completions that were called good or bad, and those of which ratings say so, each once."""
    return {"unpaired": _unpaired(run_dir, split), "ratings": _rated(run_dir, config, split).rows}


def errors(train: list[Unpaired], *, config: RunConfig, where: str) -> list[RunError]:
    """What keeps these rows from teaching anything; none for no rows at all."""
    found = []
    good = sum(row.label for row in train)
    if train and good in (0, len(train)):
        found.append(
            RunError(
                what=f"All {len(train)} completions are {'good' if good else 'bad'}: "
                "nothing says what to do instead.",
                where=where,
                do="Judge more tasks, or move kto.good_from and kto.bad_to "
                f"({config.kto.good_from:g} and {config.kto.bad_to:g}).",
            )
        )
    if config.training.batch_size < 2:
        found.append(
            RunError(
                what="KTO compares the rows of a batch with each other, and a batch has only one.",
                where="training.batch_size",
                do="Set batch_size to 2 or more; lower max_length if memory is short.",
            )
        )
    return found


def cautions(run_dir: RunDir, config: RunConfig) -> list[str]:
    """What people should know before the start, a sentence each."""
    between = sum(_rated(run_dir, config, split).between for split in ("train", "test"))
    train = [row for rows in tables(run_dir, config, "train").values() for row in rows]
    good = config.kto.desirable_weight * sum(row.weight for row in train if row.label)
    bad = config.kto.undesirable_weight * sum(row.weight for row in train if not row.label)
    said = []
    if between:
        said.append(
            f"{between} completions were rated between {config.kto.bad_to:g} and {config.kto.good_from:g} "
            "and are left out: they are neither good nor bad."
        )
    if good and bad and not 1 <= round(good / bad, 2) <= round(MOST_GOOD, 2):
        said.append(
            f"Good completions weigh {good / bad:.2f} times what bad ones do; 1 to 1.33 is recommended. "
            f"Multiply kto.desirable_weight by {bad / good:.2f} to {MOST_GOOD * bad / good:.2f}."
        )
    return said


def _unpaired(run_dir: RunDir, split: Split) -> list[Unpaired]:
    return read_unpaired(run_dir.data / f"unpaired.{split}.jsonl")


def _rated(run_dir: RunDir, config: RunConfig, split: Split) -> Verdicts:
    """Of the completions that nobody called good or bad outright."""
    known = {_key(row) for row in _unpaired(run_dir, split)}
    return verdicts(
        (row for row in read_ratings(run_dir.data / f"ratings.{split}.jsonl") if _key(row) not in known),
        good_from=config.kto.good_from,
        bad_to=config.kto.bad_to,
    )


def _key(row: Any) -> str:
    return json.dumps([row.prompt, row.completion], sort_keys=True)


def tokenized(
    rows: list[Unpaired], tokenizer: PreTrainedTokenizerBase, config: RunConfig, *, shuffled: bool
) -> Dataset:
    """Rows for the trainer in the order in which they come, each with the completion of its neighbour."""
    found = [_row(row, tokenizer) for row in rows]
    size = config.training.batch_size
    if shuffled and config.training.group_by_length:
        at_once = size * config.training.gradient_accumulation
        lengths = [row["length"] for row in found]
        found = [found[index] for index in GroupedByLength(lengths, batch_size=at_once, seed=config.seed)]
    elif shuffled:
        random.Random(config.seed).shuffle(found)
    for start in range(0, len(found), size):
        batch = found[start : start + size]
        # A row alone in the last batch would be its own neighbour, and what it gains its own KL.
        before = batch[-1] if len(batch) > 1 else found[start - 1]
        for row in batch:
            row["KL_completion_ids"] = before["completion_ids"]
            before = row
    return Dataset.from_list(found)


def _row(row: Unpaired, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    before, completion = rendering.prompt_and_completion_ids(tokenizer, row.prompt, row.completion)
    return {
        "prompt_ids": before,
        "completion_ids": completion,
        "length": len(before) + len(completion),
        "label": row.label,
        "weight": row.weight,
    }


@dataclass
class VerdictCollator(DataCollatorForUnpairedPreference):
    """TRL's batch, and how much each row counts. A mismatched completion is cut to the run's limit."""

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        batch: dict[str, Any] = super().torch_call(examples)
        weight = torch.tensor([example["weight"] for example in examples])
        return batch | {"weight": weight, "elements": len(examples)}


class VerdictTrainer(Checkpointed, ReferenceFirst, KTOTrainer):
    """KTOTrainer whose rows have weights."""

    def __init__(self, *, own: Kto, **kwargs: Any) -> None:
        self.own = own
        super().__init__(**kwargs)

    def _prepare_dataset(self, dataset: Dataset, *args: Any) -> Dataset:
        return dataset  # tokenized by us, and nothing too long is left in it

    def _compute_loss(self, model: Any, inputs: dict[str, Any], return_outputs: bool) -> Any:
        with torch.no_grad():
            elsewhere, _ = _logps(model, inputs, "KL_")
            kl = kl_estimate(elsewhere - inputs["ref_KL_logps"])
        logps, outputs = _logps(model, inputs, "")  # (rows,)
        is_good = inputs["label"]
        log_ratio = logps - inputs["ref_logps"]
        losses = kto_loss(log_ratio, kl=kl, is_good=is_good, beta=self.beta)
        side = torch.where(is_good, self.own.desirable_weight, self.own.undesirable_weight)
        elements = self.divisor(inputs, training=model.training)
        loss = mean_over_elements(losses, weight=inputs["weight"] * side, elements=elements)
        self._note(inputs, rewards=self.beta * log_ratio, logps=logps, kl=kl, training=model.training)
        return (loss, outputs) if return_outputs else loss

    @torch.no_grad()
    def _note(
        self, inputs: dict[str, Any], *, rewards: Tensor, logps: Tensor, kl: Tensor, training: bool
    ) -> None:
        """TRL's metrics under TRL's names, fetched from the device at once."""
        values = {"kl": kl}
        for name, side in (("chosen", inputs["label"]), ("rejected", ~inputs["label"])):
            values[f"rewards/{name}"] = (rewards * side).sum() / side.sum()
            values[f"logps/{name}"] = (logps * side).sum() / side.sum()
        values["rewards/margins"] = values["rewards/chosen"] - values["rewards/rejected"]
        *numbers, tokens = torch.stack([*values.values(), inputs["attention_mask"].sum()]).tolist()
        mode = "train" if training else "eval"
        for name, number in zip(values, numbers, strict=True):
            if number == number:  # nan: none of that kind in this batch
                self._metrics[mode][name].append(number)
        self._total_train_tokens += int(tokens) if training else 0
        self._metrics[mode]["num_tokens"] = [self._total_train_tokens]


def _logps(model: Any, inputs: dict[str, Any], prefix: str) -> tuple[Tensor, Any]:
    """Log-probability of each whole completion, (rows,); `prefix` names the mismatched ones."""
    ids, mask = inputs[f"{prefix}input_ids"], inputs[f"{prefix}completion_mask"]
    outputs = model(
        input_ids=ids,
        attention_mask=inputs[f"{prefix}attention_mask"],
        labels=ids.masked_fill(mask == 0, -100),
        fused_lm_head=True,
        use_cache=False,
    )
    # What virtual tokens before the text put out is cut off.
    return outputs.log_probs[:, 1 - ids.shape[1] :].sum(dim=1), outputs


def make_trainer(
    *,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    train: list[Unpaired],
    test: list[Unpaired],
    config: RunConfig,
    run_dir: RunDir,
) -> VerdictTrainer:
    """A trainer over the model as it is now, which is also the reference. Refuses what `errors` finds."""
    for error in errors(train, config=config, where=str(run_dir.data)):
        raise Refused(**error)
    limit = length_limit(config, model.config)
    order = {"train_sampling_strategy": "sequential"}  # neighbours stay together
    arguments = KTOConfig(
        **settings(config.training, seed=config.seed, output_dir=run_dir.checkpoints, tuning=config.tuning)
        | order,
        beta=config.kto.beta,
        max_length=limit,
        precompute_ref_log_probs=True,
        remove_unused_columns=False,  # none is unused, and TRL does not know all
    )
    without_dropout(model)
    prepare(model, config)
    trainer = VerdictTrainer(
        own=config.kto,
        model=model,
        args=arguments,
        train_dataset=tokenized(train, tokenizer, config, shuffled=True),
        eval_dataset=tokenized(test, tokenizer, config, shuffled=False) if test else None,
        processing_class=tokenizer,
        data_collator=VerdictCollator(pad_token_id=tokenizer.pad_token_id, max_length=limit),
        peft_config=peft_config(config, task="CAUSAL_LM"),
    )
    make_ready(trainer.model, config)
    return trainer
