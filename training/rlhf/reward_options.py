"""The options of each kind of reward function, checked by both sides. Standard library only.

`options_of` gives a function's options with their defaults, or raises ConfigError with the name of the one
that cannot be. What they mean for a completion is in training.rlhf.reward_kinds.reward_functions and training.rlhf.reward_kinds.judge.
"""

import dataclasses
import re
import types
import typing
from dataclasses import dataclass, field
from re import _parser  # type: ignore[attr-defined]
from typing import Any
from urllib.parse import urlsplit

from training.rlhf.method_settings import ConfigError, RewardFunction, check

MOST_WIDE = 2  # repeats of a pattern that may take one character more or less
MOST_CHOICES = 10  # optional parts and alternatives of a pattern
_REPEATS = ("MAX_REPEAT", "MIN_REPEAT", "POSSESSIVE_REPEAT")


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """A reward model of ours. One that agrees with people too seldom is refused (lessons: PPO collapses)."""

    min_accuracy: float = 0.55  # on held-out comparisons; 0.5 is a coin
    other_template: bool = False  # take one with another template or tokenizer than the policy's
    batch_size: int = 32

    def __post_init__(self) -> None:
        check(0 <= self.min_accuracy <= 1, f"min_accuracy is {self.min_accuracy}: from 0 to 1")
        check(1 <= self.batch_size <= 4096, f"batch_size is {self.batch_size}: from 1 to 4096")


@dataclass(frozen=True, kw_only=True)
class LengthOptions:
    """How long a completion should be: a target, or a span of which either end may be open."""

    unit: str = "tokens"
    target: int | None = None
    min: int | None = None
    max: int | None = None
    scale: float = 16.0  # how far off costs 0.41; from there each further scale costs about 1

    def __post_init__(self) -> None:
        check(self.unit in ("tokens", "characters"), f"unit is {self.unit!r}: tokens or characters")
        ends = [one for one in (self.min, self.max) if one is not None]
        check(bool(ends) != (self.target is not None), "give either target, or min, max or both")
        check(all(one >= 0 for one in (*ends, self.target or 0)), "a length is 0 or more")
        check(ends == sorted(ends), f"min is {self.min}: at most max ({self.max})")
        check(0 < self.scale <= 1e6, f"scale is {self.scale}: above 0, at most 1,000,000")


@dataclass(frozen=True, kw_only=True)
class RegexOptions:
    """A pattern that a completion should hold: is it there (1 or 0), or how often."""

    pattern: str
    mode: str = "presence"
    most: int = 10  # counted
    ignore_case: bool = False
    most_characters: int = 2000  # of a completion that are read

    def __post_init__(self) -> None:
        check(self.mode in ("presence", "count"), f"mode is {self.mode!r}: presence or count")
        check(1 <= self.most <= 10_000, f"most is {self.most}: from 1 to 10,000")
        check(
            1 <= self.most_characters <= 10_000,
            f"most_characters is {self.most_characters}: from 1 to 10,000",
        )
        check_pattern(self.pattern)


@dataclass(frozen=True, kw_only=True)
class ForbiddenOptions:
    """Words that cost 1, once or each time; whole words, whatever their case."""

    words: list[str]
    mode: str = "presence"

    def __post_init__(self) -> None:
        check(self.mode in ("presence", "count"), f"mode is {self.mode!r}: presence or count")
        check(0 < len(self.words) <= 10_000, "words: from 1 to 10,000 of them")
        check(all(word.strip() for word in self.words), "words: none may be empty")


@dataclass(frozen=True, kw_only=True)
class PythonOptions:
    """`module:function` of a module that the worker allows in RATCHET_REWARD_MODULES."""

    function: str

    def __post_init__(self) -> None:
        fits = re.fullmatch(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*", self.function)
        check(fits is not None, f"function is {self.function!r}: module:function")


@dataclass(frozen=True, kw_only=True)
class JudgeOptions:
    """A language model that reads a rubric. A server's key is in RATCHET_JUDGE_API_KEY, never here."""

    rubric: str
    model: str = ""  # as the server names it
    timeout: float = 60.0  # seconds for one answer
    retries: int = 4  # each waits twice as long as the one before, from half a second
    at_once: int = 8  # questions under way at a server
    max_tokens: int = 16  # of an answer; one that thinks aloud needs more, and answers nonsense all the same

    def __post_init__(self) -> None:
        check(bool(self.rubric.strip()), "rubric: write what makes a completion good")
        check(0 < self.timeout <= 3600, f"timeout is {self.timeout}: above 0, at most 3,600 seconds")
        check(0 <= self.retries <= 10, f"retries is {self.retries}: from 0 to 10")
        check(1 <= self.at_once <= 64, f"at_once is {self.at_once}: from 1 to 64")
        check(1 <= self.max_tokens <= 4096, f"max_tokens is {self.max_tokens}: from 1 to 4096")


@dataclass(frozen=True, kw_only=True)
class HiddenPreferenceOptions:
    """What the demo's simulated people want. It is watched at weight 0, to see a reward part from it."""


Options = (
    ModelOptions
    | LengthOptions
    | RegexOptions
    | ForbiddenOptions
    | PythonOptions
    | JudgeOptions
    | HiddenPreferenceOptions
)
_KINDS: dict[str, Any] = {
    "model": ModelOptions,
    "length": LengthOptions,
    "regex": RegexOptions,
    "forbidden": ForbiddenOptions,
    "python": PythonOptions,
    "judge": JudgeOptions,
    "hidden_preference": HiddenPreferenceOptions,
}


def options_of(reward: RewardFunction) -> Options:
    """The function's options, whole. Raises ConfigError, with its name, for what cannot be."""
    where = f"rewards.{reward.name}"
    kind = _KINDS[reward.kind]
    known = typing.get_type_hints(kind)
    for name, value in reward.options.items():
        check(name in known, f"{where}.{name}: no such option of kind {reward.kind}")
        check(_fits(value, known[name]), f"{where}.{name} is {value!r}: of the wrong type")
    for item in dataclasses.fields(kind):
        needed = item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING
        check(not needed or item.name in reward.options, f"{where}.{item.name}: has to be given")
    try:
        options: Options = kind(**reward.options)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error
    _check_location(reward, where)
    return options


def is_address(location: str) -> bool:
    return location.startswith(("http://", "https://"))


def _check_location(reward: RewardFunction, where: str) -> None:
    if reward.kind not in ("model", "judge"):
        return
    wanted = "its folder" if reward.kind == "model" else "a local policy, or an address"
    check(bool(reward.location), f"{where}.location: name {wanted}")
    if is_address(reward.location):
        check(reward.kind == "judge", f"{where}.location is {reward.location!r}: a folder")
        parts = urlsplit(reward.location)
        check(bool(parts.hostname), f"{where}.location is {reward.location!r}: an address names a host")
        check(
            "@" not in parts.netloc and not parts.query,
            f"{where}.location: a key does not belong into a recipe; set RATCHET_JUDGE_API_KEY",
        )


def _fits(value: Any, hint: Any) -> bool:
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return any(_fits(value, one) for one in typing.get_args(hint))
    if typing.get_origin(hint) is list:
        return isinstance(value, list | tuple) and all(_fits(one, typing.get_args(hint)[0]) for one in value)
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    return isinstance(value, hint) and (hint is bool or not isinstance(value, bool))


@dataclass
class _Found:
    wide: int = 0
    choices: int = 0
    nested: bool = field(default=False)


def check_pattern(pattern: str) -> None:
    """Refuse what is no regular expression, and what could search for hours.

    Python's search has no limit of time, and `(a+)+` tries 2^n ways. So within a repeat nothing may vary;
    beside it at most MOST_WIDE repeats and MOST_CHOICES choices: a search then takes at worst the cube of the
    text's length, and no more than `most_characters` of a text are read.

    >>> check_pattern(r"\\bplease\\b")
    >>> check_pattern("(a+)+")
    Traceback (most recent call last):
    training.rlhf.method_settings.ConfigError: pattern: a repeat within a repeat may search for hours
    """
    check(0 < len(pattern) <= 1000, "pattern: from 1 to 1,000 characters")
    try:
        re.compile(pattern)
        tree = _parser.parse(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        raise ConfigError(f"pattern is no regular expression: {error}") from error
    found = _Found()
    _walk(tree, found, repeated=False)
    check(not found.nested, "pattern: a repeat within a repeat may search for hours")
    check(found.wide <= MOST_WIDE, f"pattern: at most {MOST_WIDE} repeats of open length")
    check(found.choices <= MOST_CHOICES, f"pattern: at most {MOST_CHOICES} alternatives and optional parts")


def _walk(node: Any, found: _Found, *, repeated: bool) -> None:
    """Count what may vary in a parsed pattern; `repeated`: it stands within a repeat."""
    if isinstance(node, list | tuple) and len(node) == 2 and str(node[0]) in _REPEATS:
        low, high, body = node[1]
        varies = low != high
        found.nested |= repeated and varies
        found.wide += varies and high > 1
        found.choices += varies and high == 1
        _walk(body, found, repeated=repeated or high > 1)
        return
    if isinstance(node, list | tuple) and len(node) == 2 and str(node[0]) == "BRANCH":
        found.nested |= repeated
        found.choices += len(node[1][1])
    if isinstance(node, list | tuple | _parser.SubPattern):
        for part in node:
            _walk(part, found, repeated=repeated)
