"""Runs as people and rounds ask for them: create, start, cancel, resume. The rows are the queue.

Nothing here starts a process or writes a file: a worker (training.worker) takes the row up.
Every change is one conditional UPDATE, so two people, or a person and a worker, cannot both win.
"""

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from auditlog.models import LogEntry
from django.conf import settings
from django.contrib.auth.models import User
from django.db import IntegrityError, transaction
from django.db.models import QuerySet
from django.db.models.expressions import CombinedExpression
from django.db.models.functions import Now

from labeling import rounds
from labeling.model_servers import check_server
from labeling.models import Policy, PreferenceDataset, Project, Round
from labeling.policies import PolicyRefused
from training import mixtures
from training.mixtures import Mixed
from training.models import Artifact, Run, Worker
from training.policies import comes_from_starter
from training.prompted import parts_in_training, parts_of
from training.recipe_checks import UNFIT as UNFIT
from training.recipe_checks import RunRefused as RunRefused
from training.recipe_checks import check_parts, check_rewards, check_teacher, checked_recipe
from training.recipes import default_settings, kind_in, merged
from training.rewards import watched
from training.rlhf.methods import METHODS

State = Run.State


def create_run(
    *,
    project: Project,
    method: str,
    dataset: PreferenceDataset,
    policy: Policy,
    reward_model: Artifact | None = None,
    mixture: Sequence[Mixed] = (),
    config: dict[str, Any] | None = None,
    created_by: User | None = None,
    start_when_ready: bool = False,
    then_next_round: bool = True,
) -> Run:
    """A run that trains, by any method but sampling; a worker checks it first (preflight).

    `config` holds the parts of a RunConfig that somebody chose: `seed`, `tuning`, `training`, `sampling`, the
    method's own section, and `rewards` of an online method. `mixture`: what it learns from beside `dataset`.
    """
    check_parts(project, method, dataset, policy, reward_model)
    mixtures.check_mixture(project, method, dataset, mixture)
    chosen = {
        **merged(default_settings(method=method, policy=policy, kind=_kind_of(config)), config or {}),
        "method": method,
        "model": policy.location,
        "reward_model": reward_model.folder if reward_model else "",
        "mixture": mixtures.recipe_of(mixture),
    }
    if METHODS.get(method) and METHODS[method].is_online and comes_from_starter(policy):
        chosen["rewards"] = watched(chosen.get("rewards") or [])
    if parts := parts_in_training(method, policy, chosen):
        chosen["prompt_parts"] = parts
    recipe = checked_recipe(chosen)
    check_teacher(project, recipe)
    check_rewards(project, recipe)
    with transaction.atomic():  # no worker sees a run without its mixture
        run = Run.objects.create(
            project=project,
            method=method,
            state=State.CHECKING,
            config=recipe,
            dataset=dataset,
            policy=policy,
            reward_model=reward_model,
            created_by=created_by,
            start_when_ready=start_when_ready,
            then_next_round=then_next_round,
            message="Waiting for a worker to check it.",
        )
        mixtures.add_rows(run, mixture)
    return run


def _kind_of(config: dict[str, Any] | None) -> str:
    """The kind of tuning that somebody chose; empty when nobody did, or when it is none."""
    tuning = (config or {}).get("tuning")
    return kind_in({"tuning": tuning}) if isinstance(tuning, dict) and "kind" in tuning else ""


def queue_sampling(round: Round) -> Run:
    """The run that writes the round's completions; the same one again when it is there already."""
    live = _sampling_runs(round).first()
    if live is not None:
        return live
    run = Run(
        project=round.project,
        method=Run.Method.SAMPLE,
        round=round,
        policy=round.new_policy or round.old_policy,
        start_when_ready=True,
    )
    try:
        run.config = _sampling_config(round)
        run.state = State.QUEUED
        run.message = "Waiting for a worker."
    except (
        RunRefused,
        rounds.RoundNotReady,
    ) as refusal:  # a row that says why raters wait for ever is better than a log line
        run.state = State.REFUSED
        run.message = str(refusal)
    try:
        with transaction.atomic():
            run.save()
    except IntegrityError:  # somebody else was first
        return _sampling_runs(round).get()
    return run


def _sampling_runs(round: Round) -> QuerySet[Run]:
    over = [State.CANCELLED, State.FAILED, State.REFUSED]
    return Run.objects.filter(round=round, method=Run.Method.SAMPLE).exclude(state__in=over)


def _sampling_config(round: Round) -> dict[str, Any]:
    plan = rounds.RoundPlan.from_json(round.plan)
    policies = list({p.pk: p for request in rounds.wanted(round) for p in request.policies}.values())
    if not policies:
        raise RunRefused("There is nothing to sample: the project has no prompts or no current policy.")
    unable = [str(policy) for policy in policies if not policy.location]
    if unable:
        raise RunRefused(f"No model is known for {', '.join(unable)}: completions cannot be sampled.")
    servers = [policy for policy in policies if policy.is_served]
    try:
        for policy in servers:
            check_server(policy.location)
    except PolicyRefused as refusal:
        raise RunRefused(f"{policy} cannot be asked: {refusal}") from refusal
    chosen = {
        "method": Run.Method.SAMPLE,
        "seed": plan.seed,
        "policies": {sampling_name(policy): policy.location for policy in policies},
        "prompt_parts": {sampling_name(p): parts_of(p).to_json() for p in policies if p.is_prompted},
        "servers": {sampling_name(policy): {"model": policy.model_name} for policy in servers},
        "sampling": {"temperature": float(plan.temperature), "max_new_tokens": plan.max_new_tokens},
    }
    return checked_recipe(merged(default_settings(method=Run.Method.SAMPLE, policy=policies[0]), chosen))


def sampling_name(policy: Policy) -> str:
    """What a sampling run calls a policy: names given by people may change."""
    return f"policy-{policy.pk}"


def policy_of(name: str) -> int:
    """The policy's id in its sampling name."""
    return int(name.removeprefix("policy-"))


def queue_missing_sampling() -> list[Run]:
    """Sampling runs for rounds that wait without one: the process that opened them died in between."""
    waiting = Round.objects.filter(
        state=Round.State.WAITING, plan__source="sample", sampling_runs__isnull=True
    ).select_related("project", "new_policy", "old_policy")
    return [queue_sampling(round) for round in waiting]


def start(*, run: Run, by: User | None) -> Run:
    """Queue a run whose preflight passed."""
    if _move(run, {State.READY}, by, state=State.QUEUED, message="Waiting for a worker."):
        return run
    if run.state in (State.QUEUED, State.RUNNING):
        return run
    raise RunRefused(f"{run} is {_state(run)}: only a run that is ready can be started.")


def cancel(*, run: Run, by: User | None) -> Run:
    """Stop a run, saved; `resume` goes on. A running one is stopped by its worker within seconds."""
    for _ in range(2):  # a worker may put it back into the queue between two looks at it
        if _cancelled(run, by) or run.state == State.CANCELLED:
            return run
    raise RunRefused(f"{run} is {_state(run)}: there is nothing to cancel.")


def _cancelled(run: Run, by: User | None) -> bool:
    waiting = {State.CHECKING, State.READY, State.QUEUED}
    ended: dict[str, Any] = {"state": State.CANCELLED, "ended_at": Now(), "worker": "", "leased_until": None}
    return (
        _move(run, waiting, by, **ended, message="Cancelled before it started.")
        # Nobody is there to stop it: its lease ran out.
        or _move(run, {State.RUNNING}, by, lost=True, **ended, message="Cancelled; its worker is gone.")
        or _move(run, {State.RUNNING}, by, cancel_asked=True)
    )


def cancel_unwanted_sampling() -> list[Run]:
    """Stop writing for rounds that were closed while they waited."""
    live = [State.CHECKING, State.READY, State.QUEUED, State.RUNNING]
    unwanted = Run.objects.filter(
        method=Run.Method.SAMPLE, state__in=live, cancel_asked=False, round__state=Round.State.CLOSED
    )
    return [run for run in unwanted if _cancelled(run, None)]


def resume(*, run: Run, by: User | None) -> Run:
    """Queue the same run again; it goes on from its last checkpoint. A refused one is checked again."""
    again: dict[str, Any] = {
        "cancel_asked": False,
        "fruitless_attempts": 0,
        "worker": "",
        "leased_until": None,
        "ended_at": None,
        "stderr_tail": "",
    }
    _require_wanted(run)
    # What a first step refused is checked again as a whole: something was changed, here or on the machine.
    was_checked = run.method == Run.Method.SAMPLE or (
        bool(run.preflight.get("ok")) and run.state != State.REFUSED
    )
    try:
        if was_checked:
            over = {State.CANCELLED, State.FAILED}
            moved = _move(run, over, by, **again, state=State.QUEUED, message="Waiting for a worker.")
        else:
            over = {State.CANCELLED, State.FAILED, State.REFUSED}
            moved = _move(
                run, over, by, **again, state=State.CHECKING, message="Waiting for a worker to check it."
            )
    except IntegrityError as error:
        raise RunRefused(f"Another run already samples for {run.round}.") from error
    if moved or run.is_live:
        return run
    raise RunRefused(f"{run} is {_state(run)}: only one that was cancelled or failed can go on.")


def _require_wanted(run: Run) -> None:
    """A sampling run writes for a round that waits; for any other its work would be thrown away."""
    if run.method != Run.Method.SAMPLE or run.round_id is None or not run.has_stopped:
        return
    if not Round.objects.filter(pk=run.round_id, state=Round.State.WAITING).exists():
        raise RunRefused(
            f"{run.round} does not wait for completions any more: nothing would become of them. "
            "Make a new round."
        )


def _move(run: Run, allowed: set[State], by: User | None, *, lost: bool = False, **values: Any) -> bool:
    """Change the row if it still is in an allowed state, and write down who did it."""
    with transaction.atomic():
        rows = Run.objects.filter(pk=run.pk, state__in=allowed)
        if lost:
            rows = rows.filter(leased_until__lt=Now())
        before = rows.select_for_update().values_list("state", flat=True).first()
        moved = rows.update(**values) == 1
        if moved:
            changes = {
                name: [before if name == "state" else not values[name], values[name]]
                for name in ("state", "cancel_asked")
                if name in values
            }
            LogEntry.objects.log_create(run, action=LogEntry.Action.UPDATE, changes=changes, actor=by)
    run.refresh_from_db()
    return moved


def _state(run: Run) -> str:
    return run.get_state_display().lower()


def workers_alive() -> list[Worker]:
    """Workers that were seen within two leases."""
    return list(Worker.objects.filter(seen_at__gte=oldest_alive()))


def oldest_alive() -> CombinedExpression:
    return Now() - timedelta(seconds=2 * settings.RUN_LEASE_SECONDS)
