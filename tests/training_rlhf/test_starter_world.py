"""The small world, and what its simulated people like."""

import ast
import doctest
import random
from pathlib import Path

import pytest

from training.rlhf.starter import hidden_preference, world

PROMPT = "Tell me a story about a fox and a lantern."
GOOD = (
    "Once upon a time a fox found a lantern by the river. The fox shared some bread with a cold ant. "
    "The fox mended a coat for a sad hen. They lived happily ever after."
)
GPU_SIDE = Path(world.__file__).resolve().parent.parent


@pytest.mark.parametrize("module", [world, hidden_preference])
def test_the_examples_in_the_docstrings_hold(module: object) -> None:
    tested = doctest.testmod(module)  # type: ignore[arg-type]
    assert tested.attempted and not tested.failed


def test_prompts_are_many_and_different_and_drawn_by_the_seed() -> None:
    prompts = world.prompts(3000, seed=1)
    assert len(set(prompts)) == 3000
    assert prompts == world.prompts(3000, seed=1)
    assert prompts != world.prompts(3000, seed=2)


def test_no_test_prompt_asks_for_a_pair_of_a_training_prompt() -> None:
    train = {world.asked_for(prompt) for prompt in world.prompts(4956, seed=0)}
    test = {world.asked_for(prompt) for prompt in world.prompts(1188, seed=0, split="test")}
    assert train and test and not train & test


def test_more_prompts_than_the_world_has_are_refused_with_the_number() -> None:
    with pytest.raises(ValueError, match="1188 for test"):
        world.prompts(2000, seed=0, split="test")


def test_every_prompt_says_what_it_asks_for() -> None:
    for prompt in world.prompts(500, seed=3):
        creature, thing = world.asked_for(prompt)
        assert creature in world.CREATURES and thing in world.THINGS


def test_no_deed_is_part_of_another_and_no_word_passes_for_a_hero() -> None:
    deeds = world.KIND_DEEDS + world.UNKIND_DEEDS
    assert not [(a, b) for a in deeds for b in deeds if a != b and a in b]
    told = [
        *world.NEIGHBOURS,
        *world.TRAITS,
        *world.PLACES,
        *deeds,
        *world.OPENINGS,
        *world.FILLERS,
        *world.ENDINGS,
    ]
    told_words = {word for text in told for word in world.words_of(text)}
    assert not told_words & {*world.CREATURES, *world.THINGS}


def test_stories_vary_from_bad_to_perfect() -> None:
    rng = random.Random(0)
    scores = [hidden_preference.score(p, world.story_for(p, rng)) for p in world.prompts(1000, seed=0)]
    good = sum(score >= 8 for score in scores) / len(scores)
    bad = sum(score <= 3 for score in scores) / len(scores)
    assert 0.05 < good < 0.3 and 0.2 < bad < 0.5


def test_what_every_story_says_is_known_to_the_world() -> None:
    rng = random.Random(1)
    for prompt in world.prompts(300, seed=1):
        assert set(world.words_of(world.story_for(prompt, rng))) <= world.vocabulary()


@pytest.mark.parametrize(
    "worse",
    [
        GOOD.replace("fox", "owl"),
        GOOD.replace("lantern", "drum"),
        GOOD.replace("shared some bread with", "stole a pie from"),
        GOOD.replace(" They lived happily ever after.", ""),
        GOOD + " It began to rain." * 20,
        "Once upon a time a fox found a lantern.",
        GOOD + " The fox mended a coat for a sad hen.",
    ],
)
def test_each_quality_counts(worse: str) -> None:
    assert hidden_preference.score(PROMPT, worse) < hidden_preference.score(PROMPT, GOOD) - 0.5


@pytest.mark.parametrize(
    "text",
    ["", " \n", "\0", "fox lantern " * 500, "你好" * 1000, "The end. " * 300, "." * 5000, GOOD * 50,
     "shared some bread with " * 100],
)  # fmt: skip
def test_garbage_and_repetition_earn_little(text: str) -> None:
    assert hidden_preference.WORST <= hidden_preference.score(PROMPT, text) < 5


def test_a_prompt_of_another_world_can_be_scored() -> None:
    assert hidden_preference.score("What is the capital of France?", GOOD) == hidden_preference.BEST


def test_a_rater_without_noise_always_takes_the_better_text_whatever_the_side() -> None:
    rng = random.Random(0)
    bad = "One day an owl saw a drum in a cave. The owl shouted at a sad hen."
    far = hidden_preference.prefer(PROMPT, GOOD, bad, rng=rng, noise=0)
    assert far == hidden_preference.Opinion(outcome="a", strength=4)
    assert hidden_preference.prefer(PROMPT, bad, GOOD, rng=rng, noise=0).outcome == "b"
    assert hidden_preference.prefer(PROMPT, GOOD, GOOD, rng=rng, noise=0).outcome == "tie"


def test_noise_makes_choices_follow_bradley_terry() -> None:
    """A difference of 1.5 points at noise 1: sigmoid(1.5) = 0.818, ties (|d| < 0.35) taken off both sides."""
    rng = random.Random(0)
    worse = GOOD.replace("lantern", "drum")
    outcomes = [hidden_preference.prefer(PROMPT, GOOD, worse, rng=rng, noise=1).outcome for _ in range(4000)]
    assert outcomes.count("a") / 4000 == pytest.approx(0.760, abs=0.02)  # sigmoid(1.15)
    assert outcomes.count("b") / 4000 == pytest.approx(0.136, abs=0.02)  # sigmoid(-1.85)


def test_ranks_and_stars_follow_the_score() -> None:
    rng = random.Random(0)
    middle = GOOD.replace("fox", "owl").replace("mended a coat for", "shouted at")
    texts = [middle, GOOD, "", GOOD]
    assert hidden_preference.rank(PROMPT, texts, rng=rng, noise=0) == [2, 1, 3, 1]
    given = [hidden_preference.stars(PROMPT, text, rng=rng, noise=0) for text in texts]
    assert given[1] == 5 and given[2] == 1 and 1 < given[0] < 5


def test_no_training_code_knows_the_hidden_preference() -> None:
    for path in GPU_SIDE.rglob("*.py"):
        if path.name in ("hidden_preference.py", "watched.py"):  # the latter at weight 0 only
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = (
                [alias.name for alias in node.names] if isinstance(node, ast.Import | ast.ImportFrom) else []
            )
            module = node.module or "" if isinstance(node, ast.ImportFrom) else ""
            assert not [name for name in [module, *names] if "hidden_preference" in name], path
