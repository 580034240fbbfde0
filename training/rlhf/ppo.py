"""PPO: a policy learns from the rewards of what it writes (1707.06347, for language models 2203.02155).

One step is one rollout with its updates: the policy writes to `ppo.rollout_size` prompts, and `ppo.epochs`
passes over what it wrote move policy and value model, `training.batch_size` completions on the device at once
and `gradient_accumulation` of such batches an update. `training.max_steps` counts steps; without it
`training.epochs` are passes over the prompts. The learning rate follows its schedule update by update.

The run stops itself where PPO is known to collapse (trl #351, LLaMA-Factory #3902): KL too high, entropy or
EOS rate too low, or no numbers any more. A checkpoint whose policy the next rollout finds so is removed.
"""

import gc
import json
import math
import time
from typing import Any, NoReturn

import torch
from transformers import PreTrainedTokenizerBase

from training.rlhf import checkpoints, fitting, loading, online_prompts, sampling, saving
from training.rlhf.checks import ppo_rehearsal
from training.rlhf.config import RunConfig
from training.rlhf.early import early_stopping
from training.rlhf.early.early_stopping import EarlyStopping
from training.rlhf.failures import Collapsed, Refused
from training.rlhf.losses import policy_gradient
from training.rlhf.model_files import causal_config
from training.rlhf.ppo_parts import ppo_models, ppo_state, ppo_update, rollout
from training.rlhf.ppo_parts.ppo_models import Models
from training.rlhf.ppo_parts.ppo_state import State
from training.rlhf.ppo_parts.rollout import Rollout
from training.rlhf.progress import Cancelled, finishing_before_stop, report, stop_requested
from training.rlhf.reward_kinds.reward_interface import Rewards
from training.rlhf.rows import held_out
from training.rlhf.rows.door import Message
from training.rlhf.run_dir import ProgressWriter, RunDir

_NOTED = (*ppo_update.NOTED, "grad_norm")  # of each update
_LEAST_KL = -5.0  # what cannot be below 0 is estimated from a rollout, and may be a little
_FIRST_DRAW = 1000  # numbers of seeds below are the evaluation's
_HELD_OUT_DRAW = 999


def train(
    run_dir: RunDir, config: RunConfig, progress: ProgressWriter, *, rewards: Rewards | None = None
) -> dict[str, Any]:
    """Train, and leave model/. Goes on from the last checkpoint. Returns what result.json says about it.

    Without `rewards` they are those of the recipe. Raises Cancelled, once all is saved, when told to stop,
    and Collapsed where going on is of no use.
    """
    tokenizer = loading.load_tokenizer(config.model)
    progress.write("Reading the prompts")
    usable, rows = online_prompts.usable(run_dir, config, tokenizer, causal_config(config.model))
    prompts = [row.prompt for row in usable]
    progress.write(f"{len(prompts)} prompts to write to, {rows['train']['dropped']} left out")
    progress.write("Loading the models")
    if rewards is None:
        from training.rlhf.rewards import load_rewards

        rewards = load_rewards(config)
    value_from = getattr(rewards, "value_model_folder", lambda: None)()
    models = ppo_models.load(config, tokenizer, value_from=value_from)
    loop = Loop(
        run_dir, config, progress, models=models, tokenizer=tokenizer, prompts=prompts, rewards=rewards
    )
    if config.training.evaluate_every:
        unseen = held_out.read(run_dir, config, tokenizer, causal_config(config.model)).prompts
        loop.stop_early([prompt.messages for prompt in unseen[: held_out.MOST]])
    ppo_rehearsal.of_loop(loop)
    started = time.monotonic()
    with finishing_before_stop():
        loop.run()
    seconds = time.monotonic() - started
    report(progress, {"train_seconds": seconds}, message="Saving the model")
    saving.save_model(models.to_save(), tokenizer, run_dir=run_dir, config=config)
    stopping = {"early_stopping": loop.early.result()} if loop.early else {}
    del models, loop
    gc.collect()
    torch.cuda.empty_cache()
    return {
        "rows": rows,
        "steps": progress.total_steps,
        "lineage": json.loads((run_dir.model / "lineage.json").read_text(encoding="utf-8")),
        "train_seconds": round(seconds, 2),
        "held_out": {},
        **stopping,
    }


class Loop:
    """Steps from where the run stands to its end."""

    def __init__(
        self,
        run_dir: RunDir,
        config: RunConfig,
        progress: ProgressWriter,
        *,
        models: Models,
        tokenizer: PreTrainedTokenizerBase,
        prompts: list[list[Message]],
        rewards: Rewards,
    ) -> None:
        self.run_dir, self.config, self.progress = run_dir, config, progress
        self.models, self.tokenizer, self.prompts, self.rewards = models, tokenizer, prompts, rewards
        training, size = config.training, config.ppo.rollout_size
        self.steps = training.max_steps
        if self.steps == -1:
            self.steps = math.ceil(training.epochs * len(prompts) / size)
        self.updates = config.ppo.epochs * ppo_update.an_epoch(config)  # of a step
        weights = models.trained.values()
        self.optimizer = torch.optim.AdamW(
            [
                {"params": [one for one in weights if one.ndim >= 2], "weight_decay": training.weight_decay},
                {"params": [one for one in weights if one.ndim < 2], "weight_decay": 0.0},
            ],
            lr=training.learning_rate,
            fused=True,
        )
        ppo_state.put_back(run_dir)
        last = run_dir.last_checkpoint()
        self.state = State(kl_coefficient=config.ppo.kl_coefficient)
        if last is not None:
            self.state = ppo_state.load(last, trained=models.trained, optimizer=self.optimizer)
        self.saved = time.monotonic()
        self.early: EarlyStopping | None = None
        self.held_out: list[list[Message]] = []

    def stop_early(self, held_out: list[list[Message]]) -> None:
        """Judge the policy by what it writes to these prompts, and end with its best weights."""
        self.held_out = held_out
        self.early = EarlyStopping(
            self.run_dir, self.config, save=lambda folder: ppo_state.save_weights(folder, self.models.trained)
        )
        if problems := early_stopping.errors(
            self.config, held_out_rows=len(held_out), where=str(self.run_dir.data)
        ):
            raise Refused(problems[0]["what"], problems[0]["where"], problems[0]["do"])
        self.early.read(self.run_dir.last_checkpoint())

    def run(self) -> None:
        self.progress.step, self.progress.total_steps = self.state.step, self.steps
        self.progress.write(f"Training from step {self.state.step}" if self.state.step else "Training")
        self.judge()  # a stop may have come between a step and its evaluation
        while self.state.step < self.steps and not self.has_stopped:
            self.take_step()
        if self.early is not None and self.early.standing.best is not None:
            ppo_state.load_weights(self.early.folder, self.models.trained)

    @property
    def has_stopped(self) -> bool:
        return self.early is not None and self.early.has_stopped

    def judge(self) -> None:
        """Evaluate on held-out prompts where it is time to. The same draws each time: the policy differs."""
        state, config = self.state, self.config
        if self.early is None or state.rollout is not None or stop_requested():
            return
        if not self.early.is_due(state.step, last=self.steps):
            return
        self.models.recompute(False)
        seed = sampling.policy_seed(config.seed, _HELD_OUT_DRAW)
        try:
            samples = rollout.draw(self.models, self.tokenizer, self.held_out, config=config, seed=seed)
        except Cancelled:
            self.stop()
        scored = self.rewards.score(self.held_out, samples)
        values = {"eval_reward": sum(scored.total) / len(samples)}
        for name, part in scored.parts.items():
            values[f"eval_rewards/{name}/mean"] = sum(part) / len(part)
        said = self.early.judge(values, step=state.step)
        report(self.progress, values, message=said)
        if said:
            self.save()

    def take_step(self) -> None:
        """Draw a rollout unless one is in hand, make its updates, and tell how it went."""
        state, started = self.state, time.monotonic()
        if state.rollout is None:
            try:
                state.rollout, state.scale = self.draw()
            except Cancelled:
                self.stop()
            self.check_health(state.rollout)
        drawn = time.monotonic()
        self.models.recompute(True)
        while len(state.notes) < self.updates:
            if stop_requested():
                self.stop()
            state.notes.append(self.update(state.rollout, number=len(state.notes)))
        # Before anybody saves them; sampling from what is no number would end in words of CUDA's.
        if not torch.stack([one.isfinite().all() for one in self.models.trained.values()]).all():
            raise self.collapse("its weights are no numbers any more", is_policy=False)
        figures = self.figures(state.rollout)
        figures["time/generation_share"] = (drawn - started) / max(time.monotonic() - started, 1e-9)
        state.kl_coefficient = policy_gradient.next_kl_coefficient(
            state.kl_coefficient,
            kl=state.rollout.figures["kl"],
            target=self.config.ppo.kl_target,
            horizon=self.config.ppo.kl_horizon,
            completions=self.config.ppo.rollout_size,
        )
        state.step, state.rollout, state.notes = state.step + 1, None, []
        self.progress.step = state.step
        report(self.progress, figures)
        self.judge()
        is_due = state.step % self.config.training.save_every == 0 or state.step == self.steps
        if is_due or time.monotonic() - self.saved > fitting.SAVE_SECONDS:
            self.save()
        if stop_requested() and state.step < self.steps and not self.has_stopped:
            self.stop()

    def figures(self, drawn: Rollout) -> dict[str, float]:
        """What is told of a step: its rollout, and the mean over its updates."""
        columns = zip(*self.state.notes, strict=True)
        means = {name: sum(column) / len(column) for name, column in zip(_NOTED, columns, strict=True)}
        return drawn.figures | means | {"lr": self.rate(self.updates - 1)}

    def draw(self) -> tuple[Rollout, policy_gradient.RunningScale]:
        """Completions for this step's prompts, scored and read."""
        step, config = self.state.step, self.config
        self.models.recompute(False)
        asked = [self.prompts[index] for index in self.prompt_order(step)]
        samples = rollout.draw(
            self.models,
            self.tokenizer,
            asked,
            config=config,
            seed=sampling.policy_seed(config.seed, _FIRST_DRAW + step),
        )
        rewards = self.rewards.score(asked, samples)
        readings = rollout.read(self.models, samples, config=config, pad_id=int(self.tokenizer.pad_token_id))
        return rollout.assemble(
            samples,
            readings,
            rewards,
            settings=config.ppo,
            kl_coefficient=self.state.kl_coefficient,
            scale=self.state.scale,
        )

    def prompt_order(self, step: int) -> list[int]:
        """Numbers of a step's prompts: each epoch is a shuffle of all of them, cut into rollouts."""
        size, count = self.config.ppo.rollout_size, len(self.prompts)
        found: list[int] = []
        while len(found) < size:
            epoch, place = divmod(step * size + len(found), count)
            found += ppo_update.shuffle(self.config.seed, count, epoch)[place:]
        return found[:size]

    def update(self, drawn: Rollout, *, number: int) -> list[float]:
        """One update of the optimiser over its share of the rollout. Returns the figures of _NOTED."""
        rows = ppo_update.rows_of(drawn, self.config, step=self.state.step, number=number)
        tokens = float(drawn.mask[rows].sum())
        noted = torch.zeros(len(_NOTED) - 1, device=self.models.policy.device)
        self.optimizer.zero_grad(set_to_none=True)
        size, pad_id = self.config.training.batch_size, int(self.tokenizer.pad_token_id)
        for start in range(0, len(rows), size):
            batch = rows[start : start + size]
            noted += ppo_update.backward(
                self.models, drawn, batch, config=self.config, tokens=tokens, pad_id=pad_id
            )
        norm = torch.nn.utils.clip_grad_norm_(
            self.models.trained.values(), self.config.training.max_grad_norm
        )
        figures: list[float] = torch.cat([noted, norm[None]]).tolist()
        if not all(map(math.isfinite, figures)):
            raise self.collapse("its loss or gradient is no number any more", is_policy=False)
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate(number)
        self.optimizer.step()
        return figures

    def rate(self, number: int) -> float:
        return policy_gradient.learning_rate(
            self.state.step * self.updates + number,
            updates=self.steps * self.updates,
            peak=self.config.training.learning_rate,
            warmup_ratio=self.config.training.warmup_ratio,
            schedule=self.config.training.schedule,
        )

    def check_health(self, drawn: Rollout) -> None:
        settings, figures = self.config.ppo, drawn.figures
        for name, value in figures.items():
            if not math.isfinite(value):
                raise self.collapse(f"{name} is no number any more", is_policy=True)
        for is_over, words in (
            (figures["kl"] > settings.most_kl,
             f"its KL is {figures['kl']:.1f} nats a completion, above most_kl ({settings.most_kl:g})"),
            (figures["kl"] < _LEAST_KL,
             f"its KL is {figures['kl']:.1f} nats a completion: below 0, so completions are not drawn from "
             "the policy that learns"),
            (figures["entropy"] < settings.least_entropy,
             f"its entropy is {figures['entropy']:.4f} nats a token, below least_entropy "
             f"({settings.least_entropy:g})"),
            (figures["eos_rate"] < settings.least_eos_rate,
             f"{figures['eos_rate']:.0%} of its completions end by themselves, below least_eos_rate "
             f"({settings.least_eos_rate:.0%})"),
        ):  # fmt: skip
            if is_over:
                report(self.progress, figures)
                raise self.collapse(words, is_policy=True)

    def collapse(self, reason: str, *, is_policy: bool) -> Collapsed:
        """The error to raise. `is_policy`: the weights as this step found them are of no use."""
        if is_policy:
            ppo_state.forget(self.run_dir, self.state.step)
        return Collapsed(step=self.state.step, reason=reason, kept=self.run_dir.last_checkpoint())

    def save(self) -> None:
        ppo_state.save(
            self.run_dir,
            self.state,
            trained=self.models.trained,
            optimizer=self.optimizer,
            beside=self.early.write if self.early else None,
        )
        self.saved = time.monotonic()

    def stop(self) -> NoReturn:
        """Save where the run stands, and leave."""
        last, state = self.run_dir.last_checkpoint(), self.state
        if state.rollout is not None or last is None or checkpoints.step_of(last) < state.step:
            self.save()
        self.progress.write(f"Stopped at step {state.step}; the checkpoint is saved")
        raise Cancelled
