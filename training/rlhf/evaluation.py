"""How good is what was trained: figures from held-out prompts and comparisons, with number and interval.

The upper half is PURE arithmetic. `evaluate_reward_model` and `evaluate_policy` load model/ at the end of a
run as anybody would and write evaluation.json; the latter also leaves what both policies wrote, for people to
read. Lengths are in tokens, log-probabilities and KL in nats; KL is for a whole completion.
"""

import math
from collections.abc import Sequence
from typing import Any, TypedDict

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from training.rlhf import loading, rendering, sampling, scoring
from training.rlhf.config import RunConfig
from training.rlhf.data import Comparison, Element, drop_too_long, read_for_reward_model
from training.rlhf.estimate import length_limit
from training.rlhf.progress import raise_if_stopped, report
from training.rlhf.run_dir import ProgressWriter, RunDir, SampledCompletion, read_jsonl, write_json

MOST_PROMPTS = 256  # of prompts.test.jsonl; more would cost time and narrow the interval little
_BINS = 5


class Rate(TypedDict):
    """A share with its 95 % interval."""

    rate: float
    low: float
    high: float
    n: int


class CalibrationBin(TypedDict):
    low: float
    high: float
    predicted: float  # mean confidence in the bin
    observed: float  # how often that was right
    count: int


def wilson(successes: float, n: int, *, z: float = 1.96) -> Rate:
    """A share with Wilson's interval, which stays inside 0..1 for small n. No trials: 0 with interval 0..1.

    >>> {name: round(value, 3) for name, value in wilson(8, 10).items()}
    {'rate': 0.8, 'low': 0.49, 'high': 0.943, 'n': 10}
    """
    if n == 0:
        return Rate(rate=0.0, low=0.0, high=1.0, n=0)
    rate = successes / n
    scale = 1 + z**2 / n
    middle = (rate + z**2 / (2 * n)) / scale
    half = z * math.sqrt(rate * (1 - rate) / n + z**2 / (4 * n**2)) / scale
    return Rate(rate=rate, low=max(0.0, middle - half), high=min(1.0, middle + half), n=n)


def reward_accuracy(differences: Sequence[float], p: Sequence[float]) -> Rate:
    """How often the reward model prefers what people preferred; their ties say nothing and are left out.

    `differences`: reward of the chosen minus that of the rejected; 0 counts as half right.
    `p`: with which probability people prefer the chosen.

    >>> reward_accuracy([2.0, -1.0, 0.5, 3.0], [1.0, 1.0, 1.0, 0.5])["rate"]  # the tie is left out
    0.6666666666666666
    """
    right = [
        0.5 if difference == 0 else float((difference > 0) == (chosen > 0.5))
        for difference, chosen in zip(differences, p, strict=True)
        if chosen != 0.5
    ]
    return wilson(sum(right), len(right))


def calibration(differences: Sequence[float], p: Sequence[float]) -> tuple[list[CalibrationBin], float]:
    """Bins of confidence from 0.5 to 1 with how often it was right, and the expected calibration error.

    Confidence is sigmoid(|difference|), the model's probability for the completion it prefers; a tie of the
    raters is half right. ECE is the mean over pairs of |predicted - observed| of their bin. Empty bins are
    left out.
    """
    confidence = [1 / (1 + math.exp(-min(abs(difference), 700.0))) for difference in differences]
    right = [
        chosen if d > 0 else 1 - chosen if d < 0 else 0.5 for d, chosen in zip(differences, p, strict=True)
    ]
    bins: list[CalibrationBin] = []
    for number in range(_BINS):
        low, high = 0.5 + 0.5 * number / _BINS, 0.5 + 0.5 * (number + 1) / _BINS
        inside = [
            place
            for place, value in enumerate(confidence)
            if low <= value < high or (number == _BINS - 1 and value >= high)
        ]
        if inside:
            predicted = sum(confidence[place] for place in inside) / len(inside)
            observed = sum(right[place] for place in inside) / len(inside)
            bins.append(
                CalibrationBin(low=low, high=high, predicted=predicted, observed=observed, count=len(inside))
            )
    gaps = sum(abs(one["predicted"] - one["observed"]) * one["count"] for one in bins)
    return bins, gaps / len(confidence) if confidence else 0.0


def win_rate(new: Sequence[float], old: Sequence[float], *, seed: int = 0) -> Rate:
    """How often new scores above old on the same prompt, ties counting half; bootstrap over prompts.

    >>> win_rate([1.0, 2.0, 3.0, 4.0], [0.0, 2.0, 5.0, 1.0])["rate"]
    0.625
    """
    wins = np.array(
        [1.0 if one > other else 0.5 if one == other else 0.0 for one, other in zip(new, old, strict=True)]
    )
    if not len(wins):
        return Rate(rate=0.0, low=0.0, high=1.0, n=0)
    draws = np.random.default_rng(seed).integers(len(wins), size=(2000, len(wins)))
    low, high = np.percentile(wins[draws].mean(axis=1), [2.5, 97.5])
    return Rate(rate=float(wins.mean()), low=float(low), high=float(high), n=len(wins))


def kl_estimates(policy: Sequence[torch.Tensor], reference: Sequence[torch.Tensor]) -> tuple[float, float]:
    """KL(policy || reference) of a whole completion in nats: (k1, k3), means over the policy's own samples.

    Each element holds the log-probabilities of one sample's tokens, shape [tokens]. k1 is the mean of
    log(policy/reference), k3 sums (r - 1) - log r with r = reference/policy over the tokens (Schulman,
    "Approximating KL divergence"): both are unbiased, k3 is never negative and scatters less.
    """
    k1, k3 = [], []
    for ours, theirs in zip(policy, reference, strict=True):
        log_ratio = (theirs - ours).double()
        k1.append(-log_ratio.sum().item())
        k3.append((log_ratio.exp() - 1 - log_ratio).sum().item())
    return (sum(k1) / len(k1), sum(k3) / len(k3)) if k1 else (0.0, 0.0)


def correlation(one: Sequence[float], other: Sequence[float]) -> float | None:
    """Pearson's, or None where one side does not vary."""
    if len(one) < 2 or np.std(one) == 0 or np.std(other) == 0:
        return None
    return float(np.corrcoef(one, other)[0, 1])


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
    figures = reward_figures(elements, scores)
    write_json(run_dir.evaluation, figures)
    report(progress, {"eval_accuracy": figures["accuracy"], "ece": figures["ece"]}, message="Evaluated")
    return figures


def reward_figures(elements: Sequence[Element], scores: Sequence[float]) -> dict[str, Any]:
    """PURE. The figures of evaluation.json from the scores of every completion, in order of the elements.

    The length baseline is a rule without a model, "the longer text is the better one": a reward model that
    is no better has learnt nothing but length.
    """
    differences: list[float] = []
    by_length: list[float] = []
    compared: list[tuple[Comparison, int | None]] = []
    start = 0
    for element in elements:
        lengths = [sum(len(turn["content"]) for turn in turns) for turns in element.completions]
        for one in element.comparisons:
            differences.append(scores[start + one.chosen] - scores[start + one.rejected])
            by_length.append(lengths[one.chosen] - lengths[one.rejected])
            compared.append((one, element.strength))
        start += len(element.completions)
    p = [one.p for one, _ in compared]
    accuracy = reward_accuracy(differences, p)
    bins, ece = calibration(differences, p)
    by_strength = {}
    for strength in sorted({strength for _, strength in compared if strength}):
        places = [place for place, (_, other) in enumerate(compared) if other == strength]
        part = reward_accuracy([differences[place] for place in places], [p[place] for place in places])
        by_strength[str(strength)] = {"accuracy": part["rate"], "pairs": part["n"]}
    return {
        "accuracy": accuracy["rate"] if accuracy["n"] else None,
        "low": accuracy["low"],
        "high": accuracy["high"],
        "pairs": accuracy["n"],
        "by_strength": by_strength,
        "ece": ece,
        "calibration": bins,
        "length_baseline_accuracy": reward_accuracy(by_length, p)["rate"] if accuracy["n"] else None,
    }


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
    figures: dict[str, Any] = {"prompts": len(prompts), "kl": k3, "kl_k1": k1}
    for name, drawn in samples.items():
        figures[f"length_{name}"] = _mean([one.tokens for one in drawn])
        figures[f"eos_rate_{name}"] = _mean([one.finish == "eos" for one in drawn])
    figures |= _by_reward_model(config, prompts, samples, progress)
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
    write_json(run_dir.evaluation, figures)
    report(progress, {"kl": k3, "win_rate": figures["win_rate_reward_model"]}, message="Evaluated")
    return figures


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
    return kl_estimates(*logp)


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
    wins = win_rate(rewards["new"], rewards["old"], seed=config.seed)
    lengths = [float(one.tokens) for name in ("new", "old") for one in samples[name]]
    values = (wins["rate"], wins["low"], wins["high"], _mean(rewards["new"]), _mean(rewards["old"]),
              correlation(lengths, [*rewards["new"], *rewards["old"]]))  # fmt: skip
    return dict(zip(names, values, strict=True))


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
