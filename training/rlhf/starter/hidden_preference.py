"""What the simulated people of the small world like, and how noisily they say so. Standard library only.

Used by simulated raters and by evaluation alone. No training code may import it: the policy learns of it
only through judgements, as it would learn of people's taste (test_starter_world.py holds that).

A text earns points, from about -7 to 10:

    on topic     1.5 for naming the creature that was asked for, 1.5 for the thing
    deeds        1.5 for each kind deed, at most 2 counted; -1.5 for each unkind one, at most 2 counted
    ending       2 for closing with one of the world's endings
    length       2 from 25 to 60 words, falling to 0 at 8 and at 110 words
    repetition   -1 for each sentence said again, at most -4
    other words  what was earned above zero is scaled by the share of words that the world knows

Raters see the difference of two texts through logistic noise, which is the Bradley-Terry model; of several
texts through Gumbel noise, which is Plackett-Luce. `noise` is its scale in points: 0 is a perfect rater; two
raters of noise 1 agree about a pair of the starter's stories 77 times in 100, as careful people do.
"""

import math
import random
import re
from dataclasses import dataclass
from typing import Literal

from training.rlhf.starter import world

BEST, WORST = 10.0, -7.0
_VOCABULARY = world.vocabulary()
_TIE_BELOW = 0.35  # points: differences that a rater does not see
_STRENGTH_STEPS = (1.5, 3.5, 5.5)  # points from which a preference is of strength 2, 3 and 4

Outcome = Literal["a", "b", "tie"]


@dataclass(frozen=True, kw_only=True)
class Opinion:
    """What a simulated rater says of two texts; `strength` is 1 (slightly) to 4 (far better), 0 for a tie."""

    outcome: Outcome
    strength: int


def score(prompt: str, completion: str) -> float:
    """How much the simulated people like a completion. Any text is fine.

    >>> story = ("Once upon a time a fox found a lantern by the river. "
    ...          "The fox shared some bread with a cold ant. The fox mended a coat for a sad hen. "
    ...          "They lived happily ever after.")
    >>> score("Tell me a story about a fox and a lantern.", story)
    10.0
    >>> score("Tell me a story about an owl and a lantern.", story)
    8.5
    >>> score("Tell me a story about a fox and a lantern.", "")
    0.0
    """
    words = world.words_of(completion)
    if not words:
        return 0.0
    sentences = [" ".join(world.words_of(part)) for part in re.split(r"[.!?]+", completion)]
    sentences = [sentence for sentence in sentences if sentence]
    once = set(sentences)
    unkind = min(2, _deeds(once, world.UNKIND_DEEDS))
    earned = _topic(prompt, words) + 1.5 * min(2, _deeds(once, world.KIND_DEEDS)) - 1.5 * unkind
    earned += 2.0 * _ends_well(sentences) + _length(len(words))
    known = sum(word in _VOCABULARY for word in words) / len(words)
    repeats = min(4, len(sentences) - len(once))
    return (earned * known if earned > 0 else earned) - repeats


def prefer(prompt: str, a: str, b: str, *, rng: random.Random, noise: float = 1.0) -> Opinion:
    """Compare two completions as a rater with noise of that scale does (Bradley-Terry on the score)."""
    seen = score(prompt, a) - score(prompt, b) + noise * _logistic(rng)
    if abs(seen) < _TIE_BELOW:
        return Opinion(outcome="tie", strength=0)
    strength = 1 + sum(abs(seen) >= step for step in _STRENGTH_STEPS)
    return Opinion(outcome="a" if seen > 0 else "b", strength=strength)


def rank(prompt: str, completions: list[str], *, rng: random.Random, noise: float = 1.0) -> list[int]:
    """Rank completions from 1 (best); those that look about equally good share a rank (Plackett-Luce)."""
    seen = [score(prompt, text) + noise * _gumbel(rng) for text in completions]
    ranks = [0] * len(seen)
    place, last = 0, math.inf
    for index in sorted(range(len(seen)), key=lambda item: -seen[item]):
        if last - seen[index] >= _TIE_BELOW:
            place += 1
            last = seen[index]
        ranks[index] = place
    return ranks


def stars(
    prompt: str, completion: str, *, rng: random.Random, noise: float = 1.0, low: int = 1, high: int = 5
) -> int:
    """Rate one completion on a scale of whole numbers; its ends are 0 points and full marks."""
    seen = score(prompt, completion) + noise * _logistic(rng)
    share = min(1.0, max(0.0, seen / BEST))
    return low + min(high - low, int(share * (high - low + 1)))


def _topic(prompt: str, words: list[str]) -> float:
    """A prompt of another world asks for nothing, so anything is on topic."""
    creature, thing = world.asked_for(prompt)
    return 1.5 * (creature is None or creature in words) + 1.5 * (thing is None or thing in words)


def _deeds(sentences: set[str], deeds: tuple[str, ...]) -> int:
    """How many different deeds are done, told as in this world: the {creature} {deed} ..."""
    subjects = "|".join(world.CREATURES)
    return sum(any(re.match(rf"the ({subjects}) {deed} \w", text) for text in sentences) for deed in deeds)


def _ends_well(sentences: list[str]) -> bool:
    told = ". ".join(sentences)
    endings = (". ".join(" ".join(world.words_of(part)) for part in ending.rstrip(".").split("."))
               for ending in world.ENDINGS)  # fmt: skip
    return any(told == ending or told.endswith(f". {ending}") for ending in endings)


def _length(words: int) -> float:
    if words < 25:
        return 2.0 * max(0.0, (words - 8) / (25 - 8))
    return 2.0 * min(1.0, max(0.0, (110 - words) / (110 - 60)))


def _logistic(rng: random.Random) -> float:
    uniform = min(max(rng.random(), 1e-12), 1 - 1e-12)
    return math.log(uniform / (1 - uniform))


def _gumbel(rng: random.Random) -> float:
    return -math.log(-math.log(min(max(rng.random(), 1e-12), 1 - 1e-12)))
