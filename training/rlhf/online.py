"""What RLOO and GRPO share: completions of our own sampler, rewards of ours, and a run that resumes exactly.

TRL's trainers compute advantages and losses. This replaces what lessons-training.md found wrong or missing:
their sampler hears no stop and takes what a generation_config adds; they score a cut completion as a finished
turn; they report KL for a token; and a run that resumes in a later epoch meets the prompts of the first.

Nothing here depends on torch's global random state: what is drawn at a step follows from seed and step, so a
run that resumes draws the same.
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from torch.utils.data import Sampler
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer

from training.rlhf import checkpoints, sampling, vllm_drawing
from training.rlhf.checks import online_rehearsal
from training.rlhf.config import RunConfig
from training.rlhf.config import Sampling as SamplingSettings
from training.rlhf.failures import Refused
from training.rlhf.fitting import Checkpointed, settings
from training.rlhf.method_settings import Grpo, Rloo
from training.rlhf.methods import METHODS
from training.rlhf.progress import Cancelled
from training.rlhf.rendering import Messages
from training.rlhf.rewards import NamedRewards, load_rewards
from training.rlhf.rows import held_out
from training.rlhf.rows.single_rows import PromptRow
from training.rlhf.run_dir import RunDir, RunError
from training.rlhf.sampling import Sampled
from training.rlhf.tuning import make_ready, peft_config, prepare, without_dropout

MISSING_EOS = "missing_eos"  # among the parts of a reward: -1 for a completion that was cut
_REUSED = "completions.pt"  # in a checkpoint: those that later steps learn from once more
_EVALUATIONS = 1_000_000_000  # their draws are numbered from here, far from those of steps


def check(config: RunConfig, tokenizer: PreTrainedTokenizerBase) -> tuple[list[RunError], list[str]]:
    """A warning where completions are not draws of the policy itself: the loss takes them for such."""
    if config.sampling.top_p == 1:
        return [], []
    return [], [
        f"Completions are drawn with top-p {config.sampling.top_p:g}: {METHODS[config.method].label} takes "
        "them for draws of the policy itself, and learns with wrong probabilities. Set sampling.top_p to 1."
    ]


class PromptSampler(Sampler[int]):
    """Numbers of prompts, each as often as completions are wanted, in an order of seed and epoch alone.

    A step that the prompts do not fill begins with those of the epoch again: none is left out, and fewer
    prompts than a step takes are no empty epoch (TRL drops the rest). `passes` repeats a step's prompts for
    the micro-batches and updates that share its completions.
    """

    def __init__(self, *, rows: int, completions: int, prompts_at_once: int, passes: int, seed: int) -> None:
        self.rows = rows
        self.completions = completions
        self.prompts_at_once = prompts_at_once
        self.passes = passes
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch  # by accelerate, before each epoch and when one is resumed

    @property
    def steps(self) -> int:
        return -(-self.rows // self.prompts_at_once)

    def __len__(self) -> int:
        return self.steps * self.prompts_at_once * self.completions * self.passes

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        order = torch.randperm(self.rows, generator=generator).tolist()
        for step in range(self.steps):
            first = step * self.prompts_at_once
            chosen = [order[place % self.rows] for place in range(first, first + self.prompts_at_once)]
            for _ in range(self.passes):
                for number in chosen:
                    yield from [number] * self.completions


class OnlineTrainer(Checkpointed):
    """Mixed into RLOOTrainer or GRPOTrainer. `drawing`: how completions are drawn; `penalty`: for a cut."""

    def __init__(
        self, *, rewards: NamedRewards, drawing: SamplingSettings, penalty: float, **kwargs: Any
    ) -> None:
        self.rewards = rewards
        self.drawing = drawing
        self.drawn: list[Sampled] = []
        self.asked: list[Messages] = []
        self.evaluated = 0
        super().__init__(reward_funcs=[_scored_together], **kwargs)  # type: ignore[call-arg]
        self.reward_func_names = [*(one.name for one in rewards.functions), *rewards.beside, MISSING_EOS]
        weights = [*(one.weight for one in rewards.functions), *(0.0 for _ in rewards.beside)]
        self.reward_weights = torch.tensor([*weights, penalty], dtype=torch.float32)
        trl: Any = self
        trl.eos_token_ids = sampling.end_ids(trl.model, trl.processing_class)

    # What is drawn

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: torch.device) -> Any:
        batches, _ = Trainer.get_batch_samples(self, epoch_iterator, num_batches, device)
        return batches, None

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Each time with the same draws: evaluations differ by the policy, and resume exactly."""
        self.evaluated = 0
        found: dict[str, float] = super().evaluate(*args, **kwargs)
        return found

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        trl: Any = self
        rows: Any = self.train_dataset if train_dataset is None else train_dataset
        arguments = trl.args
        return PromptSampler(
            rows=len(rows),
            completions=trl.num_generations,
            prompts_at_once=arguments.generation_batch_size // trl.num_generations,
            passes=trl.num_iterations * arguments.steps_per_generation,
            seed=arguments.seed,
        )

    def _tokenize_prompts(self, prompts: list[Messages]) -> Any:
        """TRL asks for the prompts' tokens just before it draws."""
        trl: Any = self
        self.asked = prompts
        model = trl.model
        rows, _ = sampling.prompts_with_room(model, trl.processing_class, prompts, sampling=self.drawing)
        return rows, None, {}

    def _generate_single_turn(self, prompt_ids: list[list[int]], *args: Any, **kwargs: Any) -> Any:
        """The tokens of a completion for each prompt; for GRPO vLLM gives more than those."""
        trl: Any = self
        if trl.use_vllm:
            found = super()._generate_single_turn(prompt_ids, *args, **kwargs)  # type: ignore[misc]
            texts = found[0] if isinstance(found, tuple) else found
            tokenizer = trl.processing_class
            self.drawn = [
                sampling.as_sampled(tokenizer, list(prompt), list(ids), trl.eos_token_ids)
                for prompt, ids in zip(prompt_ids, texts, strict=True)
            ]
            return found
        training = trl.model.training
        trl.model.eval()
        try:
            with trl.accelerator.autocast():
                self.drawn = sampling.generate(
                    trl.model,
                    trl.processing_class,
                    self.asked,
                    sampling=self.drawing,
                    seed=self._draw_seed(training=training),
                )
        finally:
            trl.model.train(training)
        return [list(one.ids) for one in self.drawn]

    def _draw_seed(self, *, training: bool) -> int:
        number = self.state.global_step
        if not training:
            self.evaluated += 1
            number = _EVALUATIONS + self.evaluated
        return sampling.policy_seed(int(self.args.seed), number)

    # What is learnt

    def _calculate_rewards(self, inputs: Any, prompts: list[Messages], *args: Any) -> Tensor:
        """Parts of the reward, [completions, functions + 1], unweighted; the last is for the missing EOS."""
        found = self.rewards.score(prompts, self.drawn).parts
        found[MISSING_EOS] = [-float(one.finish == "length") for one in self.drawn]
        trl: Any = self
        columns = [found[name] for name in self.reward_func_names]
        return torch.tensor(columns, dtype=torch.float32, device=trl.accelerator.device).T

    def _generate_and_score_completions(self, inputs: Any) -> dict[str, Any]:
        metrics = self._measured()
        known = len(metrics.get("kl", []))
        try:
            batch: dict[str, Any] = super()._generate_and_score_completions(inputs)  # type: ignore[misc]
        except (Cancelled, Refused):
            self._save_before_leaving()
            raise
        _for_completions(metrics, known, batch["completion_mask"])
        metrics["eos_rate"].append(sum(one.finish == "eos" for one in self.drawn) / len(self.drawn))
        for name, value in self.rewards.figures().items():
            metrics[name].append(value)
        if self._training():  # by this TRL shuffles the batch
            torch.manual_seed(self._draw_seed(training=True))
        return batch

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> Any:
        metrics = self._measured()
        known = len(metrics.get("kl", []))
        loss = super()._compute_loss(model, inputs)  # type: ignore[misc]
        _for_completions(metrics, known, inputs["completion_mask"])
        return loss

    def _training(self) -> bool:
        model: Any = self.model
        return bool(model.training)

    def _measured(self) -> Any:
        """TRL's lists of what is measured, by name."""
        trl: Any = self
        return trl._metrics["train" if self._training() else "eval"]

    # What is tried before the first step

    def longest_batch(self) -> dict[str, Any]:
        """The longest prompts, each with a completion of as many tokens as may be written."""
        trl: Any = self
        prompts = [row["prompt"] for row in trl.train_dataset]
        return online_rehearsal.batch_of(trl, prompts=prompts, drawing=self.drawing)

    def rehearsed_loss(self, inputs: dict[str, Any]) -> Tensor:
        return online_rehearsal.loss_of(self, inputs, rewards=self.rewards)

    def share_of_longest(self) -> None:
        """Nobody knows before how long completions will be."""

    # What outlives the process

    def _save_before_leaving(self) -> None:
        """A stop, or a reward that fails: nothing moved since the last step, so this is its checkpoint."""
        step = self.state.global_step
        folder = Path(str(self.args.output_dir)) / f"checkpoint-{step}"
        if self._training() and step and not (folder / "complete.json").exists():
            self._save_checkpoint(self.model, None)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        super()._save(output_dir, state_dict)
        trl: Any = self
        if output_dir is not None and trl.num_iterations > 1 and trl._buffered_inputs is not None:
            torch.save(trl._buffered_inputs, Path(output_dir) / _REUSED)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        trl: Any = self
        folder = Path(resume_from_checkpoint)
        trl._step = checkpoints.step_of(folder) * self.args.gradient_accumulation_steps
        if (folder / _REUSED).exists():
            device = trl.accelerator.device
            trl._buffered_inputs = torch.load(folder / _REUSED, weights_only=True, map_location=device)


def shared_arguments(own: Rloo | Grpo, config: RunConfig, run_dir: RunDir) -> dict[str, Any]:
    """What RLOOConfig and GRPOConfig have in common. One step draws its completions, and learns from all."""
    return {
        **settings(config.training, seed=config.seed, output_dir=run_dir.checkpoints, tuning=config.tuning),
        "num_generations": own.completions_per_prompt,
        "num_generations_eval": 1,
        "max_completion_length": config.sampling.max_new_tokens,
        "temperature": config.sampling.temperature,
        "top_p": config.sampling.top_p,
        "beta": own.beta,
        "epsilon": own.clip,
        "num_iterations": own.iterations,
        "disable_dropout": True,
        "remove_unused_columns": False,
        **vllm_drawing.arguments(config.vllm),
    }


def parts_of_trainer(
    own: Rloo | Grpo,
    *,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    train: list[PromptRow],
    test: list[PromptRow],
    config: RunConfig,
) -> dict[str, Any]:
    """What both trainers are made of, but for their arguments. The model as it is now is the reference."""
    without_dropout(model)
    prepare(model, config)
    return {
        "rewards": load_rewards(config),
        "drawing": config.sampling,
        "penalty": own.missing_eos_penalty,
        "model": model,
        "train_dataset": _prompts(train),
        "eval_dataset": _prompts(test[: held_out.MOST]) if test else None,
        "processing_class": tokenizer,
        "peft_config": peft_config(config, task="CAUSAL_LM"),
    }


def make_ready_to_draw(trainer: OnlineTrainer, config: RunConfig) -> None:
    """Without dropout in the adapters too: the policy that learns is compared with itself as it drew."""
    make_ready(trainer.model, replace(config, tuning=replace(config.tuning, lora_dropout=0.0)))


def _prompts(rows: list[PromptRow]) -> Dataset:
    return Dataset.from_list([{"prompt": row.prompt} for row in rows])


def _for_completions(metrics: Any, known: int, mask: Tensor) -> None:
    """Turn the KL for a token, which TRL noted after the first `known`, into that for a completion.

    TRL divides the sum over all tokens by their number; times the mean length it is divided by the number of
    completions, as PPO reports it. mask: (completions, tokens).
    """
    if len(metrics.get("kl", [])) > known:
        length = float(mask.sum()) / len(mask)
        metrics["kl"][known:] = [value * length for value in metrics["kl"][known:]]


def _scored_together(**columns: Any) -> list[float]:
    raise AssertionError("OnlineTrainer scores all functions at once")
