"""Names of completions on a rater's screen. An id would tell who wrote it: policies write in turn, so ids
rise with them, and a file's chosen answers come in before its rejected ones.
"""

from collections.abc import Iterable
from hashlib import blake2b

from django.conf import settings


def blind_name(completion_id: int) -> str:
    """The same for every rater and showing; tells nothing without the installation's secret key."""
    key = blake2b(settings.SECRET_KEY.encode(), digest_size=32).digest()
    return blake2b(str(completion_id).encode(), key=key, digest_size=8).hexdigest()


def by_blind_name(completion_ids: Iterable[int]) -> dict[str, int]:
    return {blind_name(pk): pk for pk in completion_ids}
