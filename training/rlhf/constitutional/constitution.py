"""The constitution of a run, `data/constitution.json`: principles, and what is asked by each.

    {"version": 3, "principles": [{"text": ..., "critique": ..., "revision": ..., "comparison": ...}, ...]}

Which principle is asked about a row follows from the run's seed, the row's number and the turn alone: neither
batches nor a resume change it. Standard library only.
"""

import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from training.rlhf.failures import Refused

FILE = "constitution.json"
_PARTS = ("text", "critique", "revision", "comparison")


@dataclass(frozen=True, kw_only=True)
class Principle:
    number: int  # in the constitution, from 1
    text: str
    critique: str  # asks the policy to criticise its answer
    revision: str  # asks it to write the answer again
    comparison: str  # asks a judge which of two is better


@dataclass(frozen=True, kw_only=True)
class Constitution:
    version: int
    principles: tuple[Principle, ...]

    def sampled(self, *, seed: int, row: int, turn: int) -> Principle:
        """The principle of one turn, each as likely as any other."""
        return random.Random(f"{seed} {row} {turn}").choice(self.principles)

    def several(self, count: int, *, seed: int, row: int) -> list[Principle]:
        """Different principles for one row, in order of chance; all of them where there are fewer."""
        return random.Random(f"{seed} {row}").sample(self.principles, min(count, len(self.principles)))


def read(data: Path) -> Constitution:
    """The constitution in a run's data folder. Raises Refused for what is none."""
    path = data / FILE
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise Refused("There is no constitution.", str(path), "Write the principles there.") from None
    except ValueError as error:
        raise Refused(f"The constitution is not JSON: {error}.", str(path), "Write it again.") from error
    listed = found.get("principles") if isinstance(found, dict) else None
    version = found.get("version") if isinstance(found, dict) else None
    if not isinstance(listed, list) or not listed or not isinstance(version, int):
        raise Refused(
            "A constitution has a version, a whole number, and at least one principle.",
            str(path),
            'Write {"version": 1, "principles": [...]}.',
        )
    return Constitution(
        version=version,
        principles=tuple(_principle(one, number, path) for number, one in enumerate(listed, start=1)),
    )


def _principle(one: Any, number: int, path: Path) -> Principle:
    parts: dict[str, Any] = {name: one.get(name) for name in _PARTS} if isinstance(one, dict) else {}
    for name in _PARTS:
        if not isinstance(parts.get(name), str) or not parts[name].strip():
            raise Refused(
                f"Principle {number} has no {name}.",
                str(path),
                f"Each principle has {', '.join(_PARTS)}, all of them words.",
            )
    return Principle(number=number, **parts)
