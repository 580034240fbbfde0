"""Brings home what a run leaves, once `result.json` is there: reward model, policy, evaluation, completions.

An import is one transaction that begins by taking the row out of `running`: only the lease's owner gets
that far, and only once. Whatever goes wrong in it leaves nothing behind.
"""

import json
from collections import defaultdict
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from django.db import transaction

from labeling import prompts, rounds
from labeling.datasets import FreezeError
from labeling.models import Policy, Protocol, Round, Task
from training import ensembles, made_datasets, next_round
from training.leases import Lease
from training.models import Artifact, Run
from training.prompted import kept_by_candidate
from training.rlhf.prompt_parts import PromptParts
from training.rlhf.run_dir import RunDir, SampledCompletion, SampleRequest, read_jsonl
from training.run_folders import SamplingTask
from training.runs import policy_of

SERVED = ("server", "model", "reported_model", "fingerprint")  # of a completion that a server wrote


class ResultsRefused(Exception):
    """The run ended, but what it left cannot be used; the message says which file and why."""


def import_results(lease: Lease) -> Run:
    """Take in a complete run folder. Raises ResultsRefused, or LeaseLost when it is no longer ours."""
    run = Run.objects.select_related("project", "policy", "dataset", "round", "constitution").get(
        pk=lease.run_id
    )
    run_dir = RunDir(run.folder)
    if not run_dir.is_complete:
        raise ResultsRefused("There is no result.json: the run did not come to its end.")
    evaluation = read_json(run_dir.evaluation) if run_dir.evaluation.exists() else {}
    sampled = _read_sampled(run, run_dir) if run.method == Run.Method.SAMPLE else []
    try:
        with made_datasets.prepared(run, run_dir) as made, transaction.atomic():
            _take_in(lease, run, run_dir, evaluation, sampled, made)
    except (made_datasets.MadeRowsRefused, FreezeError) as refused:
        raise ResultsRefused(str(refused)) from refused
    run.refresh_from_db()
    return run


def _take_in(
    lease: Lease,
    run: Run,
    run_dir: RunDir,
    evaluation: dict[str, Any],
    sampled: list["AnsweredTask"],
    made: made_datasets.Prepared | None,
) -> None:
    lease.end(
        Run.State.COMPLETE, "Complete.", evaluation=evaluation, fruitless_attempts=0, cancel_asked=False
    )
    if run.makes == "reward_model":
        _add_artifact(run, run_dir, Artifact.Kind.REWARD_MODEL)
        ensembles.measure(run)
    elif run.makes == "figures":
        pass  # evaluation.json is all
    elif run.makes == "policy":
        policy = _add_candidate(run, run_dir)
        if run.then_next_round:
            Run.objects.filter(pk=run.pk).update(**next_round.after(run=run, policy=policy))
    elif made is not None:
        Run.objects.filter(pk=run.pk).update(**made.publish())
    else:
        assert run.round is not None  # a sampling run has one
        Run.objects.filter(pk=run.pk).update(message=_fill_round(run.round, sampled))


def _add_artifact(run: Run, run_dir: RunDir, kind: str, policy: Policy | None = None) -> Artifact:
    if not any(run_dir.model.glob("*.safetensors")):
        raise ResultsRefused("The run ended, but its model folder holds no weights.")
    lineage = run_dir.model / "lineage.json"
    return Artifact.objects.create(
        run=run,
        kind=kind,
        folder=str(run_dir.model.resolve()),
        policy=policy,
        lineage=read_json(lineage) if lineage.exists() else {},
    )


def _add_candidate(run: Run, run_dir: RunDir) -> Policy:
    number = Policy.objects.filter(project=run.project).count() + 1
    policy = Policy.objects.create(
        project=run.project,
        name=f"policy {number} ({run.get_method_display()}, run {run.pk})",
        state=Policy.State.CANDIDATE,
        location=str(run_dir.model.resolve()),
        parent=run.policy,
        **kept_by_candidate(run.config),
    )
    _add_artifact(run, run_dir, Artifact.Kind.POLICY, policy)
    return policy


class AnsweredTask(NamedTuple):
    prompt: int
    purpose: str
    completions: list[prompts.NewCompletion]


def _fill_round(round: Round, answered: list[AnsweredTask]) -> str:
    """Put the completions before the raters: they meet them at their next request."""
    target = Round.objects.select_for_update().get(pk=round.pk)
    if target.state != Round.State.WAITING:
        state = target.get_state_display().lower()
        return f"{target} was {state} before the completions came; nothing was added."
    worth_judging = [task for task in answered if _differs(task, target.protocol.kind)]
    if not worth_judging:
        raise ResultsRefused("All completions of each prompt are the same: raise the temperature.")
    stored = prompts.add_completions(row for task in worth_judging for row in task.completions)
    ids = iter(completion.pk for completion in stored)
    rounds.fill(
        round=target,
        tasks=[
            rounds.NewTask(
                prompt_id=task.prompt,
                purpose=task.purpose,
                completion_ids=list(islice(ids, len(task.completions))),
            )
            for task in worth_judging
        ],
    )
    rounds.open_round(target)
    same = len(answered) - len(worth_judging)
    left_out = f" {same} left out, whose completions were all the same." if same else ""
    return f"{len(stored)} completions for {len(worth_judging)} tasks; {target} is open.{left_out}"


def _differs(task: AnsweredTask, kind: str) -> bool:
    """Whether people can prefer anything. At the gate, two equal texts are a tie that counts."""
    if kind == Protocol.Kind.RATING or task.purpose == Task.Purpose.GATE:
        return True
    return len({completion.text for completion in task.completions}) > 1


def _read_sampled(run: Run, run_dir: RunDir) -> list[AnsweredTask]:
    """Each task with as many completions as were asked for. Raises ResultsRefused."""
    try:
        tasks: list[SamplingTask] = list(read_jsonl(run_dir.data / "tasks.jsonl"))
        requests: list[SampleRequest] = list(read_jsonl(run_dir.data / "requests.jsonl"))
        lines: list[SampledCompletion] = list(read_jsonl(run_dir.completions))
    except ValueError as error:
        raise ResultsRefused(f"The sampled completions cannot be read: {error}.") from error
    answers: dict[int, list[SampledCompletion]] = defaultdict(list)
    for line in lines:
        answers[line["request"]].append(line)
    unknown = set(answers) - set(range(len(requests)))
    if unknown:
        raise ResultsRefused(f"completions.jsonl answers request {min(unknown)}, which nobody made.")
    for number, request in enumerate(requests):
        written = [line["policy"] for line in answers[number]]
        if sorted(written) != sorted(request["policies"]):
            raise ResultsRefused(
                f"Request {number} asks for completions by {', '.join(request['policies'])}; "
                f"completions.jsonl has {', '.join(written) or 'none'}."
            )
    return [
        AnsweredTask(
            task["prompt"], task["purpose"], [_completion(run, task, line) for line in answers[number]]
        )
        for number, task in enumerate(tasks)
    ]


def _completion(run: Run, task: SamplingTask, line: SampledCompletion) -> prompts.NewCompletion:
    return prompts.NewCompletion(
        prompt_id=task["prompt"],
        policy_id=policy_of(line["policy"]),
        text=storable(line["text"]),
        sampling={
            **run.config["sampling"],
            "seed": run.config["seed"],
            "run": run.pk,
            "finish": line["finish"],
            "tokens": line["tokens"],
            **_prompted(run, line["policy"]),
            **_served(line),
        },
    )


def _prompted(run: Run, name: str) -> dict[str, Any]:
    parts = run.config.get("prompt_parts", {}).get(name)
    return {"prompt_version": PromptParts.from_json(parts).version} if parts else {}


def _served(line: SampledCompletion) -> dict[str, Any]:
    """Which server wrote it, and what it says that it is."""
    said = line.get("served")
    if not isinstance(said, dict):
        return {}
    return {name: storable(str(said.get(name, ""))) for name in SERVED}


def storable(text: str) -> str:
    """A model may write any character; NUL and halves of surrogate pairs cannot be stored."""
    return text.replace("\0", "\ufffd").encode("utf-8", errors="replace").decode("utf-8")


def read_json(path: Path) -> Any:
    """Parsed JSON; NaN and infinities, which databases refuse, become null."""
    try:
        return json.loads(path.read_text(encoding="utf-8"), parse_constant=lambda name: None)
    except (OSError, ValueError) as error:
        raise ResultsRefused(f"{path.name} cannot be read: {error}.") from error


def number_in(data: Any, *path: str) -> float | None:
    """The number at the end of a path of keys; None where there is none.

    >>> number_in({"4": {"pairs": 12}}, "4", "pairs"), number_in({}, "kl"), number_in({"ok": True}, "ok")
    (12, None, None)
    """
    for key in path:
        if not isinstance(data, dict):
            return None
        data = data.get(key)
    return data if isinstance(data, int | float) and not isinstance(data, bool) else None
