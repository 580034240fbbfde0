"""The loop without hands: simulated raters judge through the real pages, a real worker trains.

Two things stand in for people, and both stay outside of training: the raters prefer by the hidden
preference of the starter's world, with noise, and the final figure asks the same preference.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypedDict

from labeling import datasets, rounds
from labeling.models import Label, Policy, PreferenceDataset, Project, Round
from rlhf_site.demo import cast, simulated_raters
from rlhf_site.demo.processes import Processes
from training import runs
from training.models import Artifact, GateDecision, Run
from training.rlhf.run_dir import RunDir, read_jsonl
from training.rlhf.starter import hidden_preference

RUN_SECONDS = 600  # a run that takes longer has gone wrong
ROUND_SECONDS = 300


class StepFailed(Exception):
    """A step of the loop did not come to its end; the message says which and why."""


class RoundFigures(TypedDict):
    round: int
    labels: int
    reward_accuracy: float | None
    win_rate_vs_starter: float
    human_win_rate: float | None
    kl: float | None
    seconds: float


class LoopFigures(TypedDict):
    rounds: list[RoundFigures]
    labels_acknowledged: int
    labels_stored: int
    labels_exported: int
    seconds_total: float


@dataclass
class Loop:
    """State of one headless loop. `say` prints a line for each step."""

    processes: Processes
    project: Project
    seed: int
    raters: int
    noise: float
    say: Callable[[str], None]
    acknowledged: int = 0
    exported: int = 0
    starter_stories: dict[str, str] = field(default_factory=dict)  # prompt -> what the starter wrote

    def turn(self, number: int, *, last: bool) -> RoundFigures:
        """One turn of the ratchet: wait for completions, judge, close, freeze, train, evaluate."""
        start = time.monotonic()
        current = self._open_round(number)
        labels = self._judge(current)
        rounds.close_round(current)
        gate = GateDecision.objects.filter(round=current).last()
        judged = list(self.project.rounds.filter(state=Round.State.CLOSED))
        everything = self._freeze(f"rounds 1 to {number}", judged)
        self.exported = everything.manifest["labels"]["used"]
        parent = self._newest_policy()
        reward_run = self._train(Run.Method.REWARD_MODEL, dataset=everything, policy=parent)
        accuracy = reward_run.evaluation.get("accuracy")
        policy_run = self._train(
            Run.Method.DPO,
            # Comparisons of what the parent itself wrote: those of older policies teach it little.
            dataset=everything if number == 1 else self._freeze(f"round {number}", [current]),
            policy=parent,
            reward_model=reward_run.artifact,
            then_next_round=not last,
        )
        figures = RoundFigures(
            round=number,
            labels=labels,
            reward_accuracy=accuracy,
            win_rate_vs_starter=self._win_rate_vs_starter(policy_run),
            human_win_rate=gate.win_rate if gate else None,
            kl=policy_run.evaluation.get("kl"),
            seconds=round(time.monotonic() - start, 1),
        )
        self.say(
            f"round {number}: reward accuracy {_shown(accuracy)}, win rate against the starter "
            f"{figures['win_rate_vs_starter']:.3f} by the hidden preference, {figures['seconds']:.0f} s"
        )
        return figures

    def _open_round(self, number: int) -> Round:
        with self._step(f"round {number}: completions"):
            for _ in self._ticks(ROUND_SECONDS):
                current = self.project.rounds.filter(number=number).first()
                if current is not None and current.state == Round.State.OPEN:
                    return current
                failed = Run.objects.filter(
                    project=self.project, state__in=[Run.State.FAILED, Run.State.REFUSED]
                ).first()
                if failed is not None:
                    raise StepFailed(f"{failed}: {failed.message}\n{failed.stderr_tail}")
        raise StepFailed(f"round {number} did not open within {ROUND_SECONDS} s")

    def _judge(self, current: Round) -> int:
        with self._step(f"round {current.number}: judging by {self.raters} simulated raters"):
            people = simulated_raters.hire(self.project, self.raters, seed=self.seed, noise=self.noise)
            labels = simulated_raters.judge(self.processes.address, current, people)
        self.acknowledged += labels
        wanted = rounds.progress(current).wanted
        self.say(f"round {current.number}: {labels} labels acknowledged of {wanted} wanted")
        return labels

    def _freeze(self, name: str, judged: list[Round]) -> PreferenceDataset:
        with self._step(f"freezing the preference dataset “{name}”"):
            return datasets.freeze(
                project=self.project, rounds=judged, rule=PreferenceDataset.Rule.EACH_LABEL, name=name
            )

    def _newest_policy(self) -> Policy:
        return self.project.policies.exclude(state__in=[Policy.State.EXTERNAL, Policy.State.REJECTED]).latest(
            "pk"
        )

    def _train(
        self,
        method: str,
        *,
        dataset: PreferenceDataset,
        policy: Policy,
        reward_model: Artifact | None = None,
        then_next_round: bool = False,
    ) -> Run:
        run = runs.create_run(
            project=self.project,
            method=method,
            dataset=dataset,
            policy=policy,
            reward_model=reward_model,
            config={"seed": self.seed},
            start_when_ready=True,
            then_next_round=then_next_round,
        )
        with self._step(f"run {run.pk}: {run.get_method_display()}"):
            for _ in self._ticks(RUN_SECONDS):
                run.refresh_from_db()
                if run.state == Run.State.COMPLETE:
                    return run
                if run.state in (Run.State.FAILED, Run.State.REFUSED, Run.State.CANCELLED):
                    raise StepFailed(f"{run} ended {run.state}: {run.message}\n{run.stderr_tail}")
        raise StepFailed(f"{run} did not end within {RUN_SECONDS} s: {run.message}")

    def _win_rate_vs_starter(self, run: Run) -> float:
        """Share of held-out prompts on which the hidden preference prefers the new policy; a tie counts half.

        The starter's stories are those of the first round's run, which started from it.
        """
        folder = RunDir(run.folder)
        asked = [row["prompt"][-1]["content"] for row in read_jsonl(folder.data / "prompts.test.jsonl")]
        stories = _stories(folder, asked)
        if not self.starter_stories:
            self.starter_stories = stories["old"]
        new = stories["new"]
        if not new or new.keys() != self.starter_stories.keys():
            raise StepFailed(f"{run}: {len(new)} completions, but {len(self.starter_stories)} of the starter")
        points = 0.0
        for prompt, story in new.items():
            ours = hidden_preference.score(prompt, story)
            theirs = hidden_preference.score(prompt, self.starter_stories[prompt])
            points += 1.0 if ours > theirs else 0.5 if ours == theirs else 0.0
        return round(points / len(new), 4)

    def _ticks(self, seconds: float) -> Iterator[None]:
        """Yield a few times a second until the time is up; raise when a process of ours dies."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self.processes.check()
            yield
            time.sleep(0.2)

    @contextmanager
    def _step(self, name: str) -> Iterator[None]:
        start = time.monotonic()
        self.say(f"{name} ...")
        yield
        self.say(f"{name}: done in {time.monotonic() - start:.1f} s")


def _stories(folder: RunDir, asked: list[str]) -> dict[str, dict[str, str]]:
    found: dict[str, dict[str, str]] = {"new": {}, "old": {}}
    for line in read_jsonl(folder.completions):
        found[line["policy"]][asked[line["request"]]] = line["text"]
    return found


def _shown(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.3f}"


def run_loop(
    *, processes: Processes, plan: rounds.RoundPlan, turns: int, seed: int, raters: int, noise: float,
    say: Callable[[str], None], started: float,
) -> LoopFigures:  # fmt: skip
    """Turn the ratchet `turns` times. Raises StepFailed or ProcessDied.

    `started`: time.monotonic() of the command's start; `seconds_total` counts from there.
    """
    made = cast.make_cast(plan=plan, seed=seed)
    loop = Loop(processes=processes, project=made.project, seed=seed, raters=raters, noise=noise, say=say)
    figures = [loop.turn(number, last=number == turns) for number in range(1, turns + 1)]
    return LoopFigures(
        rounds=figures,
        labels_acknowledged=loop.acknowledged,
        labels_stored=_stored(made.project),
        labels_exported=loop.exported,
        seconds_total=round(time.monotonic() - started, 1),
    )


def _stored(project: Project) -> int:
    return Label.objects.filter(counts_for__round__project=project).count()


def books_balance(figures: LoopFigures) -> bool:
    """Labels acknowledged to the raters, stored and exported are the same number."""
    counts: dict[str, Any] = dict(figures)
    return counts["labels_acknowledged"] == counts["labels_stored"] == counts["labels_exported"]
