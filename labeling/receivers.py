"""What judging does when a person logs out: their leases go back at once, not when they expire."""

from typing import Any

from django.contrib.auth.models import AbstractBaseUser
from django.contrib.auth.signals import user_logged_out
from django.dispatch import receiver

from labeling.assignment import give_back_all


@receiver(user_logged_out, dispatch_uid="give_back_leases")
def give_back_leases(*, user: AbstractBaseUser | None, **_: Any) -> None:
    if user is not None:  # an anonymous visitor may log out as well
        give_back_all(user)
