"""Prompting as a policy: the same weights under another system prompt and other examples, as a new policy.

A policy's parts are never edited: what was written under them, and judged, stays what it was. Another wording
is another policy, with the one that it was made from as its parent; rounds compare them like any two.
"""

from collections.abc import Sequence

from django.db import IntegrityError, transaction

from labeling.models import Policy
from labeling.models.prompts import Message
from labeling.policies import PolicyRefused
from labeling.prompts import text_problem

MOST_EXAMPLES = 16
MOST_CHARACTERS = 50_000  # of all parts together


def make_prompted(
    *, policy: Policy, system_prompt: str, examples: Sequence[tuple[str, str]], name: str = ""
) -> Policy:
    """A candidate with the policy's weights under these parts; examples are (user, assistant).

    Raise PolicyRefused for a policy without a model, parts that cannot be stored, and what is there already.
    """
    if not policy.location:
        raise PolicyRefused(
            f"{policy} has no model: only its completions are known, so nothing can prompt it."
        )
    system_prompt = system_prompt.replace("\r\n", "\n").strip()
    turns = _turns(examples)
    _check_texts(system_prompt, turns)
    same = Policy.objects.filter(
        project=policy.project, location=policy.location, model_name=policy.model_name
    ).filter(system_prompt=system_prompt)
    twin = next((one for one in same if one.examples == turns), None)
    if twin is not None:
        raise PolicyRefused(f"{twin} has the same weights, system prompt and examples already.")
    name = " ".join(name.split()) or _free_name(policy)
    try:
        with transaction.atomic():
            return Policy.objects.create(
                project=policy.project,
                name=name,
                state=Policy.State.CANDIDATE,
                location=policy.location,
                model_name=policy.model_name,
                system_prompt=system_prompt,
                examples=turns,
                parent=policy,
            )
    except IntegrityError as error:
        raise PolicyRefused(
            f"There is a policy called {name} in this project: choose another name."
        ) from error


def _turns(examples: Sequence[tuple[str, str]]) -> list[Message]:
    if len(examples) > MOST_EXAMPLES:
        raise PolicyRefused(f"At most {MOST_EXAMPLES} examples: each is read before every prompt.")
    turns: list[Message] = []
    for number, (asked, answered) in enumerate(examples, start=1):
        for role, said in (("user", asked), ("assistant", answered)):
            content = said.replace("\r\n", "\n").strip()
            if not content:
                missing = "question" if role == "user" else "answer"
                raise PolicyRefused(f"Example {number} has no {missing}.")
            turns.append(Message(role=role, content=content))
    return turns


def _check_texts(system_prompt: str, turns: Sequence[Message]) -> None:
    texts = [system_prompt, *(turn["content"] for turn in turns)]
    for text in texts:
        if problem := text_problem(text):
            raise PolicyRefused(f"A text of the prompt {problem}.")
    if sum(map(len, texts)) > MOST_CHARACTERS:
        raise PolicyRefused(
            f"The prompt has more than {MOST_CHARACTERS:,} characters: no policy would read it."
        )


def _free_name(policy: Policy) -> str:
    """The name of the weights, and a number for the prompt."""
    base = policy
    while base.is_prompted and base.parent is not None:  # whoever is made has a parent that is older
        base = base.parent
    taken = set(policy.project.policies.values_list("name", flat=True))
    names = (f"{base.name[:100]}, prompt {number}" for number in range(1, len(taken) + 2))
    return next(name for name in names if name not in taken)
