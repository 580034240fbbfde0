"""What a run took beside what was guessed: before it started, after its step on the longest batch, really."""

from dataclasses import dataclass
from typing import Any

from training.models import Run
from training.results import number_in
from training.rlhf.methods import METHODS

SECONDS_OF_START = 8.0  # as training.rlhf.checks.estimate has it
FACTOR = 2.0  # a guess that is off by more is said to be
# Below these a machine that does other things as well, or Python itself, is most of it.
LEAST_SECONDS, LEAST_BYTES = 30.0, 500e6


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Seconds and bytes; None where nobody knows."""

    seconds_guessed: float | None
    seconds_refined: float | None
    seconds_real: float | None
    memory_guessed: float | None
    memory_refined: float | None
    memory_real: float | None
    rows: float | None  # of the step on the longest batch
    tokens: float | None
    step_seconds: float | None
    cpu_seconds: float | None = None
    on_cpu: bool = False
    is_partial: bool = False  # an earlier attempt did a part of it

    @property
    def machine_was_busy(self) -> bool:
        """Whether a run on a CPU had it for less than half of the time."""
        if not self.seconds_real or not self.cpu_seconds or self.seconds_real < LEAST_SECONDS:
            return False
        return self.on_cpu and self.cpu_seconds < self.seconds_real / FACTOR

    @property
    def off(self) -> list[str]:
        """Sentences where a guess was off by more than FACTOR."""
        return [
            sentence
            for sentence in (
                ""
                if self.is_partial
                else _off("time", self.seconds_guessed, self.seconds_real, least=LEAST_SECONDS),
                _off("memory", self.memory_guessed, self.memory_real, least=LEAST_BYTES),
            )
            if sentence
        ]


def cost(run: Run) -> Cost | None:
    """None before its step on the longest batch. A query while it runs."""
    real: Any = run.evaluation.get("cost") if run.state == Run.State.COMPLETE else None
    rehearsal = _rehearsal(run, real)
    if not isinstance(real, dict) and not rehearsal:
        return None
    guess = run.preflight.get("estimate", {})
    guessed, evaluation = number_in(guess, "seconds"), number_in(guess, "evaluation_seconds")
    training = number_in(rehearsal, "rehearsal/estimated_train_seconds")
    return Cost(
        seconds_guessed=guessed,
        # What the guess says of loading and evaluation stays as it was. Of a method that draws the step
        # tells little: most of its time goes to writing.
        seconds_refined=None
        if training is None or METHODS[run.method].draws
        else training + SECONDS_OF_START + (evaluation or 0.0),
        seconds_real=number_in(real, "seconds"),
        memory_guessed=number_in(guess, "memory_bytes"),
        memory_refined=number_in(rehearsal, "rehearsal/peak_memory_bytes"),
        memory_real=number_in(real, "peak_memory_bytes"),
        rows=number_in(rehearsal, "rehearsal/rows"),
        tokens=number_in(rehearsal, "rehearsal/tokens"),
        step_seconds=number_in(rehearsal, "rehearsal/seconds"),
        cpu_seconds=number_in(real, "cpu_seconds"),
        on_cpu=str(guess.get("device", "")).startswith("CPU"),
        is_partial=bool(number_in(real, "from_step")),
    )


def _rehearsal(run: Run, real: Any) -> dict[str, Any]:
    if isinstance(real, dict):
        found = real.get("rehearsal")
        return found if isinstance(found, dict) else {}
    lines = run.metrics.filter(values__has_key="rehearsal/seconds").order_by("-seq")
    return lines.values_list("values", flat=True).first() or {}


def _off(what: str, guessed: float | None, real: float | None, *, least: float) -> str:
    """
    >>> _off("time", 20.0, 100.0, least=30)
    'It took 5.0 times the time that was guessed.'
    >>> _off("memory", 4e9, 1e9, least=5e8)
    'It took a quarter of the memory that was guessed, or less.'
    >>> _off("time", 10.0, 25.0, least=30), _off("time", None, 25.0, least=30)
    ('', '')
    """
    if not guessed or not real or abs(guessed - real) < least:
        return ""
    if real > FACTOR * guessed:
        return f"It took {real / guessed:.1f} times the {what} that was guessed."
    if guessed > 4 * real * 0.999:
        return f"It took a quarter of the {what} that was guessed, or less."
    if guessed > FACTOR * real:
        return f"It took less than half of the {what} that was guessed."
    return ""
