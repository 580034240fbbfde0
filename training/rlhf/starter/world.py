"""The small world of the starter policy: prompts, and stories of varying quality. Standard library only.

A prompt asks for a story about a creature and a thing. A story opens, tells of deeds, kind and unkind, and
may end properly. How good it is varies on purpose and independently in four ways (on topic, kindness, ending,
length), so that people's preferences can teach the policy something. The starter is trained on these stories;
what counts as good is said in hidden_preference.py, and never used in training.
"""

import hashlib
import random
from dataclasses import dataclass
from typing import Literal

Split = Literal["train", "test"]

CREATURES = (
    "badger", "bat", "bear", "bee", "camel", "cat", "crab", "crow", "deer", "dog", "dragon", "duck", "eagle",
    "elephant", "fox", "frog", "goat", "goose", "hare", "horse", "lion", "mole", "monkey", "otter", "owl",
    "panda", "pig", "rabbit", "snail", "tiger", "turtle", "wolf",
)  # fmt: skip
THINGS = (
    "apple", "basket", "bell", "blanket", "boat", "book", "bridge", "button", "candle", "clock", "coin",
    "crown", "cup", "drum", "egg", "feather", "flute", "hat", "key", "kite", "ladder", "lantern", "letter",
    "map", "mirror", "pearl", "pumpkin", "ring", "scarf", "shell", "spoon", "umbrella",
)  # fmt: skip
# Whom the deeds are done to. None of them is a creature above, so that they never pass for the hero.
NEIGHBOURS = ("ant", "child", "hen", "lamb", "mouse", "newt", "pony", "robin", "seal", "toad", "wren", "worm")
TRAITS = ("cold", "hungry", "lonely", "lost", "old", "sad", "sick", "small", "tired", "young")

PHRASINGS = (
    "Tell me a story about {creature} and {thing}.",
    "Write a short story about {creature} and {thing}.",
    "Please tell a story with {creature} and {thing} in it.",
    "I would like a story about {creature} that finds {thing}.",
    "Can you tell me about {creature} and {thing}?",
    "Make up a tale of {creature} and {thing}.",
)

OPENINGS = (
    "Once upon a time {hero} found {thing} {place}.",
    "One day {hero} saw {thing} {place}.",
    "Long ago {hero} had {thing} {place}.",
    "There once was {hero} who kept {thing} {place}.",
)
PLACES = (
    "by the river", "in the forest", "on a hill", "near the old mill", "under a tree", "in a cave",
    "at the market", "by the sea",
)  # fmt: skip

# What was done, without the hero before it and the neighbour after it. No deed contains another.
KIND_DEEDS = (
    "shared some bread with", "gave warm soup to", "carried water for", "sang a song for",
    "built a house for", "found the way home for", "picked berries for", "told the truth to",
    "made a bed for", "mended a coat for",
)  # fmt: skip
UNKIND_DEEDS = (
    "stole a pie from", "threw mud at", "told a lie to", "laughed at", "took the bed of", "broke the toy of",
    "shouted at", "hid the shoes of", "pushed and tripped", "locked the door on",
)  # fmt: skip
FILLERS = (
    "The wind blew softly.",
    "It began to rain.",
    "The sun was warm that day.",
    "Nobody knew why.",
    "Then the {creature} slept for a while.",
    "The {creature} looked at the {thing}.",
)
ENDINGS = (
    "They lived happily ever after.",
    "And they all went home. The end.",
    "From that day on they were friends. The end.",
    "And so the story ends well.",
)

_TEST_SHARE = 0.2  # of the pairs of creature and thing


@dataclass(frozen=True, kw_only=True)
class Story:
    """What a story is made of, before it is told."""

    creature: str
    thing: str
    deeds: tuple[bool, ...]  # in order: True is kind
    has_ending: bool


def prompts(count: int, *, seed: int, split: Split = "train") -> list[str]:
    """`count` different prompts in an order drawn by `seed`.

    The splits share no pair of creature and thing, so a test prompt asks for what no training prompt asked.
    There are 4,956 training and 1,188 test prompts. Raises ValueError when more are wanted.
    """
    everything = [
        phrasing.format(creature=with_article(creature), thing=with_article(thing))
        for creature in CREATURES
        for thing in THINGS
        if split_of(creature, thing) == split
        for phrasing in PHRASINGS
    ]
    if count > len(everything):
        raise ValueError(f"{count} prompts wanted, but the world has {len(everything)} for {split}")
    return random.Random(seed).sample(everything, count)


def split_of(creature: str, thing: str) -> Split:
    digest = hashlib.sha256(f"{creature} {thing}".encode()).digest()
    return "test" if digest[0] < 256 * _TEST_SHARE else "train"


def asked_for(prompt: str) -> tuple[str | None, str | None]:
    """The creature and the thing that a prompt asks for; None for what it does not name.

    >>> asked_for("Tell me a story about an owl and a drum.")
    ('owl', 'drum')
    """
    words = words_of(prompt)
    creature = next((word for word in words if word in CREATURES), None)
    thing = next((word for word in words if word in THINGS), None)
    return creature, thing


def words_of(text: str) -> list[str]:
    """Lower-case words, without punctuation."""
    return [word for raw in text.lower().split() if (word := raw.strip(".,;:!?\"'()"))]


def with_article(noun: str) -> str:
    return f"an {noun}" if noun[0] in "aeiou" else f"a {noun}"


def imagine(rng: random.Random, *, creature: str, thing: str) -> Story:
    """Draw a story of mixed quality in answer to a prompt: about one in seven is good in nearly every way."""
    if rng.random() < 0.35:
        creature = rng.choice(CREATURES)
    if rng.random() < 0.35:
        thing = rng.choice(THINGS)
    count = rng.choice((0, 1, 2, 2, 3, 3, 4, 7, 8))
    kindness = rng.choice((0.05, 0.5, 0.95))
    deeds = tuple(rng.random() < kindness for _ in range(count))
    return Story(creature=creature, thing=thing, deeds=deeds, has_ending=rng.random() < 0.5)


def tell(story: Story, rng: random.Random) -> str:
    """Put a story into words."""
    nouns = {"creature": story.creature, "thing": story.thing}
    opening = rng.choice(OPENINGS).format(
        hero=with_article(story.creature), thing=with_article(story.thing), place=rng.choice(PLACES)
    )
    sentences = [opening]
    kind = rng.sample(KIND_DEEDS, len(KIND_DEEDS))
    unkind = rng.sample(UNKIND_DEEDS, len(UNKIND_DEEDS))
    for is_kind in story.deeds:
        if rng.random() < 0.2:
            sentences.append(rng.choice(FILLERS).format(**nouns))
        neighbour = with_article(f"{rng.choice(TRAITS)} {rng.choice(NEIGHBOURS)}")
        deed = kind.pop() if is_kind else unkind.pop()
        sentences.append(f"The {story.creature} {deed} {neighbour}.")
    if story.has_ending:
        sentences.append(rng.choice(ENDINGS))
    return " ".join(sentences)


def story_for(prompt: str, rng: random.Random) -> str:
    """A story of mixed quality in answer to a prompt of this world."""
    creature, thing = asked_for(prompt)
    story = imagine(rng, creature=creature or rng.choice(CREATURES), thing=thing or rng.choice(THINGS))
    return tell(story, rng)


def vocabulary() -> frozenset[str]:
    """Every word that occurs in a story."""
    texts = (*CREATURES, *THINGS, *NEIGHBOURS, *TRAITS, *OPENINGS, *PLACES, *KIND_DEEDS, *UNKIND_DEEDS,
             *FILLERS, *ENDINGS, "a an the")  # fmt: skip
    return frozenset(word for text in texts for word in words_of(text) if "{" not in word)
