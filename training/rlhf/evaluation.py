"""How good is what was trained: figures from held-out prompts and comparisons, with number and interval.

`evaluate_reward_model` and `evaluate_policy` load model/ at the end of a run as anybody would and write
evaluation.json; the latter also leaves what both policies wrote, for people to read. Lengths are in tokens,
log-probabilities and KL in nats; KL is for a whole completion.
"""

from collections.abc import Sequence
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from training.rlhf import figures, loading, rendering, sampling, scoring
from training.rlhf.config import RunConfig
from training.rlhf.data import drop_too_long, read_for_reward_model
from training.rlhf.estimate import length_limit
from training.rlhf.progress import raise_if_stopped, report
from training.rlhf.run_dir import ProgressWriter, RunDir, SampledCompletion, read_jsonl, write_json

MOST_PROMPTS = 256  # of prompts.test.jsonl; more would cost time and narrow the interval little


@torch.inference_mode()
def completion_logprobs(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    completions: Sequence[Sequence[int]],
    *,
    pad_id: int,
    batch_size: int = 32,
    temperature: float = 1.0,
) -> list[torch.Tensor]:
    """Log-probability of each token of each completion after its prompt: one tensor [tokens] for each."""
    rows = [[*prompt, *completion] for prompt, completion in zip(prompts, completions, strict=True)]
    order = sorted(range(len(rows)), key=lambda index: -len(rows[index]))
    found: dict[int, torch.Tensor] = {}
    for start in range(0, len(order), batch_size):
        batch = order[start : start + batch_size]
        ids, mask = scoring.padded([rows[index] for index in batch], pad_id=pad_id)
        ids, mask = ids.to(model.device), mask.to(model.device)
        # No prompt of the batch is shorter, so logits before it would be wasted: a large vocabulary is wide.
        first = min(len(prompts[index]) for index in batch)
        keep = ids.shape[1] - first + 1
        logits = model(input_ids=ids, attention_mask=mask, logits_to_keep=keep).logits
        logp = torch.log_softmax(logits[:, :-1].float() / temperature, dim=-1)
        logp = logp.gather(2, ids[:, first:, None])[..., 0].cpu()  # [rows, longest - first]
        for place, index in enumerate(batch):
            begin = len(prompts[index]) - first
            found[index] = logp[place, begin : begin + len(completions[index])].clone()
    return [found[index] for index in range(len(rows))]


def evaluate_reward_model(run_dir: RunDir, config: RunConfig, progress: ProgressWriter) -> dict[str, Any]:
    """Score the held-out comparisons with model/ and write evaluation.json."""
    progress.write("Scoring held-out comparisons")
    model, tokenizer = loading.load_reward_model(run_dir.model)
    loading.use_device(model)
    elements = drop_too_long(
        read_for_reward_model(run_dir, "test"),
        limit=length_limit(config, model.config),
        count_tokens=lambda messages: len(rendering.conversation_ids(tokenizer, messages)),
    ).elements
    conversations = [one.conversation(n) for one in elements for n in range(len(one.completions))]
    scores = scoring.reward_scores(model, tokenizer, conversations, batch_size=config.training.batch_size)
    found = figures.reward_figures(elements, scores)
    write_json(run_dir.evaluation, found)
    report(progress, {"eval_accuracy": found["accuracy"], "ece": found["ece"]}, message="Evaluated")
    return found


def evaluate_policy(run_dir: RunDir, config: RunConfig, progress: ProgressWriter) -> dict[str, Any]:
    """Let model/ and the policy it came from write to held-out prompts; compare them.

    Writes completions.jsonl (policies "new" and "old") and evaluation.json. Win rate and rewards need the
    recipe's reward model and are None without one. A completion that was cut is scored as people read it,
    as a finished turn; the EOS rate tells how many there are.
    """
    prompts = [row["prompt"] for row in read_jsonl(run_dir.data / "prompts.test.jsonl")][:MOST_PROMPTS]
    policies = {}
    samples = {}
    for number, (name, location) in enumerate({"new": str(run_dir.model), "old": config.model}.items()):
        tokenizer = loading.load_tokenizer(location)
        model = loading.load_policy(location)
        loading.fit(model, tokenizer, where=location)
        loading.use_device(model)
        policies[name] = (model, tokenizer)
        progress.write(f"The {name} policy writes to {len(prompts)} held-out prompts")
        samples[name] = sampling.generate(
            model,
            tokenizer,
            prompts,
            sampling=config.sampling,
            seed=sampling.policy_seed(config.seed, number),
            on_batch=lambda done: raise_if_stopped(),
        )
    progress.write("Measuring how far the policy moved")
    k1, k3 = _kl(policies["new"], policies["old"], prompts, samples["new"], config)
    del policies, model
    found: dict[str, Any] = {"prompts": len(prompts), "kl": k3, "kl_k1": k1}
    for name, drawn in samples.items():
        found[f"length_{name}"] = _mean([one.tokens for one in drawn])
        found[f"eos_rate_{name}"] = _mean([one.finish == "eos" for one in drawn])
    found |= _by_reward_model(config, prompts, samples, progress)
    sampling.write_completions(
        run_dir,
        (
            SampledCompletion(
                request=number, policy=name, text=one.text, finish=one.finish, tokens=one.tokens
            )
            for name, drawn in samples.items()
            for number, one in enumerate(drawn)
        ),
    )
    write_json(run_dir.evaluation, found)
    report(progress, {"kl": k3, "win_rate": found["win_rate_reward_model"]}, message="Evaluated")
    return found


def _kl(
    new: tuple[PreTrainedModel, PreTrainedTokenizerBase],
    old: tuple[PreTrainedModel, PreTrainedTokenizerBase],
    prompts: Sequence[rendering.Messages],
    samples: Sequence[sampling.Sampled],
    config: RunConfig,
) -> tuple[float, float]:
    """Of the distributions that were sampled, so at the sampling temperature; greedy texts count at 1."""
    _, tokenizer = new
    before = [rendering.prompt_ids(tokenizer, prompt) for prompt in prompts]
    after = [one.ids for one in samples]
    logp = [
        completion_logprobs(
            model,
            before,
            after,
            pad_id=int(tokenizer.pad_token_id),
            batch_size=config.training.batch_size,
            temperature=config.sampling.temperature or 1.0,
        )
        for model, _ in (new, old)
    ]
    return figures.kl_estimates(*logp)


def _by_reward_model(
    config: RunConfig,
    prompts: Sequence[rendering.Messages],
    samples: dict[str, list[sampling.Sampled]],
    progress: ProgressWriter,
) -> dict[str, Any]:
    names = ("win_rate_reward_model", "win_rate_low", "win_rate_high", "reward_new", "reward_old",
             "length_reward_correlation")  # fmt: skip
    if not config.reward_model or not prompts:
        return dict.fromkeys(names)
    progress.write("The reward model scores both")
    model, tokenizer = loading.load_reward_model(config.reward_model)
    loading.use_device(model)
    rewards = {
        name: scoring.reward_scores(
            model,
            tokenizer,
            [
                [*prompt, {"role": "assistant", "content": one.text}]
                for prompt, one in zip(prompts, drawn, strict=True)
            ],
            batch_size=config.training.batch_size,
        )
        for name, drawn in samples.items()
    }
    wins = figures.win_rate(rewards["new"], rewards["old"], seed=config.seed)
    lengths = [float(one.tokens) for name in ("new", "old") for one in samples[name]]
    values = (wins["rate"], wins["low"], wins["high"], _mean(rewards["new"]), _mean(rewards["old"]),
              figures.correlation(lengths, [*rewards["new"], *rewards["old"]]))  # fmt: skip
    return dict(zip(names, values, strict=True))


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
