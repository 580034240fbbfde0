"""The next point of a Bayesian sweep, by Optuna's tree-structured Parzen estimator (Bergstra et al. 2011).

Only the worker comes here: optuna is in the extra `training`, and is imported when a point is wanted. Nothing
is kept between two points: a study is filled with the trials so far and asked for one more, so that the same
history gives the same point, whichever worker asks.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from training.search_space import Point, Range, Space, within

FIRST = 10  # points that are drawn at random, at most, before the estimator has something to go by


class OptunaMissing(Exception):
    """This worker cannot propose anything; the message says what to install."""


@dataclass(frozen=True)
class Tried:
    """A point of the sweep so far. `value` None: it failed, or has not ended."""

    point: Point
    value: float | None
    is_open: bool = False


def propose(space: Space, tried: Sequence[Tried], *, higher_is_better: bool, runs: int, seed: int) -> Point:
    """The point to try after these. Raises OptunaMissing."""
    try:
        import optuna
    except ImportError as error:
        raise OptunaMissing(
            "The worker has no optuna, which proposes the runs of a Bayesian sweep. Install the extra "
            "`training` where it runs (pip install 'ratchet[training]'), or make a random sweep."
        ) from error
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    kinds = {name: _distribution(optuna.distributions, one) for name, one in space.items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        sampler = optuna.samplers.TPESampler(
            seed=(seed * 1_000_003 + len(tried)) % 2**32,
            n_startup_trials=max(2, min(FIRST, runs // 3)),
            constant_liar=True,  # an open point counts as a poor one: the next is tried elsewhere
        )
    study = optuna.create_study(direction="maximize" if higher_is_better else "minimize", sampler=sampler)
    states = optuna.trial.TrialState
    for one in tried:
        state = states.RUNNING if one.is_open else states.FAIL if one.value is None else states.COMPLETE
        study.add_trial(
            optuna.trial.create_trial(params=one.point, distributions=kinds, value=one.value, state=state)
        )
    asked = study.ask(fixed_distributions=kinds).params
    return {name: _rounded(one, asked[name]) for name, one in space.items()}


def _distribution(distributions: Any, one: Any) -> Any:
    if not isinstance(one, Range):
        return distributions.CategoricalDistribution(one.values)
    if one.whole:
        return distributions.IntDistribution(int(one.low), int(one.high), log=one.log)
    return distributions.FloatDistribution(one.low, one.high, log=one.log)


def _rounded(one: Any, value: Any) -> Any:
    """A learning rate of four digits says all that there is to say."""
    if not isinstance(one, Range) or one.whole:
        return value
    return within(one, float(f"{value:.4g}"))
