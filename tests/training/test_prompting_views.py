"""Pages of prompted variants and served policies: who may, what is saved, what is shown and refused."""

from typing import Any

import pytest
from django.contrib.auth.models import User
from django.test import Client
from django.urls import reverse

from labeling import model_servers, prompting
from labeling.models import Policy, Project
from tests.training import stage
from training import exports, runs
from training.models import Artifact, Run
from training.prompted import kept_by_candidate, parts_of, weights_of
from training.recipe_checks import check_parts

ADDRESS = "http://127.0.0.1:8100/v1"
HOSTILE = "<script>alert(1)</script>"


@pytest.fixture
def starter(project: Project) -> Policy:
    return stage.make_starter(project)


@pytest.fixture
def manager(client: Client, mia: User) -> Client:
    client.force_login(mia)
    return client


@pytest.fixture
def prompted(starter: Policy) -> Policy:
    return prompting.make_prompted(policy=starter, system_prompt="Be brief.", examples=[("Hi", "Hey")])


@pytest.fixture
def served(project: Project, settings: Any) -> Policy:
    settings.MODEL_SERVERS = [ADDRESS]
    return model_servers.add_served(project=project, address=ADDRESS, model_name="org/large")


def test_a_manager_writes_a_variant_and_sees_its_parts(manager: Client, starter: Policy) -> None:
    address = reverse("policy_prompt", args=[starter.pk])
    assert "Example 2" in manager.get(address).content.decode()
    sent = {"system_prompt": f"Be {HOSTILE}.", "example_2_user": "Say hi.", "example_2_assistant": "Hi!"}
    page = manager.post(address, sent, follow=True).content.decode()
    made = Policy.objects.get(parent=starter)
    assert [turn["content"] for turn in made.examples] == ["Say hi.", "Hi!"]
    assert "Be &lt;script&gt;" in page and HOSTILE not in page
    assert "Say hi." in page and parts_of(made).version in page
    assert "starter, prompt 1 is a candidate now" in page


def test_more_rows_are_given_without_saving(manager: Client, starter: Policy) -> None:
    sent = {"example_2_user": "Say hi.", "system_prompt": "Be kind.", "more": "rows"}
    answer = manager.post(reverse("policy_prompt", args=[starter.pk]), sent)
    page = answer.content.decode()
    assert answer.status_code == 200 and "Example 4" in page and "Example 5" not in page
    assert "Say hi." in page and "Be kind." in page and "Write the answer" not in page
    assert Policy.objects.count() == 1


def test_a_variant_of_a_variant_shows_what_differs(manager: Client, prompted: Policy) -> None:
    page = manager.get(reverse("policy_prompt", args=[prompted.pk])).content.decode()
    assert "Be brief." in page and "Example 3" in page  # filled in, and room for two more
    again = prompting.make_prompted(policy=prompted, system_prompt="Be kind.", examples=[("Hi", "Hey")])
    shown = manager.get(again.get_absolute_url())
    changes = [(c.kind, c.text) for c in shown.context["parts"].changes]
    assert changes[:2] == [("removed", "Be brief."), ("added", "Be kind.")]
    assert "<del>Be brief.</del>" in shown.content.decode()


@pytest.mark.parametrize(
    ("sent", "said"),
    [
        ({"example_1_user": "Alone."}, "Write the answer too"),
        ({}, "has the same weights"),
    ],
)
def test_what_is_no_variant_is_said_beside_the_form(
    sent: dict[str, str], said: str, manager: Client, starter: Policy
) -> None:
    answer = manager.post(reverse("policy_prompt", args=[starter.pk]), sent)
    assert answer.status_code == 422
    assert said in answer.content.decode()
    assert Policy.objects.count() == 1


def test_a_served_policy_is_added_and_cannot_be_trained(
    manager: Client, project: Project, starter: Policy, ann: User, settings: Any
) -> None:
    address = reverse("policy_served", args=[project.slug])
    assert "RATCHET_MODEL_SERVERS" in manager.get(address).content.decode()
    settings.MODEL_SERVERS = [ADDRESS]
    assert address in manager.get(project.get_absolute_url()).content.decode()
    page = manager.post(
        address, {"address": ADDRESS, "model_name": "org/large"}, follow=True
    ).content.decode()
    served = Policy.objects.get(location=ADDRESS)
    assert "It cannot be trained: its weights are not here." in page and "org/large" in page
    with pytest.raises(runs.RunRefused, match="its weights are not here"):
        runs.create_run(
            project=project, method="dpo", dataset=stage.make_dataset(project, ann), policy=served
        )
    form = manager.get(reverse("run_new", args=[project.slug]) + "?method=dpo").content.decode()
    assert f'value="{served.pk}"' not in form.partition('name="policy"')[2].partition("</select>")[0]


def test_a_server_that_is_no_longer_allowed_is_not_asked(
    project: Project, starter: Policy, served: Policy, settings: Any
) -> None:
    settings.MODEL_SERVERS = []
    round = stage.make_sampled_round(project)
    round.new_policy = served
    round.save()
    run = runs.queue_sampling(round)
    assert run.state == Run.State.REFUSED and "RATCHET_MODEL_SERVERS" in run.message


def test_training_from_a_prompted_policy_keeps_its_prompt_in_the_recipe(
    prompted: Policy, project: Project, ann: User
) -> None:
    def recipe(method: str) -> dict[str, Any]:
        made = stage.make_run(project, ann, method)
        return {name: parts["system_prompt"] for name, parts in made.config.get("prompt_parts", {}).items()}

    project.current_policy = prompted
    project.save()
    assert recipe("dpo") == {"model": "Be brief."}
    assert recipe("reward_model") == {}
    assert recipe("distillation") == {"teacher": "Be brief."}


def test_a_run_tells_under_which_prompt_it_learns_and_its_policy_keeps_it(
    manager: Client, prompted: Policy, project: Project, ann: User
) -> None:
    project.current_policy = prompted
    project.save()
    run = stage.make_run(project, ann, "dpo")
    assert parts_of(prompted).version in manager.get(run.get_absolute_url()).content.decode()
    kept = kept_by_candidate(run.config)
    assert (kept["system_prompt"], kept["examples"]) == (prompted.system_prompt, prompted.examples)
    assert kept_by_candidate(stage.make_run(project, ann, "distillation").config)["system_prompt"] == ""
    dataset = project.datasets.get()
    dataset.manifest = {"tables": {"texts": {"train": 4}}}
    with pytest.raises(runs.RunRefused, match="no place before a text"):
        check_parts(project, "pretraining", dataset, prompted, None)


def test_the_form_offers_a_prompted_policy_as_a_teacher(
    manager: Client, prompted: Policy, starter: Policy, project: Project, ann: User
) -> None:
    dataset = stage.make_dataset(project, ann)
    address = reverse("run_new", args=[project.slug]) + "?method=distillation"
    form = manager.get(address).context["form"]
    chosen = {name: value for name, value in form.initial.items() if isinstance(value, int | float | str)}
    sent = {**chosen, "dataset": dataset.pk, "policy": starter.pk, "teacher": f"prompted:{prompted.pk}"}
    answer = manager.post(address, sent)
    assert answer.status_code == 302, answer.context["form"].errors
    config = Run.objects.latest("pk").config
    assert config["distillation"]["teacher"] == prompted.location
    assert config["prompt_parts"]["teacher"]["system_prompt"] == "Be brief."


def test_the_api_makes_variants_and_served_policies(
    manager: Client, starter: Policy, project: Project, settings: Any
) -> None:
    settings.MODEL_SERVERS = [ADDRESS]
    address = reverse("api_policies", args=[project.slug])

    def post(**sent: Any) -> Any:
        return manager.post(address, sent, content_type="application/json")

    examples = [{"user": "Hi", "assistant": "Hey"}]
    made = post(policy=starter.pk, system_prompt="Be brief.", examples=examples)
    assert made.status_code == 201 and len(made.json()["prompt_version"]) == 12
    assert post(policy=starter.pk, system_prompt="Be brief.", examples=examples).status_code == 400
    assert post(server=ADDRESS, model_name="m").json()["location"] == ADDRESS
    refused = post(server="http://169.254.169.254/v1", model_name="m")
    assert refused.status_code == 400 and "RATCHET_MODEL_SERVERS" in refused.content.decode()
    assert post(server=ADDRESS, policy=starter.pk).status_code == 400
    listed = manager.get(address).json()
    assert [one["parent"] for one in listed] == [None, starter.pk, None]


def test_what_leaves_the_house_takes_its_prompt_along(
    manager: Client, project: Project, starter: Policy, ann: User, tmp_path: Any
) -> None:
    run = stage.make_run(project, ann)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model.safetensors").write_bytes(b"x")
    Policy.objects.filter(pk=starter.pk).update(location=str(tmp_path / "model"))
    starter.refresh_from_db()
    artifact = Artifact.objects.create(
        run=run, kind="policy", folder=str(tmp_path / "model"), policy=starter, lineage={}
    )
    made = prompting.make_prompted(policy=starter, system_prompt="Be brief.", examples=[])
    assert weights_of(made) == artifact
    found = exports.export(artifact, policy=made)
    assert "prompt_parts.json" in found.files and "prompt_parts.json" not in exports.export(artifact).files
    assert found.name == "starter-prompt-1"
    assert parts_of(made).version in exports.model_card(artifact, policy=made)
    page = manager.get(made.get_absolute_url())
    assert page.status_code == 200 and "Download the model" in page.content.decode()


@pytest.mark.parametrize("name", ["ann", "zed"])
def test_nobody_else_prompts_or_adds(
    name: str, client: Client, starter: Policy, project: Project, request: pytest.FixtureRequest
) -> None:
    client.force_login(request.getfixturevalue(name))
    for address in (
        reverse("policy_prompt", args=[starter.pk]),
        reverse("policy_served", args=[project.slug]),
        reverse("api_policies", args=[project.slug]),
    ):
        assert client.get(address).status_code == 404
        assert client.post(address, {"system_prompt": "x"}).status_code == 404
