"""What a screen of four is worth: rankings of 4 against pairs, with the same number of screens.

    python -m tests.benchmarks.label_efficiency [--screens 200] [--repeats 2]

Simulated raters (training.rlhf.starter.hidden_preference, noise 1) judge stories of mixed quality. On each
screen they compare two stories or rank four for the same prompt. A reward model learns from either, the
rankings both as pairs and as a whole (Plackett-Luce), with the same recipe and as many steps; the measure is
how often it prefers, of two held-out stories, the one that the hidden preference prefers without noise.
Repeats draw other screens. Intervals take the pairs of a prompt together, over all repeats. The last line is
one JSON object. What a screen of four costs a rater in time is for people to weigh: it holds twice the text.
"""

import argparse
import json
import random
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from training.rlhf.config import RunConfig, Training
from training.rlhf.method_settings import RewardLearning
from training.rlhf.run_dir import RunDir
from training.rlhf.starter import hidden_preference, world
from training.rlhf.starter.build import SHIPPED

ARMS = {
    "pairs": ("pairs", "pairs"),  # table, ranking_loss
    "rankings as pairs": ("rankings", "pairs"),
    "rankings as a whole": ("rankings", "plackett_luce"),
}
HELD_OUT_PROMPTS, HELD_OUT_STORIES = 200, 3
TOO_CLOSE = 0.35  # points: what even a perfect rater would call a tie

Row = dict[str, Any]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--screens", type=int, default=200)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--epochs", type=float, default=3.0)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS))
    options = parser.parse_args()

    import datasets

    from training.rlhf.measures import figures

    datasets.disable_progress_bars()
    pairs = held_out_pairs(random.Random("held out"))
    prompts = [prompt for prompt, _, _ in pairs]
    found: dict[str, dict[str, Any]] = {}
    for arm in options.arms:
        right: list[list[float]] = []
        began = time.perf_counter()
        for repeat in range(options.repeats):
            right.append(learn(arm, pairs, options, seed=repeat))
            print(f"{arm}, repeat {repeat}: {sum(right[-1]) / len(pairs):.3f}", flush=True)
        rate = figures.clustered_rate([one for part in right for one in part], prompts * options.repeats)
        found[arm] = {
            "accuracy": round(rate["rate"], 4),
            "low": round(rate["low"], 4),
            "high": round(rate["high"], 4),
            "of_each_repeat": [round(sum(one) / len(one), 4) for one in right],
            "seconds": round(time.perf_counter() - began, 1),
        }
    print(
        json.dumps(
            {
                "screens": options.screens,
                "epochs": options.epochs,
                "held_out": {"pairs": len(pairs), "prompts": len(set(prompts))},
                **found,
            }
        )
    )
    return 0


def held_out_pairs(rng: random.Random) -> list[tuple[str, str, str]]:
    """Prompt, the better story and the other; what is too close to call is left out."""
    found = []
    for prompt in world.prompts(HELD_OUT_PROMPTS, seed=0, split="test"):
        stories = [world.story_for(prompt, rng) for _ in range(HELD_OUT_STORIES)]
        for place, one in enumerate(stories):
            for other in stories[place + 1 :]:
                better, worse = sorted((one, other), key=lambda text: -hidden_preference.score(prompt, text))
                gap = hidden_preference.score(prompt, better) - hidden_preference.score(prompt, worse)
                if gap >= TOO_CLOSE:
                    found.append((prompt, better, worse))
    return found


def screens(table: str, count: int, *, seed: int) -> list[Row]:
    """What raters say on so many screens; other prompts, stories and noise for each seed."""
    rng = random.Random(f"{table} {seed}")
    prompts = world.prompts(count, seed=seed)
    if table == "rankings":
        return [_ranking(prompt, rng) for prompt in prompts]
    return [_pair(prompt, rng) for prompt in prompts]


def _pair(prompt: str, rng: random.Random) -> Row:
    one, other = (world.story_for(prompt, rng) for _ in range(2))
    said = hidden_preference.prefer(prompt, one, other, rng=rng)
    chosen, rejected = (other, one) if said.outcome == "b" else (one, other)
    return {
        "prompt": _turn("user", prompt),
        "chosen": _turn("assistant", chosen),
        "rejected": _turn("assistant", rejected),
        "p": 0.5 if said.outcome == "tie" else 1.0,
        "strength": said.strength,
    }


def _ranking(prompt: str, rng: random.Random) -> Row:
    stories = [world.story_for(prompt, rng) for _ in range(4)]
    return {
        "prompt": _turn("user", prompt),
        "completions": [_turn("assistant", story) for story in stories],
        "ranks": hidden_preference.rank(prompt, stories, rng=rng),
    }


def _turn(role: str, content: str) -> list[dict[str, str]]:
    return [{"role": role, "content": content}]


def learn(
    arm: str, pairs: list[tuple[str, str, str]], options: argparse.Namespace, *, seed: int
) -> list[float]:
    """Train on the screens of an arm; for each held-out pair 1 where the better story scores higher."""
    from transformers import PrinterCallback

    from training.rlhf import loading, reward_model, scoring

    table, ranking_loss = ARMS[arm]
    config = RunConfig(
        method="reward_model",
        seed=seed,
        model=str(SHIPPED),
        training=Training(
            learning_rate=options.learning_rate,
            epochs=options.epochs,
            batch_size=8,
            max_length=512,
            save_every=100_000,
        ),
        reward_learning=RewardLearning(ranking_loss=ranking_loss),  # type: ignore[arg-type]
    )
    with tempfile.TemporaryDirectory(prefix="ratchet-labels-") as folder:
        run_dir = RunDir(Path(folder))
        run_dir.data.mkdir()
        rows = screens(table, options.screens, seed=seed)
        (run_dir.data / f"{table}.train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        tokenizer = loading.load_tokenizer(config.model)
        model = loading.load_reward_base(config.model, seed=seed)
        loading.fit(model, tokenizer, where=config.model)
        trainer = reward_model.make_trainer(
            model=model,
            tokenizer=tokenizer,
            train=reward_model.tables(run_dir, config, "train")[table],
            test=[],
            config=config,
            run_dir=run_dir,
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    model.train(False)
    texts = list(dict.fromkeys((prompt, text) for prompt, *both in pairs for text in both))
    talks = [[*_turn("user", prompt), *_turn("assistant", text)] for prompt, text in texts]
    score = dict(zip(texts, scoring.reward_scores(model, tokenizer, talks), strict=True))
    return [float(score[prompt, better] > score[prompt, worse]) for prompt, better, worse in pairs]


if __name__ == "__main__":
    sys.exit(main())
