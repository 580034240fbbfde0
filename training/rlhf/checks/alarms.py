"""What is said aloud while a run trains, once: signs that people know from runs that went wrong.

An alarm is a line of progress: words for whoever looks now, and a figure under `alarms/`, by which the run's
page still tells it when the run has ended (training.views.alarms). It stops nothing.
"""

from collections import deque
from statistics import median
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from training.rlhf.progress import report
from training.rlhf.run_dir import ProgressWriter

OVER = 5  # reports: one batch alone says little
FELL_NATS, FELL_SHARE = 10.0, 0.25  # of a chosen completion's log-probability; both have to be passed
LEAST_EOS, WAS_EOS = 0.5, 0.8
LEAST_KL = -1.0  # nats a completion: an estimate of what cannot be below 0


class Alarms(TrainerCallback):
    def __init__(self, progress: ProgressWriter) -> None:
        self.progress = progress
        self.said: set[str] = set()
        self.seen: dict[str, deque[float]] = {}
        self.first: dict[str, float] = {}

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        for name, value in (logs or {}).items():
            self.first.setdefault(name, value)
            self.seen.setdefault(name, deque(maxlen=OVER)).append(value)
        self._chosen_fell(float(getattr(args, "beta", 0.0)))
        self._ends_no_more()
        self._negative_kl()

    def _middle(self, name: str) -> float | None:
        """The median of the last reports; None before there are enough."""
        values = self.seen.get(name, ())
        return median(values) if len(values) == OVER else None

    def _chosen_fell(self, beta: float) -> None:
        """By the implicit reward, which is beta times the change: batches of other lengths do not move it."""
        reward, now = self._middle("rewards/chosen"), self._middle("logps/chosen")
        if not beta or reward is None or now is None:
            return
        fell = -reward / beta
        if fell > max(FELL_NATS, FELL_SHARE * abs(now + fell)):
            self._say(
                "alarms/chosen_fell",
                fell,
                f"The preferred completions have become {fell:.0f} nats less likely than they were at the "
                "start: a higher beta, a lower rate or an SFT term (sft_weight) keeps them",
            )

    def _ends_no_more(self) -> None:
        rate = self._middle("eos_rate")
        if rate is not None and rate < LEAST_EOS and self.first["eos_rate"] >= WAS_EOS:
            self._say(
                "alarms/eos_rate",
                rate,
                f"Only {rate:.0%} of completions still end by themselves, of {self.first['eos_rate']:.0%} at "
                "the start: raise missing_eos_penalty, or look at what the reward likes",
            )

    def _negative_kl(self) -> None:
        kl = self._middle("kl")
        if kl is not None and kl < LEAST_KL:
            self._say(
                "alarms/negative_kl",
                kl,
                f"The KL is {kl:.1f} nats, below 0: completions are not drawn from the policy that learns",
            )

    def _say(self, name: str, value: float, words: str) -> None:
        if name not in self.said:
            self.said.add(name)
            report(self.progress, {name: value}, message=words)
