"""PURE: what a label may say under a protocol, and its one canonical form."""

from collections.abc import Collection, Mapping
from typing import Any, NoReturn, TypeGuard

from labeling.models import Protocol


class InvalidLabel(Exception):
    """The protocol does not allow this label; the message is for the rater."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


def validate(value: object, protocol: Protocol, completion_ids: Collection[int]) -> dict[str, Any]:
    """The canonical form of a label's value (see Label), or InvalidLabel."""
    if not isinstance(value, Mapping):
        _refuse("The label is empty.")
    match protocol.kind:
        case Protocol.Kind.RATING:
            return _rating(value, protocol.options)
        case Protocol.Kind.COMPARISON:
            return _comparison(value, protocol.options, completion_ids)
        case Protocol.Kind.RANKING:
            return _ranking(value, protocol.options, completion_ids)
    raise ValueError(f"unknown kind of protocol: {protocol.kind!r}")


def _rating(value: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
    scores, low, high = value.get("scores"), options["low"], options["high"]
    if not isinstance(scores, Mapping):
        _refuse("Choose a score.")
    names = {criterion["key"]: criterion["name"] for criterion in options["criteria"]}
    if unknown := [str(key) for key in scores if key not in names]:
        _refuse(f"There is no criterion {unknown[0][:50]!r} here.")
    for key, name in names.items():
        if key not in scores:
            _refuse(f"Choose a score for “{name}”.")
        if not _is_whole(scores[key]) or not low <= scores[key] <= high:
            _refuse(f"The score for “{name}” must be a whole number from {low} to {high}.")
    return {"scores": {key: scores[key] for key in names}}


def _comparison(
    value: Mapping[str, Any], options: Mapping[str, Any], completion_ids: Collection[int]
) -> dict[str, Any]:
    match value.get("outcome"):
        case "preferred":
            preferred, strength = value.get("preferred"), value.get("strength")
            if not _is_whole(preferred) or preferred not in completion_ids:
                _refuse("Choose one of the two completions of this task.")
            if not _is_whole(strength) or not 1 <= strength <= options["strengths"]:
                _refuse(f"Choose how much better it is, from 1 to {options['strengths']}.")
            return {"outcome": "preferred", "preferred": preferred, "strength": strength}
        case "tie" if options.get("tie"):
            return {"outcome": "tie"}
        case "both_bad" if options.get("both_bad"):
            return {"outcome": "both_bad"}
        case "tie":
            _refuse("Ties are not allowed here: choose the better one.")
        case "both_bad":
            _refuse("“Both bad” is not allowed here: choose the better one.")
    _refuse("Choose the better completion.")


def _ranking(
    value: Mapping[str, Any], options: Mapping[str, Any], completion_ids: Collection[int]
) -> dict[str, Any]:
    given = value.get("ranks")
    if not isinstance(given, Mapping):
        _refuse("Rank the completions.")
    ids = {str(pk) for pk in completion_ids}
    if any(str(key) not in ids for key in given):
        _refuse("A ranked completion does not belong to this task.")
    if any(not _is_whole(rank) or rank < 1 for rank in given.values()):
        _refuse("Ranks are whole numbers from 1.")
    if len(given) < len(ids) and not options.get("partial"):
        _refuse("Rank all the completions.")
    if len(given) < 2:
        _refuse("Rank at least two completions.")
    if len(set(given.values())) < len(given) and not options.get("ties"):
        _refuse("Ties are not allowed here: give each completion a rank of its own.")
    dense = {rank: place for place, rank in enumerate(sorted(set(given.values())), start=1)}
    ranks = sorted((dense[rank], int(key)) for key, rank in given.items())
    return {"ranks": {str(pk): rank for rank, pk in ranks}}


def _is_whole(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


def _refuse(message: str) -> NoReturn:
    raise InvalidLabel(message)
