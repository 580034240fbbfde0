"""Sweeps as people ask for them: create, go on, cancel. Their runs are ordinary ones, checked and queued so.

A grid and a random sweep queue all of their runs at once. Of a Bayesian one the worker proposes the next as
earlier ones end (`advance`). Runs that are refused, fail or are cancelled count as tried: the sweep goes on.
"""

import dataclasses
import logging
from datetime import timedelta
from typing import Any

from django.contrib.auth.models import User
from django.db import transaction
from django.utils import timezone

from labeling.models import Policy, PreferenceDataset, Project
from training import bayesian, runs, search_space
from training.ingredients import TRAINABLE
from training.models import Artifact, Run, Sweep, Trial
from training.recipe_checks import RunRefused
from training.recipes import merged
from training.rlhf.config import RunConfig
from training.rlhf.methods import METHODS
from training.search_space import MOST_RUNS, Point, Space, SpaceError
from training.sweep_objectives import Objective, measured, objective_of, objectives_of

log = logging.getLogger(__name__)

NOT_SWEPT = ("training.log_every", "training.save_every", "training.bf16", "distillation.teacher")
OPEN = (Run.State.CHECKING, Run.State.READY, Run.State.QUEUED, Run.State.RUNNING)


class SweepRefused(RunRefused):
    """The message says why; `setting` names the setting it is about, if it is about one."""

    def __init__(self, why: str, *, setting: str = "") -> None:
        super().__init__(why)
        self.setting = setting


def settings_to_sweep(method: str) -> dict[str, type]:
    """Every setting that the method reads with the type of its values: "training.learning_rate": float."""
    own = METHODS[method].section
    sections = ["training", "tuning", *([own] if own else [])]
    if METHODS[method].makes == "policy":
        sections.append("sampling")
    kinds = {field.name: field.default_factory for field in dataclasses.fields(RunConfig)}
    found: dict[str, type] = {"seed": int}
    for section in sections:
        filled: Any = kinds[section]
        for field in dataclasses.fields(filled):
            key = f"{section}.{field.name}"
            if key not in NOT_SWEPT:
                found[key] = field.type if field.type in (int, float, bool) else str
    return found


def create_sweep(
    *,
    project: Project,
    method: str,
    dataset: PreferenceDataset,
    policy: Policy,
    space: Space,
    strategy: str,
    objective: str = "",
    runs_wanted: int = 12,
    at_once: int = 1,
    minutes: int = 0,
    seed: int = 0,
    reward_model: Artifact | None = None,
    config: dict[str, Any] | None = None,
    created_by: User | None = None,
) -> Sweep:
    """A sweep with its first runs. Raises SweepRefused, making nothing: every point must be a recipe."""
    config = config or {}
    if method not in TRAINABLE:
        raise SweepRefused(f"{method!r} is no method of training: {', '.join(TRAINABLE)}.")
    goal = _objective(method, objective, reward_model)
    if goal.path[0] == "early_stopping" and not config.get("training", {}).get("evaluate_every"):
        raise SweepRefused("The best evaluation of early stopping: set the steps between evaluations.")
    if not 2 <= runs_wanted <= MOST_RUNS:
        raise SweepRefused(f"A sweep has from 2 to {MOST_RUNS} runs.")
    _check_settings(method, space)
    points = _points(space, strategy, runs_wanted=runs_wanted, seed=seed)
    parts = {
        "project": project, "method": method, "dataset": dataset, "policy": policy,
        "reward_model": reward_model, "created_by": created_by,
    }  # fmt: skip
    with transaction.atomic():
        sweep = Sweep.objects.create(
            **parts,
            config=config,
            space=search_space.to_json(space),
            strategy=strategy,
            objective=goal.key,
            runs_wanted=runs_wanted if strategy == Sweep.Strategy.BAYESIAN else len(points),
            at_once=min(max(at_once, 1), runs_wanted),
            minutes=minutes,
            seed=seed,
        )
        if strategy != Sweep.Strategy.GRID:
            for key, value in search_space.corners(space):
                _refuse_unfit(sweep, {key: value})
        for number, point in enumerate(points, start=1):
            try:
                with transaction.atomic():
                    made = _create_run(sweep, point)
            except RunRefused as refusal:
                if strategy == Sweep.Strategy.GRID:
                    raise SweepRefused(f"{point_in_words(point)}: {refusal}") from refusal
                Trial.objects.create(sweep=sweep, number=number, values=point, refusal=str(refusal))
                continue
            Trial.objects.create(sweep=sweep, number=number, values=point, run=made)
    return sweep


def _objective(method: str, key: str, reward_model: Artifact | None) -> Objective:
    offered = [one for one in objectives_of(method) if reward_model or not one.needs_reward_model]
    goal = objective_of(method, key) if key else next(iter(offered), None)
    if goal is None:
        wanted = ", ".join(one.key for one in objectives_of(method))
        raise SweepRefused(
            f"{key} is no figure of {METHODS[method].label}: {wanted}."
            if key
            else "Choose a reward model to evaluate with: without one there is nothing to compare runs by."
        )
    if goal.needs_reward_model and reward_model is None:
        raise SweepRefused(f"The {goal.label} needs a reward model to evaluate with: choose one.")
    return goal


def _check_settings(method: str, space: Space) -> None:
    try:
        search_space.check(space)
    except SpaceError as error:
        raise SweepRefused(str(error)) from error
    known = settings_to_sweep(method)
    for key, one in space.items():
        if key not in known:
            raise SweepRefused(
                f"{key} is no setting of {METHODS[method].label} to try values of.", setting=key
            )
        if isinstance(one, search_space.Range):
            if known[key] not in (int, float):
                raise SweepRefused(f"{key} has no range: list its values.", setting=key)
            if known[key] is int and not one.whole:
                raise SweepRefused(f"{key} takes whole numbers: set whole.", setting=key)


def _points(space: Space, strategy: str, *, runs_wanted: int, seed: int) -> list[Point]:
    try:
        match strategy:
            case Sweep.Strategy.GRID:
                return search_space.grid(space)
            case Sweep.Strategy.RANDOM:
                return search_space.drawn(space, runs=runs_wanted, seed=seed)
            case Sweep.Strategy.BAYESIAN:
                return []
    except SpaceError as error:
        raise SweepRefused(str(error), setting=error.setting) from error
    raise SweepRefused(f"{strategy!r} is no strategy: {', '.join(Sweep.Strategy.values)}.")


def _refuse_unfit(sweep: Sweep, point: Point) -> None:
    """Each value with the other settings as they are, so that a range is refused before its first run."""
    try:
        with transaction.atomic():
            _create_run(sweep, point)
            raise _OnlyTried
    except _OnlyTried:
        return
    except RunRefused as refusal:
        raise SweepRefused(f"{point_in_words(point)}: {refusal}", setting=next(iter(point))) from refusal


class _OnlyTried(Exception):
    """Takes the run back that was made to see whether it can be made."""


def _create_run(sweep: Sweep, point: Point) -> Run:
    return runs.create_run(
        project=sweep.project,
        method=sweep.method,
        dataset=sweep.dataset,
        policy=sweep.policy,
        reward_model=sweep.reward_model,
        config=with_point(sweep.config, point),
        created_by=sweep.created_by,
        start_when_ready=True,
        then_next_round=False,
    )


def with_point(config: dict[str, Any], point: Point) -> dict[str, Any]:
    """A recipe with the settings of a point.

    >>> with_point({"training": {"epochs": 1.0}}, {"training.learning_rate": 0.1, "seed": 3})
    {'training': {'epochs': 1.0, 'learning_rate': 0.1}, 'seed': 3}
    """
    for key, value in point.items():
        section, _, name = key.rpartition(".")
        config = merged(config, {section: {name: value}} if section else {name: value})
    return config


def point_in_words(point: Point) -> str:
    return ", ".join(f"{key} {value}" for key, value in point.items())


def cancel(*, sweep: Sweep, by: User | None) -> Sweep:
    """No more runs are proposed; those that wait or run are cancelled, those that ended stay."""
    moved = Sweep.objects.filter(pk=sweep.pk, state=Sweep.State.RUNNING).update(
        state=Sweep.State.CANCELLED, message="Cancelled."
    )
    sweep.refresh_from_db()
    if not moved and sweep.state != Sweep.State.CANCELLED:
        raise SweepRefused(f"{sweep} is {sweep.get_state_display().lower()}: there is nothing to cancel.")
    for run in Run.objects.filter(trial__sweep=sweep, state__in=OPEN):
        try:
            runs.cancel(run=run, by=by)
        except RunRefused:  # it ended between two looks
            continue
    return sweep


def advance_all() -> int:
    """For the worker: propose what is due, and note which sweeps are over. How many go on."""
    running = Sweep.objects.filter(state=Sweep.State.RUNNING)
    for sweep in running.select_related("project", "dataset", "policy", "reward_model", "created_by"):
        try:
            advance(sweep)
        except bayesian.OptunaMissing as missing:
            _end(sweep, Sweep.State.FAILED, str(missing))
        except (ValueError, TypeError, KeyError) as error:  # the others go on
            log.exception("%s: no run could be proposed", sweep)
            _end(sweep, Sweep.State.FAILED, f"No run could be proposed: {error}")
    return running.count()


def advance(sweep: Sweep) -> None:
    """Propose the next runs of a Bayesian sweep, and end any sweep that has no more to try."""
    trials = list(sweep.trials.select_related("run"))
    open_now = sum(1 for one in trials if one.run is not None and one.run.state in OPEN)
    left = sweep.runs_wanted - len(trials)
    if left > 0 and _is_spent(sweep, trials):
        left = 0
    room = min(left, sweep.at_once - open_now)
    if sweep.strategy == Sweep.Strategy.BAYESIAN and room > 0:
        _try_next(sweep, trials)
    elif left <= 0 and not open_now:
        _end(sweep, Sweep.State.COMPLETE, _words(sweep, trials))


def _is_spent(sweep: Sweep, trials: list[Trial]) -> bool:
    ran = (_took(one.run) for one in trials if one.run is not None)
    return bool(sweep.minutes) and sum(ran, timedelta()) >= timedelta(minutes=sweep.minutes)


def _took(run: Run) -> timedelta:
    return (run.ended_at or timezone.now()) - run.started_at if run.started_at else timedelta()


def _words(sweep: Sweep, trials: list[Trial]) -> str:
    if len(trials) < sweep.runs_wanted:
        return f"Its {sweep.minutes} minutes of training are used up after {len(trials)} runs."
    return ""


def _end(sweep: Sweep, state: str, message: str) -> None:
    Sweep.objects.filter(pk=sweep.pk, state=Sweep.State.RUNNING).update(state=state, message=message)


def _try_next(sweep: Sweep, trials: list[Trial]) -> None:
    goal = objective_of(sweep.method, sweep.objective)
    assert goal is not None  # checked when the sweep was made
    point = bayesian.propose(
        search_space.from_json(sweep.space),
        [_tried(one, goal) for one in trials],
        higher_is_better=goal.higher_is_better,
        runs=sweep.runs_wanted,
        seed=sweep.seed,
    )
    number = len(trials) + 1
    with transaction.atomic():
        locked = Sweep.objects.select_for_update().get(pk=sweep.pk)
        if locked.state != Sweep.State.RUNNING or locked.trials.filter(number=number).exists():
            return  # another worker was first, or somebody cancelled it
        trial = Trial.objects.create(sweep=sweep, number=number, values=point)
        try:
            with transaction.atomic():
                trial.run = _create_run(sweep, point)
        except RunRefused as refusal:
            trial.refusal = str(refusal)
        trial.save()


def _tried(trial: Trial, goal: Objective) -> bayesian.Tried:
    found = measured(trial.run, goal)
    is_open = trial.run is not None and trial.run.state in OPEN
    return bayesian.Tried(point=trial.values, value=found.value if found else None, is_open=is_open)
