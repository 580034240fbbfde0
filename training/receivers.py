"""What training does when judging asks for something.

A signal may be lost with the process that sent it; a worker looks for such rounds from time to time
(`runs.queue_missing_sampling`, `runs.cancel_unwanted_sampling`, `gate.evaluate_missing_gates`).
"""

from collections.abc import Collection
from copy import copy
from functools import partial
from typing import Any

from django.db import transaction
from django.db.models.signals import post_delete, post_save
from django.dispatch import receiver

from labeling.models import Round
from labeling.signals import completions_wanted, round_closed
from training import gate, run_folders, runs
from training.models import Run


@receiver(completions_wanted, dispatch_uid="training: sample completions")
def sample_completions(sender: object, round: Round, **kwargs: Any) -> None:
    runs.queue_sampling(round)


@receiver(round_closed, dispatch_uid="training: open the gate")
def open_the_gate(sender: object, round: Round, **kwargs: Any) -> None:
    gate.evaluate_gate(round)


@receiver(post_save, sender=Round, dispatch_uid="training: stop writing for a closed round")
def stop_writing(
    sender: object, instance: Round, update_fields: Collection[str] | None = None, **kwargs: Any
) -> None:
    """`round_closed` tells of judged rounds alone; one that still waited is seen when it is saved."""
    if instance.state == Round.State.CLOSED and "state" in (update_fields or ()):
        transaction.on_commit(runs.cancel_unwanted_sampling)


@receiver(post_delete, sender=Run, dispatch_uid="training: sweep the folder of a deleted run")
def sweep_the_folder(sender: object, instance: Run, **kwargs: Any) -> None:
    # A copy: once it is deleted, Django takes its number away.
    transaction.on_commit(partial(run_folders.sweep, copy(instance)))
