"""Prompting as a policy: the same weights under other parts are another policy; who may be asked."""

from typing import Any

import pytest

from labeling import model_servers, policies, prompting
from labeling.models import Policy, Project
from labeling.policies import PolicyRefused
from tests import factories

ADDRESS = "http://127.0.0.1:8100/v1"
EXAMPLES = [("Say hi.", "Hi!"), ("Say bye.", "Bye!")]


@pytest.fixture
def plain(project: Project) -> Policy:
    policy = factories.make_policy(project)
    policy.location = "org/model"
    policy.save()
    return policy


def test_a_variant_is_a_candidate_with_the_same_weights_and_its_parent_stays_as_it_is(plain: Policy) -> None:
    made = prompting.make_prompted(policy=plain, system_prompt=" Be brief.\r\n", examples=EXAMPLES)
    assert (made.name, made.state, made.parent) == ("starter, prompt 1", Policy.State.CANDIDATE, plain)
    assert (made.location, made.system_prompt) == ("org/model", "Be brief.")
    assert [turn["role"] for turn in made.examples] == ["user", "assistant"] * 2
    again = prompting.make_prompted(policy=made, system_prompt="Be brief, please.", examples=EXAMPLES)
    plain.refresh_from_db()
    made.refresh_from_db()
    assert (again.name, again.parent, made.system_prompt) == ("starter, prompt 2", made, "Be brief.")
    assert not plain.is_prompted


@pytest.mark.parametrize(
    ("system_prompt", "examples", "said"),
    [
        ("", [], "starter has the same weights"),
        ("x\0y", [], "NUL"),
        ("", [("Asked.", " ")], "Example 1 has no answer"),
        ("", [("Q", "A")] * 17, "At most 16"),
        ("x" * 50_001, [], "50,000 characters"),
    ],
    ids=["nothing", "nul", "half", "many", "long"],
)
def test_what_is_no_prompt_of_its_own_is_refused(
    plain: Policy, system_prompt: str, examples: Any, said: str
) -> None:
    with pytest.raises(PolicyRefused, match=said):
        prompting.make_prompted(policy=plain, system_prompt=system_prompt, examples=examples)
    assert Policy.objects.count() == 1


def test_a_prompt_that_is_there_already_and_a_taken_name_are_refused(plain: Policy) -> None:
    made = prompting.make_prompted(policy=plain, system_prompt="Be brief.", examples=[], name="brief")
    with pytest.raises(PolicyRefused, match="brief has the same weights"):
        prompting.make_prompted(policy=made, system_prompt="Be brief. ", examples=[])
    with pytest.raises(PolicyRefused, match="choose another name"):
        prompting.make_prompted(policy=made, system_prompt="Be long.", examples=[], name="brief")
    nobody = factories.make_policy(plain.project, "people", Policy.State.EXTERNAL)
    with pytest.raises(PolicyRefused, match="no model"):
        prompting.make_prompted(policy=nobody, system_prompt="Be brief.", examples=[])


def test_choosing_a_model_chooses_it_without_a_prompt(plain: Policy) -> None:
    prompting.make_prompted(policy=plain, system_prompt="Be brief.", examples=[])
    assert policies.choose_policy(project=plain.project, location="org/model") == plain


def test_only_servers_that_the_installation_allows_are_asked(project: Project, settings: Any) -> None:
    with pytest.raises(PolicyRefused, match="RATCHET_MODEL_SERVERS"):
        model_servers.add_served(project=project, address=ADDRESS, model_name="m")
    settings.MODEL_SERVERS = [f"{ADDRESS}/"]
    made = model_servers.add_served(project=project, address=ADDRESS, model_name="org/m")
    assert (made.name, made.location, made.model_name) == ("m on a server", ADDRESS, "org/m")
    assert made.is_served
    with pytest.raises(PolicyRefused, match="already"):
        model_servers.add_served(project=project, address=f"{ADDRESS}/", model_name="org/m")
    for address in ("http://169.254.169.254/v1", "http://key@127.0.0.1:8100/v1", "file:///etc", ""):
        with pytest.raises(PolicyRefused):
            model_servers.add_served(project=project, address=address, model_name="x")
