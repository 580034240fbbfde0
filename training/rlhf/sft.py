"""SFT: a policy learns to write what people showed it, or what they preferred.

The loss is on the completion alone, whose last token is the one that ends the assistant's turn, EOS: a policy
learns to stop from nothing else (TRL #1623). Prompts are read and not learnt.
"""

import json
from collections.abc import Iterable

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from training.rlhf import rendering
from training.rlhf.config import RunConfig
from training.rlhf.data import Element, Split, read_pairs, read_rankings, without_pairs_of
from training.rlhf.likelihood import Labelled, LikelihoodTrainer, trainer_of
from training.rlhf.rows.door import Message
from training.rlhf.rows.single_rows import Demonstration, read_demonstrations
from training.rlhf.run_dir import RunDir


def tables(run_dir: RunDir, config: RunConfig, split: Split) -> dict[str, list[Demonstration]]:
    """Demonstrations; where none are there to learn from, the completions that people preferred.

    Of a ranking the best completions are shown, whatever pairs say of the others; then the chosen side of
    each pair that comes from no ranking. Every completion is shown once for its prompt.
    """
    if read_demonstrations(run_dir.data / "demonstrations.train.jsonl"):
        return {"demonstrations": read_demonstrations(run_dir.data / f"demonstrations.{split}.jsonl")}
    rankings = read_rankings(run_dir.data / f"rankings.{split}.jsonl")
    pairs = without_pairs_of(rankings, read_pairs(run_dir.data / f"pairs.{split}.jsonl"))
    best = best_of_rankings(rankings)
    return {"rankings": best, "pairs": best_of_pairs(pairs, without=best)}


def best_of_rankings(rankings: Iterable[Element]) -> list[Demonstration]:
    """What nobody put below anything else, unless all is tied. The weight of a ranking is shared by its best.

    Raters of one task share a weight of 1 among their rankings, so what several put first adds up.
    """
    found: dict[str, Demonstration] = {}
    for ranking in rankings:
        decided = [one for one in ranking.comparisons if one.p > 0.5]
        beaten = {one.rejected for one in decided}
        best = [number for number in range(len(ranking.completions)) if number not in beaten]
        weight = sum(one.weight for one in ranking.comparisons) / len(best)
        for number in best if decided else []:
            key = _key(ranking.prompt, ranking.completions[number])
            before = found[key].weight if key in found else 0.0
            found[key] = _shown(ranking, number, weight=before + weight)
    return list(found.values())


def best_of_pairs(pairs: Iterable[Element], *, without: Iterable[Demonstration] = ()) -> list[Demonstration]:
    """The chosen side of decided pairs, each completion once, as the strongest preference for it says."""
    seen = {_key(one.prompt, one.completion) for one in without}
    found = []
    for pair in sorted(pairs, key=_strength, reverse=True):
        (said,) = pair.comparisons
        key = _key(pair.prompt, pair.completions[said.chosen])
        if said.p > 0.5 and key not in seen:
            seen.add(key)
            found.append(_shown(pair, said.chosen, weight=said.weight))
    return sorted(found, key=lambda one: one.line)


def labelled(rows: Iterable[Demonstration], tokenizer: PreTrainedTokenizerBase) -> list[Labelled]:
    found = []
    for row in rows:
        before, completion = rendering.prompt_and_completion_ids(tokenizer, row.prompt, row.completion)
        found.append(Labelled([*before, *completion], start=len(before), weight=row.weight))
    return found


def make_trainer(
    *,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    train: list[Demonstration],
    test: list[Demonstration],
    config: RunConfig,
    run_dir: RunDir,
) -> LikelihoodTrainer:
    return trainer_of(
        model=model,
        tokenizer=tokenizer,
        train=labelled(train, tokenizer),
        test=labelled(test, tokenizer),
        config=config,
        run_dir=run_dir,
    )


def _strength(pair: Element) -> tuple[int, float, float]:
    (said,) = pair.comparisons
    return pair.strength or 0, said.margin, said.p


def _shown(element: Element, number: int, *, weight: float) -> Demonstration:
    return Demonstration(
        table=element.table,
        line=element.line,
        prompt=element.prompt,
        completion=element.completions[number],
        weight=weight,
    )


def _key(prompt: list[Message], completion: list[Message]) -> str:
    return json.dumps([prompt, completion], sort_keys=True)
