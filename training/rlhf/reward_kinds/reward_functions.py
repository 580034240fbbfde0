"""Rewards that need no model: length, a pattern, forbidden words, and a function of one's own.

Each reads the text of a completion as people would; `length` counts the tokens that were drawn, the one that
ended it among them.
"""

import importlib
import math
import os
import re
from collections.abc import Callable, Sequence
from typing import Any

from training.rlhf.failures import Refused
from training.rlhf.rendering import Messages
from training.rlhf.reward_options import ForbiddenOptions, LengthOptions, PythonOptions, RegexOptions
from training.rlhf.sampling import Sampled

ALLOWED = "RATCHET_REWARD_MODULES"


def length_reward(length: int, options: LengthOptions) -> float:
    """0 where the length is wanted, below where it is not: 1 - sqrt(1 + (d / scale)^2), d being how far off.

    Smooth near the goal and a straight line far from it, so that an outlier does not outweigh a batch.

    >>> [round(length_reward(n, LengthOptions(target=10, scale=4)), 3) for n in (10, 11, 14, 50)]
    [0.0, -0.031, -0.414, -9.05]
    >>> [round(length_reward(n, LengthOptions(min=5, max=8, scale=3)), 3) for n in (5, 8, 2, 12)]
    [0.0, 0.0, -0.414, -0.667]
    """
    low = options.target if options.target is not None else options.min or 0
    high = options.target if options.target is not None else options.max
    off = max(low - length, length - high if high is not None else 0, 0)
    return 1.0 - math.sqrt(1 + (off / options.scale) ** 2)


def lengths(samples: Sequence[Sampled], options: LengthOptions) -> list[float]:
    return [
        length_reward(one.tokens if options.unit == "tokens" else len(one.text), options) for one in samples
    ]


def matches(texts: Sequence[str], options: RegexOptions) -> list[float]:
    """1 or 0 for presence; for count the number of matches that do not overlap, up to `most`."""
    pattern = re.compile(options.pattern, re.IGNORECASE if options.ignore_case else 0)
    most = options.most if options.mode == "count" else 1
    return [float(_count(pattern, text[: options.most_characters], most)) for text in texts]


def forbidden(texts: Sequence[str], options: ForbiddenOptions) -> list[float]:
    """-1 for a text with one of the words, or for each time that one occurs.

    >>> forbidden(["No, NO.", "Nothing.", "know"], ForbiddenOptions(words=["no"], mode="count"))
    [-2.0, 0.0, 0.0]
    """
    longest_first = sorted(options.words, key=len, reverse=True)
    words = "|".join(re.escape(word.strip()) for word in longest_first)
    pattern = re.compile(rf"(?<!\w)(?:{words})(?!\w)", re.IGNORECASE)
    most = 1_000_000 if options.mode == "count" else 1
    return [-float(_count(pattern, text, most)) or 0.0 for text in texts]


def _count(pattern: re.Pattern[str], text: str, most: int) -> int:
    found = pattern.finditer(text)
    return sum(1 for _ in zip(range(most), found, strict=False))


Function = Callable[[list[list[dict[str, str]]], list[str]], Sequence[float]]


def load_function(options: PythonOptions, *, where: str) -> Function:
    """The function, once its module is named in RATCHET_REWARD_MODULES. Raises Refused.

    It takes the prompts (lists of messages) and the texts, and returns a number for each text.
    """
    module_name, _, name = options.function.partition(":")
    allowed = {one.strip() for one in os.environ.get(ALLOWED, "").split(",")} - {""}
    if module_name not in allowed:
        raise Refused(
            f"The module {module_name} may not give rewards here.",
            where,
            f"Whoever runs the worker names it in {ALLOWED}, or take another reward.",
        )
    try:
        found: Any = getattr(importlib.import_module(module_name), name)
    except (ImportError, AttributeError, SyntaxError) as error:
        raise Refused(
            f"The reward function {options.function} cannot be loaded: {error}.",
            where,
            "Install its module where the worker runs, and check its name.",
        ) from error
    if not callable(found):
        raise Refused(f"{options.function} is no function.", where, "Name a function.")
    function: Function = found
    return function


def call(function: Function, prompts: Sequence[Messages], texts: Sequence[str], *, where: str) -> list[float]:
    """Its numbers. Raises Refused when it fails, or returns anything but one finite number a text."""
    try:
        given = function([[dict(turn) for turn in prompt] for prompt in prompts], list(texts))
        numbers = [float(one) for one in given]
    except Exception as error:
        raise Refused(
            f"The reward function failed: {type(error).__name__}: {error}", where, "Correct the function."
        ) from error
    if len(numbers) != len(texts) or not all(map(math.isfinite, numbers)):
        raise Refused(
            f"The reward function gave {len(numbers)} numbers for {len(texts)} completions, or one that is "
            "not finite.",
            where,
            "Let it return one number for each completion.",
        )
    return numbers
