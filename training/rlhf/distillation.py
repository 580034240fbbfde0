"""Distillation: a policy learns to write as a teacher does, token by token (2306.13649).

The teacher is a larger policy of the same vocabulary, or the policy itself under a system prompt that it is
to do without afterwards (context distillation, 2112.00861, section 2.2). A share of the batches is on-policy:
the student writes, and the teacher says how it would have gone on after each token, so that the student is
corrected where its own texts lead. The rest are completions that the teacher wrote, once, before training.
"""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from datasets import Dataset
from peft import get_peft_model
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer, TrainingArguments

from training.rlhf import loading, rendering, sampling, scoring
from training.rlhf.config import RunConfig
from training.rlhf.failures import Refused
from training.rlhf.fitting import Checkpointed, settings
from training.rlhf.losses.divergence import generalised_jsd
from training.rlhf.progress import raise_if_stopped
from training.rlhf.rows.door import Message
from training.rlhf.rows.single_rows import PromptRow
from training.rlhf.run_dir import RunDir, RunError, read_jsonl
from training.rlhf.tuning import make_ready, peft_config, prepare, without_dropout

WHILE_MADE = "The teacher writes"
_CHUNK = 512  # prompts that the teacher answers between two looks for a stop


def check(config: RunConfig, tokenizer: PreTrainedTokenizerBase) -> tuple[list[RunError], list[str]]:
    """What keeps this teacher from teaching this policy, before anything is loaded."""
    teacher = loading.load_tokenizer(_teacher(config))
    loading.check_weights(_teacher(config), purpose="policy")
    if teacher.get_vocab() == tokenizer.get_vocab():
        return [], []
    return [
        RunError(
            what="The teacher has another vocabulary: their next tokens cannot be compared.",
            where=_teacher(config),
            do="Take a teacher with the same tokenizer, or train on what it writes by SFT.",
        )
    ], []


def _teacher(config: RunConfig) -> str:
    return config.distillation.teacher or config.model


def prefixed(config: RunConfig, prompt: Sequence[Message]) -> list[Message]:
    """The prompt as the teacher reads it; a system prompt of its own follows the teacher's."""
    said = config.distillation.system_prompt
    if not said:
        return list(prompt)
    if prompt and prompt[0]["role"] == "system":
        return [{"role": "system", "content": f"{said}\n\n{prompt[0]['content']}"}, *prompt[1:]]
    return [{"role": "system", "content": said}, *prompt]


@dataclass
class PromptCollator:
    """A batch as it is: lists of tokens, since what is padded is known only once the student has written."""

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        return {**{name: [row[name] for row in rows] for name in rows[0]}, "elements": len(rows)}


class DistillationTrainer(Checkpointed, Trainer):
    """The divergence between student and teacher on the tokens of completions, by either of them."""

    _rehearses = False  # a step on completions that nobody wrote

    def __init__(
        self,
        *,
        teacher: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        config: RunConfig,
        **kwargs: Any,
    ) -> None:
        self.teacher = teacher
        self.tokenizer = tokenizer
        self.config = config
        self._micro = 0
        self._written: dict[str, list[float]] = {"on_policy": [], "eos_rate": [], "completion_length": []}
        super().__init__(**kwargs)
        self.model_accepts_loss_kwargs = (
            False  # the mean over a step's batches is ours (Checkpointed.divisor)
        )

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: torch.device) -> Any:
        self._micro = 0
        return super().get_batch_samples(epoch_iterator, num_batches, device)

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        asked, completions = inputs["prompt_ids"], inputs["completion_ids"]
        if model.training and self._is_on_policy():
            completions = self._write(model, inputs)
            self._written["on_policy"].append(1.0)
        elif model.training:
            self._written["on_policy"].append(0.0)
        student = self._logits(model, asked, completions)
        with torch.no_grad():
            teacher = self._logits(self.teacher, inputs["teacher_prompt_ids"], completions)
        heat = self.config.sampling.temperature or 1.0
        apart = generalised_jsd(student / heat, teacher / heat, beta=self.config.distillation.divergence)
        lengths = [len(completion) for completion in completions]
        of_rows = torch.stack([part.mean() for part in torch.split(apart, lengths)])
        loss = of_rows.sum() / self.divisor(inputs, training=model.training)
        if model.training:
            self._written["completion_length"] += map(float, lengths)
        self._micro += 1
        return (loss, {"of_rows": of_rows.detach()}) if return_outputs else loss

    def longest_batch(self) -> dict[str, Any]:
        """The longest prompts, each with as long a completion as the student may come to write."""
        batch = super().longest_batch()
        if self.config.distillation.on_policy:
            most = self.config.sampling.max_new_tokens
            batch["completion_ids"] = [(ids * most)[: max(most, len(ids))] for ids in batch["completion_ids"]]
        lengths = map(len, (p + c for p, c in zip(batch["prompt_ids"], batch["completion_ids"], strict=True)))
        return batch | {"shape": (len(batch["prompt_ids"]), max(lengths))}

    def rehearsed_loss(self, inputs: dict[str, Any]) -> Any:
        self._rehearses = True
        try:
            return super().rehearsed_loss(inputs)
        finally:
            self._rehearses = False

    def _is_on_policy(self) -> bool:
        """By seed, step and batch alone, so that a resumed run decides as one that ran through."""
        if self._rehearses:
            return False
        drawn = torch.rand((), generator=torch.Generator().manual_seed(self._seed()))
        return bool(drawn < self.config.distillation.on_policy)

    def _seed(self) -> int:
        number = self.state.global_step * self.args.gradient_accumulation_steps + self._micro
        return sampling.policy_seed(self.config.seed, number + 1)

    def _write(self, model: Any, inputs: dict[str, Any]) -> list[list[int]]:
        """Completions of the student as it is now, and how many of them ended by themselves."""
        writer = self.accelerator.unwrap_model(model)
        writer.eval()
        drawn = sampling.generate(
            writer,
            self.tokenizer,
            [json.loads(messages) for messages in inputs["messages"]],
            sampling=self.config.sampling,
            seed=self._seed(),
        )
        writer.train()
        self._written["eos_rate"] += [float(one.finish == "eos") for one in drawn]
        return [list(one.ids) for one in drawn]

    def _logits(self, model: Any, prompts: list[list[int]], completions: list[list[int]]) -> Tensor:
        """Logits that predict the completions' tokens: [tokens of all completions, vocabulary]."""
        rows = [[*prompt, *completion] for prompt, completion in zip(prompts, completions, strict=True)]
        ids, mask = scoring.padded(rows, pad_id=int(self.tokenizer.pad_token_id))
        device = self.args.device
        first = min(map(len, prompts))
        keep = ids.shape[1] - first + 1
        logits = model(
            input_ids=ids.to(device), attention_mask=mask.to(device), logits_to_keep=keep, use_cache=False
        ).logits
        spans = [
            logits[place, len(prompt) - first : len(prompt) - first + len(completion)]
            for place, (prompt, completion) in enumerate(zip(prompts, completions, strict=True))
        ]
        return torch.cat(spans)

    def prediction_step(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        with torch.no_grad():
            return self.compute_loss(model, inputs).detach(), None, None

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        if "loss" in logs:
            means = {name: sum(values) / len(values) for name, values in self._written.items() if values}
            logs = {**logs, **means}
            for values in self._written.values():
                values.clear()
        super().log(logs, *args, **kwargs)


def make_trainer(
    *,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    train: list[PromptRow],
    test: list[PromptRow],
    config: RunConfig,
    run_dir: RunDir,
) -> DistillationTrainer:
    """The teacher has written to all prompts when this returns; `taught.jsonl` keeps it for a resume."""
    teacher = loading.load_policy(_teacher(config), dtype=loading.serving_dtype(_teacher(config)))
    loading.fit(teacher, tokenizer, where=_teacher(config))
    loading.use_device(teacher)
    without_dropout(teacher)
    rows = [*train, *test]
    written = _taught(run_dir, config, teacher, tokenizer, rows)
    data = [_row(config, tokenizer, row, ids) for row, ids in zip(rows, written, strict=True)]
    without_dropout(model)
    prepare(model, config)
    adapters = peft_config(config, task="CAUSAL_LM")
    trained = model if adapters is None else cast(Any, get_peft_model(model, adapters))
    arguments = TrainingArguments(
        **settings(config.training, seed=config.seed, output_dir=run_dir.checkpoints, tuning=config.tuning),
        remove_unused_columns=False,
    )
    trainer = DistillationTrainer(
        teacher=teacher,
        tokenizer=tokenizer,
        config=config,
        model=trained,
        args=arguments,
        train_dataset=Dataset.from_list(data[: len(train)]),
        eval_dataset=Dataset.from_list(data[len(train) :]) if test else None,
        data_collator=PromptCollator(),
    )
    make_ready(trainer.model, config)
    return trainer


def _row(
    config: RunConfig, tokenizer: PreTrainedTokenizerBase, row: PromptRow, completion: list[int]
) -> dict[str, Any]:
    prompt = rendering.prompt_ids(tokenizer, row.prompt)
    return {
        "messages": json.dumps(row.prompt),
        "prompt_ids": prompt,
        "teacher_prompt_ids": rendering.prompt_ids(tokenizer, prefixed(config, row.prompt)),
        "completion_ids": completion,
        "length": len(prompt) + len(completion),
    }


def _taught(
    run_dir: RunDir,
    config: RunConfig,
    teacher: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: list[PromptRow],
) -> list[list[int]]:
    """What the teacher writes to each prompt, as tokens; drawn once for a run, whole or not at all."""
    path = run_dir.path / "taught.jsonl"
    if path.exists():
        found = [list(map(int, line["ids"])) for line in read_jsonl(path)]
        if len(found) == len(rows):
            return found
    written: list[list[int]] = []
    for start in range(0, len(rows), _CHUNK):
        raise_if_stopped()
        drawn = sampling.generate(
            teacher,
            tokenizer,
            [prefixed(config, row.prompt) for row in rows[start : start + _CHUNK]],
            sampling=config.sampling,
            seed=sampling.policy_seed(config.seed, -1 - start),
        )
        written += [list(one.ids) for one in drawn]
        _refuse_cut_prompts(config, tokenizer, rows[start : start + _CHUNK], drawn)
    if not written:
        raise Refused("There is no prompt to write to.", str(run_dir.data), "Freeze a dataset with prompts.")
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.write_text("".join(json.dumps({"ids": ids}) + "\n" for ids in written), encoding="utf-8")
    os.replace(draft, path)
    return written


def _refuse_cut_prompts(
    config: RunConfig,
    tokenizer: PreTrainedTokenizerBase,
    rows: list[PromptRow],
    drawn: list[sampling.Sampled],
) -> None:
    """A prompt that lost its beginning for want of room lost the system prompt first."""
    for row, one in zip(rows, drawn, strict=True):
        if len(one.prompt_ids) < len(rendering.prompt_ids(tokenizer, prefixed(config, row.prompt))):
            raise Refused(
                "With the teacher's system prompt this prompt leaves no room for a completion.",
                f"prompts, line {row.line}",
                f"Shorten the system prompt, or lower max_new_tokens ({config.sampling.max_new_tokens}).",
            )
