"""What training does when judging asks for something.

A signal may be lost with the process that sent it; a worker looks for such rounds from time to time
(`runs.queue_missing_sampling`, `gate.evaluate_missing_gates`).
"""

from typing import Any

from django.dispatch import receiver

from labeling.models import Round
from labeling.signals import completions_wanted, round_closed
from training import gate, runs


@receiver(completions_wanted, dispatch_uid="training: sample completions")
def sample_completions(sender: object, round: Round, **kwargs: Any) -> None:
    runs.queue_sampling(round)


@receiver(round_closed, dispatch_uid="training: open the gate")
def open_the_gate(sender: object, round: Round, **kwargs: Any) -> None:
    gate.evaluate_gate(round)
