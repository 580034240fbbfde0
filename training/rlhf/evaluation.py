"""How good is what was trained: figures from held-out prompts and comparisons, with number and interval.

`evaluate_reward_model` and `evaluate_policy` load model/ at the end of a run as anybody would and write
evaluation.json; the latter also leaves what both policies wrote, for people to read. Lengths are in tokens,
log-probabilities and KL in nats; KL is for a whole completion. A policy is in memory alone, in the numbers in
which it is served (training.rlhf.loading.serving_dtype).

The model is whole before any of this begins, so an evaluation that fails leaves its error in place of the
figures, and the run comes home.
"""

import gc
import traceback
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from training.rlhf import criteria, failures, learners, loading, rating_head, rendering, sampling, scoring
from training.rlhf.checkpoints import is_disk_full
from training.rlhf.checks.estimate import length_limit
from training.rlhf.config import RunConfig, Sampling
from training.rlhf.data import Row, drop_too_long, read_for_reward_model
from training.rlhf.measures import evaluators, figures, held_out_scores, rating_figures
from training.rlhf.measures.diversity import distinct_ngrams, length_controlled_win_rate
from training.rlhf.measures.forgetting import nats_on_fixed_text
from training.rlhf.measures.perplexity import perplexity
from training.rlhf.model_files import causal_config
from training.rlhf.progress import report
from training.rlhf.rows import held_out
from training.rlhf.rows.door import Message
from training.rlhf.rows.rated import Rated, of_criterion, read_rated, weighed
from training.rlhf.run_dir import (
    EXIT_REFUSED,
    ProgressWriter,
    RunDir,
    RunError,
    SampledCompletion,
    write_json,
)

MARGIN_NOTE = (
    "Trained with margins: the loss asks for a larger difference where people preferred strongly, so the "
    "model is surer than right by design. Read ece and calibration as an upper bound of over-confidence."
)
KL_NOTE = (
    "KL is between the policies themselves: texts drawn with top-p below 1 or without temperature are not "
    "theirs, so it cannot be measured on them."
)


class Drawn(NamedTuple):
    """What the new and the old policy wrote to the same prompts, and how likely the new one's tokens are."""

    samples: dict[str, list[sampling.Sampled]]
    logps: dict[str, list[torch.Tensor]]  # of the new policy's completions, by either; empty without a KL
    nats: dict[str, dict[str, float | None]]  # for a token: of the fixed text, and of held-out rows


def evaluate_reward_model(run_dir: RunDir, config: RunConfig, progress: ProgressWriter) -> dict[str, Any]:
    """Score the held-out comparisons and ratings with model/ and write evaluation.json.

    Held-out ratings are measured also where none were learnt from (reward_learning.rating_weight 0).
    """
    progress.write("Scoring held-out rows")
    model, tokenizer = loading.load_reward_model(run_dir.model)
    heads = criteria.load(run_dir.model)
    if heads is not None:
        criteria.widen(model, heads)
    loading.use_device(model)
    limit = length_limit(config, model.config)

    def count_tokens(messages: list[Message]) -> int:
        return len(rendering.conversation_ids(tokenizer, messages))

    compared = read_for_reward_model(run_dir, "test")
    elements = drop_too_long(compared, limit=limit, count_tokens=count_tokens).elements
    wanted = config.reward_learning.criteria
    unseen = read_rated(run_dir, "test", wanted=wanted)
    rated = drop_too_long(unseen, limit=limit, count_tokens=count_tokens).elements
    rows: list[Row] = [*elements, *rated]
    conversations = [one for row in rows for one in row.conversations()]
    columns = scoring.columns_of_tokens(
        model,
        [rendering.conversation_ids(tokenizer, one) for one in conversations],
        pad_id=int(tokenizer.pad_token_id),
        batch_size=config.training.batch_size,
    )
    scores = [row[0] for row in columns]
    split = len(scores) - len(rated)
    learnt_from = read_for_reward_model(run_dir, "train")
    found = figures.reward_figures(elements, scores[:split], learnt_from=learnt_from)
    found["ratings"] = _by_ratings(run_dir, [weighed(one, wanted) for one in rated], scores[split:])
    margins = any(comparison.margin for element in elements for comparison in element.comparisons)
    found["criteria"] = _by_criterion(run_dir, heads, rated, columns[split:])
    found["scores"] = _spread(scores)
    held_out_scores.write(run_dir, rows, scores)
    found["calibration_note"] = MARGIN_NOTE if margins and config.reward_learning.use_margin else ""
    write_json(run_dir.evaluation, found)
    values = {"eval_accuracy": found["accuracy"], "ece": found["ece"]}
    if found["ratings"]:
        values |= {"eval_spearman": found["ratings"]["spearman"], "eval_mae": found["ratings"]["mae"]}
    report(progress, values, message="Evaluated")
    return found


def _by_criterion(
    run_dir: RunDir, heads: criteria.Heads | None, rated: list[Rated], columns: list[list[float]]
) -> dict[str, Any]:
    """For each criterion its share of the reward, and how its own head does on its held-out ratings."""
    if heads is None:
        return {}
    read = rating_head.load_each(run_dir.model)
    found: dict[str, Any] = {}
    for number, name in enumerate(heads.names):
        mine = of_criterion(rated, name)
        said = torch.tensor([columns[place][1 + number] for place, _ in mine])
        head = read.get(name)
        given: dict[str, Any] = {}
        if head is not None and mine:
            given = {
                "expected": head.expected(said).tolist(),
                "finds_acceptable": head.finds_acceptable(said).tolist(),
                "acceptable_from": head.acceptable_from,
            }
        figures_of = rating_figures.rating_figures([one for _, one in mine], said.tolist(), **given)
        found[name] = {"share": float(heads.shares[number]), **(figures_of or {"n": 0})}
    return found


def _spread(scores: list[float]) -> dict[str, float] | None:
    """Mean and deviation over the held-out texts: what puts several reward models on one scale."""
    if len(scores) < 2:
        return None
    values = torch.tensor(scores)
    return {"mean": float(values.mean()), "std": float(values.std(correction=0)), "n": len(scores)}


def _by_ratings(run_dir: RunDir, rated: list[Rated], scores: list[float]) -> dict[str, Any] | None:
    head = rating_head.load(run_dir.model)
    if head is None:
        return rating_figures.rating_figures(rated, scores)
    said = torch.tensor(scores)
    return rating_figures.rating_figures(
        rated,
        scores,
        expected=head.expected(said).tolist(),
        finds_acceptable=head.finds_acceptable(said).tolist(),
        acceptable_from=head.acceptable_from,
    )


def evaluate_policy(run_dir: RunDir, config: RunConfig, progress: ProgressWriter) -> dict[str, Any]:
    """Let model/ and the policy it came from write to held-out prompts; compare them.

    Writes completions.jsonl (policies "new" and "old") and evaluation.json. Win rate and rewards need the
    recipe's reward model and are None without one; KL is None where it would mean nothing (KL_NOTE). A
    completion that was cut is scored as people read it, as a finished turn; the EOS rate tells how many there
    are.
    """
    tokenizer = loading.load_tokenizer(str(run_dir.model))
    model_config = causal_config(str(run_dir.model))
    usable = held_out.read(run_dir, config, tokenizer, model_config)
    asked = usable.prompts[: held_out.MOST]
    prompts = [prompt.messages for prompt in asked]
    drawn = _draw(run_dir, config, prompts, progress)
    found: dict[str, Any] = {"prompts": len(prompts), "prompts_dropped": usable.dropped}
    found |= figures.kl_divergence(drawn.logps.get("new", []), drawn.logps.get("old", []))
    found["kl_note"] = "" if kl_is_meaningful(config.sampling) else KL_NOTE
    for name, samples in drawn.samples.items():
        found[f"length_{name}"] = _mean([one.tokens for one in samples])
        found[f"eos_rate_{name}"] = _mean([one.finish == "eos" for one in samples])
        found[f"distinct_2_{name}"] = distinct_ngrams([one.ids for one in samples], 2)
        found |= {f"{figure}_{name}": value for figure, value in drawn.nats[name].items()}
    people_saw = [prompt.asked for prompt in asked]
    found |= _by_reward_model(config, people_saw, drawn.samples, progress)
    said = evaluators.ask(config, people_saw, drawn.samples, progress)
    found["evaluators"] = said.figures
    sampling.write_completions(
        run_dir,
        (
            _line(prompt.line, name, one, {key: column[place] for key, column in said.scores[name].items()})
            for name, samples in drawn.samples.items()
            for place, (prompt, one) in enumerate(zip(asked, samples, strict=True))
        ),
    )
    write_json(run_dir.evaluation, found)
    report(progress, {"kl": found["kl"], "win_rate": found["win_rate_reward_model"]}, message="Evaluated")
    return found


def _line(request: int, policy: str, one: sampling.Sampled, scores: dict[str, float]) -> SampledCompletion:
    line = SampledCompletion(
        request=request, policy=policy, text=one.text, finish=one.finish, tokens=one.tokens
    )
    if scores:
        line["scores"] = scores
    return line


def failed(run_dir: RunDir, error: Exception, progress: ProgressWriter) -> dict[str, Any]:
    """Write evaluation.json for an evaluation that ended in an error; the model is on disk already.

    A full disk is raised again: the run can be resumed once there is space.
    """
    if is_disk_full(error):
        raise error
    traceback.print_exception(error)
    said, code = failures.explain(error, run_dir=run_dir)
    if code != EXIT_REFUSED:
        said = RunError(
            what=said["what"],
            where=said["where"],
            do="The model is whole, only its figures are missing; the log has the whole trace.",
        )
    found = {"error": said}
    write_json(run_dir.evaluation, found)
    progress.write(f"The evaluation failed: {said['what']}")
    return found


def kl_is_meaningful(settings: Sampling) -> bool:
    """Were texts drawn from the distributions whose log-probabilities are compared?"""
    return settings.temperature > 0 and settings.top_p == 1


def _draw(
    run_dir: RunDir,
    config: RunConfig,
    prompts: Sequence[rendering.Messages],
    progress: ProgressWriter,
) -> Drawn:
    """Load one policy after the other; each writes, and reads what the new one wrote."""
    drawn = Drawn({}, {}, {})
    rows = _held_out_rows(run_dir, config)
    for number, (name, location) in enumerate({"new": str(run_dir.model), "old": config.model}.items()):
        tokenizer = loading.load_tokenizer(location)
        model = loading.load_policy(location, dtype=loading.serving_dtype(location))
        loading.fit(model, tokenizer, where=location)
        loading.use_device(model)
        progress.write(f"The {name} policy writes to {len(prompts)} held-out prompts")
        drawn.samples[name] = sampling.generate(
            model,
            tokenizer,
            prompts,
            sampling=config.sampling,
            seed=sampling.policy_seed(config.seed, number),
        )
        if kl_is_meaningful(config.sampling):
            drawn.logps[name] = scoring.completion_logprobs(
                model,
                [one.prompt_ids for one in drawn.samples["new"]],
                [one.ids for one in drawn.samples["new"]],
                pad_id=int(tokenizer.pad_token_id),
                batch_size=config.training.batch_size,
                temperature=config.sampling.temperature,
            )
        foretold = perplexity(model, tokenizer, rows, batch_size=config.training.batch_size)
        drawn.nats[name] = {
            "fixed_text_nats": nats_on_fixed_text(model, tokenizer),
            "held_out_nats": foretold["nats_per_token"] if foretold else None,
        }
        del model
        gc.collect()
        torch.cuda.empty_cache()
    return drawn


def _held_out_rows(run_dir: RunDir, config: RunConfig) -> list[Any]:
    """What a method that imitates would have imitated, had it not been held out."""
    if config.method not in ("sft", "pretraining"):
        return []
    return [row for rows in learners.tables(run_dir, config, "test").values() for row in rows]


def _by_reward_model(
    config: RunConfig,
    prompts: Sequence[rendering.Messages],
    samples: dict[str, list[sampling.Sampled]],
    progress: ProgressWriter,
) -> dict[str, Any]:
    names = ("win_rate_reward_model", "win_rate_low", "win_rate_high", "reward_new", "reward_old",
             "length_reward_correlation", "win_rate_length_controlled")  # fmt: skip
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
    won = [(new > old) + 0.5 * (new == old) for new, old in zip(rewards["new"], rewards["old"], strict=True)]
    both = zip(samples["new"], samples["old"], strict=True)
    longer_by = [float(new.tokens - old.tokens) for new, old in both]
    values = (wins["rate"], wins["low"], wins["high"], _mean(rewards["new"]), _mean(rewards["old"]),
              figures.correlation(lengths, [*rewards["new"], *rewards["old"]]),
              length_controlled_win_rate(won, longer_by))  # fmt: skip
    return dict(zip(names, values, strict=True))


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
