"""Policies behind a server: which addresses may be asked, and the one way to add such a policy.

Whoever runs the installation lists the addresses (RATCHET_MODEL_SERVERS), private ones among them. Nothing
else is ever asked: a worker sends prompts and a key there, and stands inside the network.
"""

from django.conf import settings
from django.db import IntegrityError, transaction

from labeling.models import Policy, Project
from labeling.policies import PolicyRefused


def check_server(address: str) -> str:
    """The address in the form that is stored. Raise PolicyRefused for one that may not be asked."""
    address = address.strip().rstrip("/")
    if not address.startswith(("http://", "https://")):
        raise PolicyRefused("Name the address of a server, such as https://models.example/v1.")
    if "@" in address:
        raise PolicyRefused(
            "A key does not belong into an address: set RATCHET_MODEL_SERVER_KEY for the worker."
        )
    if address not in {allowed.rstrip("/") for allowed in settings.MODEL_SERVERS}:
        raise PolicyRefused(
            f"{address[:200]} is not among the servers that may be asked. Whoever runs this installation "
            "allows it in RATCHET_MODEL_SERVERS."
        )
    return address


def add_served(*, project: Project, address: str, model_name: str, name: str = "") -> Policy:
    """A candidate that the server at this address writes for. Raise PolicyRefused for one that is there."""
    address = check_server(address)
    model_name = model_name.strip()
    if "\0" in model_name or len(model_name) > 200:
        raise PolicyRefused("A model's name has at most 200 characters, and no NUL.")
    there = Policy.objects.filter(
        project=project, location=address, model_name=model_name, system_prompt="", examples=[]
    ).first()
    if there is not None:
        raise PolicyRefused(f"{there} is this model of this server already.")
    name = " ".join(name.split()) or _free_name(project, model_name.rpartition("/")[2] or address)
    try:
        with transaction.atomic():
            return Policy.objects.create(
                project=project,
                name=name[:120],
                state=Policy.State.CANDIDATE,
                location=address,
                model_name=model_name,
            )
    except IntegrityError as error:
        raise PolicyRefused(
            f"There is a policy called {name} in this project: choose another name."
        ) from error


def _free_name(project: Project, model_name: str) -> str:
    base = f"{model_name.removeprefix('https://').removeprefix('http://')[:90]} on a server"
    taken = set(project.policies.values_list("name", flat=True))
    names = [base, *(f"{base} {number}" for number in range(2, len(taken) + 2))]
    return next(one for one in names if one not in taken)
