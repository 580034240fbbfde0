"""The reward model: a scalar head on a policy's body, trained on pairs, rankings and ratings together.

TRL's trainer knows pairs with a margin. Here one element of a batch may also be a ranking of K completions:
all C(K, 2) comparisons are read in one forward pass of K texts and count as one element (InstructGPT,
2203.02155, section 3.5), or the whole order is, by Plackett-Luce (training.rlhf.losses.ranking_loss).
Comparisons carry margin, weight and a soft label (a tie is 0.5). Or it is one completion as one rater rated
it, by ordered cut points on the same score or by regression (training.rlhf.losses.rating_loss). Where all of
that is neutral, the losses are TRL's own (tests/training_rlhf/test_reward_model.py).

The score is read at the last token of the same rendering that scores and RL read (training.rlhf.scoring); an
encoder's at its first.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from datasets import Dataset
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from trl.trainer.reward_config import RewardConfig
from trl.trainer.reward_trainer import RewardTrainer

from training.rlhf import criteria, rating_head, rendering, scoring
from training.rlhf.config import RunConfig
from training.rlhf.data import Element, Split, read_pairs, read_rankings, without_pairs_of
from training.rlhf.failures import Refused
from training.rlhf.fitting import Checkpointed, settings
from training.rlhf.losses.preference_loss import comparison_loss, mean_over_elements, share_above
from training.rlhf.losses.ranking_loss import plackett_luce
from training.rlhf.method_settings import RewardLearning
from training.rlhf.model_files import is_encoder
from training.rlhf.rows.rated import Rated, of_criterion, plain, read_rated, scale_of
from training.rlhf.rows.row_checks import comparison_errors
from training.rlhf.run_dir import RunDir, RunError
from training.rlhf.tuning import make_ready, peft_config, prepare, without_dropout

Learnt = Element | Rated  # what a batch counts as one
ENCODER_TUNING = ("full", "lora", "dora")


def tables(run_dir: RunDir, config: RunConfig, split: Split) -> dict[str, list[Any]]:
    """A dataset lists the pairs of its rankings as pairs too: those are read once, as rankings."""
    pairs = read_pairs(run_dir.data / f"pairs.{split}.jsonl")
    rankings = read_rankings(run_dir.data / f"rankings.{split}.jsonl")
    learning = config.reward_learning
    ratings = read_rated(run_dir, split, wanted=learning.criteria) if learning.rating_weight else []
    return {"pairs": without_pairs_of(rankings, pairs), "rankings": rankings, "ratings": ratings}


def errors(train: list[Learnt], *, config: RunConfig, where: str) -> list[RunError]:
    """Nothing as long as comparisons or ratings teach something."""
    compared = [row for row in train if isinstance(row, Element)]
    rated = [row for row in train if isinstance(row, Rated)]
    found = [comparison_errors(compared, where=where), _rating_errors(rated, where=where)]
    sources = [problems for problems, rows in zip(found, (compared, rated), strict=True) if rows]
    if missing := _unrated(rated, config.reward_learning.criteria, where=where):
        return [missing]
    return [] if [] in sources else [problem for problems in sources for problem in problems]


def _unrated(rated: list[Rated], wanted: dict[str, float], *, where: str) -> RunError | None:
    """A head that nobody rated for would stay what chance made it."""
    given = {name for one in rated for name in one.criteria}
    missing = [name for name in wanted if plain(name) not in given]
    if not missing:
        return None
    known = f"There are ratings by {', '.join(sorted(given))}." if given else "None of them was rated."
    return RunError(
        what=f"Nobody rated by the criteri{'on' if len(missing) == 1 else 'a'} {', '.join(missing)}. {known}",
        where=where,
        do="Name criteria of the dataset's ratings, or rate completions by these.",
    )


def _rating_errors(rated: list[Rated], *, where: str) -> list[RunError]:
    given = {rating for one in rated for rating in one.ratings}
    if len(given) != 1:
        return []
    return [
        RunError(
            what=f"All {len(rated)} rated completions have the same rating: nothing says what is better.",
            where=where,
            do="Rate more completions, or use a dataset with comparisons.",
        )
    ]


def tokenized(
    elements: Sequence[Learnt], tokenizer: PreTrainedTokenizerBase, *, learning: RewardLearning
) -> Dataset:
    """Rows for the trainer: the tokens of each conversation, and what people said about them."""
    return Dataset.from_list([_row(element, tokenizer, learning) for element in elements])


def _row(element: Learnt, tokenizer: PreTrainedTokenizerBase, learning: RewardLearning) -> dict[str, Any]:
    conversations = [rendering.conversation_ids(tokenizer, one) for one in element.conversations()]
    said = element.comparisons if isinstance(element, Element) else []
    ratings = list(element.ratings) if isinstance(element, Rated) else []
    whole = learning.ranking_loss == "plackett_luce" and element.table == "rankings"
    return {
        "conversations": conversations,
        "length": max(map(len, conversations)),
        "chosen": [one.chosen for one in said],
        "rejected": [one.rejected for one in said],
        "margin": [one.margin if learning.use_margin else 0.0 for one in said],
        # Of a ranking that is learnt as a whole, comparisons are only measured.
        "weight": [0.0 if whole else one.weight for one in said],
        "p": [one.p for one in said],
        "ranks": _ranks(element) if whole and isinstance(element, Element) else [],
        # A mean over its K - 1 choices, so that it counts as one element beside a pair, which has one.
        "ranking_weight": sum(one.weight for one in said) / (len(conversations) - 1) if whole else 0.0,
        "ratings": ratings,
        **_by_criterion(element, learning),
    }


def _by_criterion(element: Learnt, learning: RewardLearning) -> dict[str, list[Any]]:
    """Of each rating the number of its head, and its weight: those of one element share the element's."""
    if not isinstance(element, Rated):
        return {"criterion": [], "rating_weight": []}
    whole = learning.rating_weight * element.weight / len(element.ratings)
    names = [plain(name) for name in learning.heads]
    heads = [names.index(one) if names else 0 for one in element.criteria or [""] * len(element.ratings)]
    weights = [whole] * len(element.ratings)
    if learning.criteria and not learning.one_head_each:
        given = {plain(name): weight for name, weight in learning.criteria.items()}
        middle = sum(given.values()) / len(given)
        weights = [whole * given[one] / middle for one in element.criteria]
    return {"criterion": heads, "rating_weight": weights}


def _ranks(element: Element) -> list[int]:
    """By how many completions each was beaten: the order of the ranking, ties included."""
    beaten = [one.rejected for one in element.comparisons if one.p != 0.5]
    return [beaten.count(number) for number in range(len(element.completions))]


@dataclass
class ElementCollator:
    """A batch: all conversations of all elements, and judgements that point at them by number."""

    pad_token_id: int

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        conversations = [ids for row in rows for ids in row["conversations"]]
        input_ids, attention_mask = scoring.padded(conversations, pad_id=self.pad_token_id)
        batch: dict[str, list[Any]] = {name: [] for name in (*_TYPES, *_RANKED)}
        first = 0  # number of the element's first conversation in the batch
        for row in rows:
            for name in ("chosen", "rejected"):
                batch[name] += [first + number for number in row[name]]
            for name in ("margin", "weight", "p", "ratings", "criterion", "rating_weight"):
                batch[name] += row[name]
            batch["rated"] += [first] * len(row["ratings"])
            if row["ranks"]:
                batch["ranked"].append(list(range(first, first + len(row["ranks"]))))
                batch["ranks"].append(row["ranks"])
                batch["ranking_weight"].append(row["ranking_weight"])
            first += len(row["conversations"])
        longest = max(map(len, batch["ranks"]), default=0)
        return {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "elements": len(rows),
            **{name: torch.tensor(batch[name], dtype=kind) for name, kind in _TYPES.items()},
            **{name: _rectangle(batch[name], width=longest, fill=fill) for name, fill in _RANKED.items()},
        }


_TYPES = {
    "chosen": torch.long, "rejected": torch.long, "margin": torch.float, "weight": torch.float,
    "p": torch.float, "rated": torch.long, "ratings": torch.float, "rating_weight": torch.float,
    "ranking_weight": torch.float, "criterion": torch.long,
}  # fmt: skip
_RANKED = {"ranked": 0, "ranks": -1}  # and what fills shorter rankings up


def _rectangle(rows: list[list[int]], *, width: int, fill: int) -> Tensor:
    filled = [row + [fill] * (width - len(row)) for row in rows]
    return torch.tensor(filled, dtype=torch.long).reshape(len(rows), width)


class ComparisonTrainer(Checkpointed, RewardTrainer):
    """RewardTrainer over elements of any kind; with a head where there are ratings.

    `shares`: of each criterion in the reward, where each has a row of the model's head; and `heads` says how
    each criterion's score relates to its ratings.
    """

    head: rating_head.RatingHead | None = None
    heads: torch.nn.ModuleList | None = None
    named: dict[str, float] | None = None  # the criteria with their shares
    shares: Tensor | None = None

    def learn_criteria(self, named: dict[str, float], heads: list[rating_head.RatingHead]) -> None:
        """Train a head for each criterion with the model, whose own head has as many rows."""
        self.named = named
        self.shares = torch.tensor(list(named.values()), dtype=torch.float32, device=self.args.device)
        self.heads = torch.nn.ModuleList(heads).to(self.args.device)
        model: Any = self.model
        model.rating_head = self.heads

    def finish(self, model: Any, folder: Path) -> None:
        if self.named:
            criteria.collapse(model, self.named, folder)

    def learn_ratings_by(self, head: rating_head.RatingHead) -> None:
        """Train this head with the model: as part of it, so that optimiser, clipping and checks see it."""
        self.head = head.to(self.args.device)
        model: Any = self.model
        model.rating_head = self.head

    def save_beside(self, folder: Path) -> None:
        if self.head is not None:
            rating_head.save(self.head, folder)
        if self.heads is not None:
            named = zip(self.named or {}, self.heads, strict=True)
            rating_head.save_each({name: cast(rating_head.RatingHead, one) for name, one in named}, folder)

    def load_beside(self, folder: Path) -> None:
        saved = rating_head.load(folder)
        if self.head is None or saved is None:
            return
        for weight, kept in zip(self.head.parameters(), saved.parameters(), strict=True):
            weight.data.copy_(kept.data)

    def _prepare_dataset(self, dataset: Dataset, *args: Any) -> Dataset:
        return dataset  # tokenized by us, and nothing too long is left in it

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        found: dict[str, float] = super().evaluate(*args, **kwargs) if self.eval_dataset is not None else {}
        return found

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        outputs = model(
            input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], use_cache=False
        )
        every = outputs.logits.float()  # (conversations, criteria), or one column
        scores = every[:, 0] if self.shares is None else every @ self.shares  # (conversations,)
        difference = scores[inputs["chosen"]] - scores[inputs["rejected"]]  # (comparisons,)
        elements = self.divisor(inputs, training=model.training)
        losses = comparison_loss(difference, margin=inputs["margin"], p=inputs["p"])
        loss = mean_over_elements(losses, weight=inputs["weight"], elements=elements)
        if len(inputs["ranks"]):
            ranks = inputs["ranks"]  # (rankings, completions)
            losses = plackett_luce(scores[inputs["ranked"]], ranks, mask=ranks >= 0)
            loss = loss + mean_over_elements(losses, weight=inputs["ranking_weight"], elements=elements)
        rated = None
        if len(inputs["rated"]) and self.head is not None:
            rated = self.head.loss(scores[inputs["rated"]], inputs["ratings"])  # (ratings,)
        elif len(inputs["rated"]) and self.heads is not None:
            rated = self._by_criterion(every, inputs)
        if rated is not None:
            loss = loss + mean_over_elements(rated, weight=inputs["rating_weight"], elements=elements)
        self._note(inputs, scores=scores, difference=difference, rated=rated, training=model.training)
        return (loss, outputs) if return_outputs else loss

    def _by_criterion(self, every: Tensor, inputs: dict[str, Any]) -> Tensor:
        """The loss of each rating by the head of its criterion, (ratings,)."""
        losses = torch.zeros(len(inputs["ratings"]), device=every.device)
        for number, head in enumerate(cast(torch.nn.ModuleList, self.heads)):
            here = inputs["criterion"] == number
            if here.any():
                scores = every[inputs["rated"][here], number]
                losses[here] = cast(rating_head.RatingHead, head).loss(scores, inputs["ratings"][here])
        return losses

    @torch.no_grad()
    def _note(
        self,
        inputs: dict[str, Any],
        *,
        scores: Tensor,
        difference: Tensor,
        rated: Tensor | None,
        training: bool,
    ) -> None:
        """TRL's metrics under TRL's names, and the mean loss of a rating; fetched from the device at once."""
        values = {
            "min_reward": scores.min(),
            "mean_reward": scores.mean(),
            "max_reward": scores.max(),
            "accuracy": share_above(difference, p=inputs["p"]),
            "margin": difference.mean(),
        }
        if rated is not None:
            values["rating_loss"] = rated.mean()
        *numbers, tokens = torch.stack([*values.values(), inputs["attention_mask"].sum()]).tolist()
        mode = "train" if training else "eval"
        for name, number in zip(values, numbers, strict=True):
            if number == number:  # nan: nothing but ties, or no comparison, in this batch
                self._metrics[mode][name].append(number)
        self._total_train_tokens += int(tokens) if mode == "train" else 0
        self._metrics[mode]["num_tokens"] = [self._total_train_tokens]


def make_trainer(
    *,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    train: Sequence[Learnt],
    test: Sequence[Learnt],
    config: RunConfig,
    run_dir: RunDir,
) -> ComparisonTrainer:
    """A trainer over rows of any of the tables. Held-out ratings count where there are some to learn from."""
    training, learning = config.training, config.reward_learning
    if is_encoder(model.config) and config.tuning.kind not in ENCODER_TUNING:
        raise Refused(
            f"An encoder is not trained with tuning of the kind {config.tuning.kind}.",
            "tuning.kind",
            f"Choose one of {', '.join(ENCODER_TUNING)}, or a causal language model.",
        )
    arguments = RewardConfig(
        **settings(training, seed=config.seed, output_dir=run_dir.checkpoints, tuning=config.tuning),
        max_length=None,
        remove_unused_columns=False,  # none is unused, and TRL does not know all
    )
    rated = [row for row in train if isinstance(row, Rated)]
    unseen = [row for row in test if rated or isinstance(row, Element)]
    without_dropout(model)
    criteria.expand(model, learning.heads)
    prepare(model, config)
    trainer = ComparisonTrainer(
        model=model,
        args=arguments,
        train_dataset=tokenized(train, tokenizer, learning=learning),
        eval_dataset=tokenized(unseen, tokenizer, learning=learning) if unseen else None,
        processing_class=tokenizer,
        data_collator=ElementCollator(pad_token_id=int(tokenizer.pad_token_id)),
        peft_config=peft_config(config, task="SEQ_CLS"),
    )
    if rated and learning.heads:
        scale = scale_of(run_dir, rated)
        mine = {name: [one for _, one in of_criterion(rated, name)] for name in learning.heads}
        heads = [rating_head.start(learning.rating_loss, mine[name], scale=scale, model="") for name in mine]
        trainer.learn_criteria(learning.heads, heads)
    elif rated:
        scale = scale_of(run_dir, rated)
        trainer.learn_ratings_by(
            rating_head.start(learning.rating_loss, rated, scale=scale, model=config.model)
        )
    make_ready(trainer.model, config)
    return trainer
