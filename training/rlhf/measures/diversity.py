"""PURE: whether a policy still says many things, and whether its wins are more than length."""

import math
from collections.abc import Hashable, Sequence

STEPS = 50  # of Newton's method; it needs fewer than ten
RIDGE = 1e-3  # keeps the slope finite where length alone decides every win


def distinct_ngrams(texts: Sequence[Sequence[Hashable]], n: int) -> float | None:
    """Distinct n-grams over all n-grams of a set of texts (1510.03055, section 5); None without any.

    It falls as texts repeat themselves or each other. Compare only sets of like size.

    >>> distinct_ngrams([[1, 2, 3], [1, 2, 4]], 2)
    0.75
    """
    found = [tuple(text[place : place + n]) for text in texts for place in range(len(text) - n + 1)]
    return len(set(found)) / len(found) if found else None


def length_controlled_win_rate(wins: Sequence[float], longer_by: Sequence[float]) -> float | None:
    """The win rate where both completions are equally long, by logistic regression; None for no win at all.

    `wins`: 1 where the new completion is preferred, 0.5 for a tie, 0 otherwise. `longer_by`: its length minus
    that of the other one, in any unit. As length-controlled AlpacaEval (2404.04475, equation 2), with one
    opponent and without difficulty of a prompt: logit p = a + b * tanh(difference / spread), at b = 0.
    """
    if not wins:
        return None
    spread = math.sqrt(sum(one * one for one in longer_by) / len(longer_by)) or 1.0
    slopes = [math.tanh(one / spread) for one in longer_by]
    a = b = 0.0
    for _ in range(STEPS):
        gradient_a, gradient_b = -RIDGE * a, -RIDGE * b
        aa, ab, bb = RIDGE, 0.0, RIDGE
        for win, x in zip(wins, slopes, strict=True):
            p = 1 / (1 + math.exp(-(a + b * x)))
            gradient_a += win - p
            gradient_b += (win - p) * x
            curve = p * (1 - p)
            aa, ab, bb = aa + curve, ab + curve * x, bb + curve * x * x
        determinant = aa * bb - ab * ab
        step_a = (bb * gradient_a - ab * gradient_b) / determinant
        step_b = (aa * gradient_b - ab * gradient_a) / determinant
        longest = max(abs(step_a), abs(step_b))
        shrink = min(1.0, 2.0 / longest) if longest else 1.0  # a full step may leave the curve behind
        a, b = a + shrink * step_a, b + shrink * step_b
        if longest < 1e-10:
            break
    return 1 / (1 + math.exp(-a))
