"""A trained policy as an archive: what is in it, what its card says, and that others can load it."""

import io
import json
import shutil
import zipfile
from pathlib import Path
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.test import Client
from django.urls import reverse

from labeling.models import Policy, Project
from tests import factories
from tests.training.stage import make_run
from training import exports
from training.models import Artifact, GateDecision, Run

HOSTILE = 'x"\n---\n<script>alert(1)</script>'


@pytest.fixture
def manager(client: Client, mia: User) -> Client:
    client.force_login(mia)
    return client


@pytest.fixture
def artifact(project: Project, ann: User, tmp_path: Path) -> Artifact:
    """What a finished LoRA run left: a model, and its adapter beside it."""
    run = make_run(project, ann)
    config = run.config | {"model": "/srv/secret/policies/starter"}
    Run.objects.filter(pk=run.pk).update(
        state=Run.State.COMPLETE, config=config, evaluation={"kl": 7.84, "win_rate_reward_model": 0.88}
    )
    for part, weights in (("model", "model.safetensors"), ("adapter", "adapter_model.safetensors")):
        (tmp_path / "run" / part).mkdir(parents=True)
        (tmp_path / "run" / part / weights).write_bytes(b"numbers")
    (tmp_path / "run" / "model" / "config.json").write_text("{}")
    (tmp_path / "run" / "model" / "lineage.json").write_text('{"parent": "/srv/secret/policies/starter"}')
    policy = factories.make_policy(project, "dpo-1", Policy.State.CANDIDATE)
    policy.parent, policy.location = project.current_policy, str(tmp_path / "run" / "model")
    policy.save()
    lineage = {"versions": {"trl": "1.16.0"}, "parent": "/srv/secret/policies/starter"}
    run.refresh_from_db()
    return Artifact.objects.create(
        run=run, kind="policy", folder=policy.location, policy=policy, lineage=lineage
    )


def downloaded(manager: Client, artifact: Artifact, part: str = "model") -> zipfile.ZipFile:
    answer = manager.get(reverse("policy_export", args=[artifact.policy_id, part]))
    assert answer.status_code == 200
    return zipfile.ZipFile(io.BytesIO(answer.getvalue()))


def test_a_model_is_downloaded_whole_with_its_card_and_lineage(manager: Client, artifact: Artifact) -> None:
    archive = downloaded(manager, artifact)
    assert archive.testzip() is None
    assert sorted(archive.namelist()) == [
        f"dpo-1/{name}" for name in ("README.md", "config.json", "lineage.json", "model.safetensors")
    ]
    assert archive.read("dpo-1/model.safetensors") == b"numbers"
    assert json.loads(archive.read("dpo-1/lineage.json"))["versions"] == {"trl": "1.16.0"}


def test_nothing_tells_where_it_lay_on_this_machine(manager: Client, artifact: Artifact) -> None:
    archive = downloaded(manager, artifact)
    for name in archive.namelist():
        assert b"/srv/secret" not in archive.read(name), name
    assert json.loads(archive.read("dpo-1/lineage.json"))["parent"] == "policies/starter"


def test_the_card_tells_data_lineage_and_figures(artifact: Artifact) -> None:
    assert artifact.policy is not None
    GateDecision.objects.create(
        policy=artifact.policy, against=artifact.run.policy, promoted=True,
        win_rate=0.8, low=0.7, high=0.9, labels=50, reason="People prefer it.",
    )  # fmt: skip
    card = exports.model_card(artifact)
    assert artifact.run.dataset is not None
    for words in (
        f"sha256 `{artifact.run.dataset.digest}`",
        "- pairs: ",
        "- dpo-1, by DPO in run",
        "- starter\n",
        "by reward model: 0.880",
        "- Win rate over starter, by people: 0.800 (95 %: 0.700 to 0.900; 50 labels)",
        "## Licence",
        "vllm serve .",
    ):
        assert words in card


def test_a_name_that_people_gave_cannot_break_the_card(artifact: Artifact) -> None:
    assert artifact.policy is not None
    artifact.policy.name = HOSTILE
    card = exports.model_card(artifact)
    assert card.count("\n---\n") == 1  # the end of the front matter
    assert "<script>" not in card


def test_the_adapter_is_offered_where_there_is_one(manager: Client, artifact: Artifact) -> None:
    archive = downloaded(manager, artifact, "adapter")
    assert "dpo-1-adapter/adapter_model.safetensors" in archive.namelist()
    page = manager.get(reverse("policy", args=[artifact.policy_id])).content.decode()
    assert "Download the adapter" in page
    for left in (Path(artifact.folder).parent / "adapter").iterdir():
        left.unlink()
    assert manager.get(reverse("policy_export", args=[artifact.policy_id, "adapter"])).status_code == 404
    page = manager.get(reverse("policy", args=[artifact.policy_id])).content.decode()
    assert "Download the model" in page
    assert "Download the adapter" not in page


@pytest.mark.parametrize("part", ["..", "data", "checkpoints", "lock"])
def test_no_other_folder_of_the_run_can_be_had(part: str, manager: Client, artifact: Artifact) -> None:
    (Path(artifact.folder).parent / "data").mkdir()
    (Path(artifact.folder).parent / "data" / "x.safetensors").write_bytes(b"")
    assert manager.get(f"/policies/{artifact.policy_id}/{part}.zip").status_code == 404


def test_raters_and_strangers_get_nothing(client: Client, artifact: Artifact, ann: User) -> None:
    address = reverse("policy_export", args=[artifact.policy_id, "model"])
    assert client.get(address).status_code == 302
    client.force_login(ann)
    assert client.get(address).status_code == 404


@pytest.mark.training
def test_others_load_what_was_exported(manager: Client, artifact: Artifact, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from tests.training_rlhf.conftest import save_tiny_policy

    shutil.rmtree(artifact.folder)
    save_tiny_policy(Path(artifact.folder))
    downloaded(manager, artifact).extractall(tmp_path / "there")
    model: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "there" / "dpo-1")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "there" / "dpo-1")
    ids = tokenizer.apply_chat_template([{"role": "user", "content": "Hello"}], return_dict=False)
    assert model.generate(input_ids=torch.tensor([ids]), max_new_tokens=2).shape[1] > len(ids)
