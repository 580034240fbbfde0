"""Taking a model away in the browser, and the worker that carries it out."""

import io
import json
import zipfile
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.test import Client
from django.urls import reverse
from django.utils import timezone

from labeling.models import Policy, Project
from tests import factories
from tests.training import stage
from tests.training.fake_hub import TOKEN, fake_hub
from training import runs
from training.leaving import departures
from training.models import Artifact, Departure, Run, Worker

State = Departure.State


@pytest.fixture
def manager(client: Client, mia: User) -> Client:
    client.force_login(mia)
    return client


@pytest.fixture
def artifact(project: Project, ann: User, tmp_path: Path) -> Artifact:
    """What a finished LoRA run left, in bf16."""
    run = stage.make_run(project, ann)
    Run.objects.filter(pk=run.pk).update(state=Run.State.COMPLETE)
    folder = tmp_path / "run" / "model"
    for part in ("model", "adapter"):
        (tmp_path / "run" / part).mkdir(parents=True)
        (tmp_path / "run" / part / f"{part}.safetensors").write_bytes(b"numbers")
    (folder / "config.json").write_text('{"dtype": "bfloat16"}')
    (tmp_path / "run" / "adapter" / "adapter_config.json").write_text(
        '{"base_model_name_or_path": "/srv/secret/starter", "r": 8}'
    )
    policy = factories.make_policy(project, "dpo-1", Policy.State.CANDIDATE)
    policy.parent, policy.location = project.current_policy, str(folder)
    policy.save()
    return Artifact.objects.create(run=run, kind="policy", folder=str(folder), policy=policy)


def see_worker(hub: str = "") -> None:
    Worker.objects.create(name="w", device="cpu:0", hub=hub, seen_at=timezone.now())


def test_the_page_offers_the_forms_that_are_not_there_yet(manager: Client, artifact: Artifact) -> None:
    page = manager.get(reverse("away", args=[artifact.run_id])).content.decode()
    for words in ("As it is stored (bfloat16)", "Merged, fp32", "The adapter alone", "training.rlhf.serve"):
        assert words in page
    assert "Merged, bf16" not in page
    assert "No worker has a token" in page
    see_worker("https://hub.example")
    assert "https://hub.example" in manager.get(reverse("away", args=[artifact.run_id])).content.decode()


def test_what_is_asked_for_waits_for_a_worker_once(manager: Client, artifact: Artifact, mia: User) -> None:
    for _ in range(2):
        answer = manager.post(reverse("away_write", args=[artifact.run_id]), {"form": "fp32"})
        assert answer.status_code == 302
    row = Departure.objects.get()
    assert (row.form, row.repo, row.state, row.created_by) == ("fp32", "", State.WAITING, mia)
    page = manager.get(reverse("away", args=[artifact.run_id]), headers={"HX-Request": "true"})
    assert "Waiting for a worker." in page.content.decode()


@pytest.mark.parametrize(
    ("data", "status", "words"),
    [
        ({"push-form": "fp32", "push-repo": "fox"}, 409, "write OWNER/NAME"),
        ({"push-form": "fp32", "push-repo": "org/../x"}, 409, "write OWNER/NAME"),
        ({"push-form": "bf16", "push-repo": "org/fox"}, 422, "Select a valid choice"),
        ({"push-form": "fp32", "push-repo": "org/fox", "push-licence": "my own!"}, 409, "such as apache-2.0"),
        ({"push-form": "adapter", "push-repo": "org/fox", "push-base": "/srv/x"}, 409, "is no hub id"),
        ({"push-form": "fp32", "push-repo": "org/fox"}, 409, "No worker has a token"),
    ],
)
def test_a_push_that_cannot_work_is_refused_before_it_begins(
    manager: Client, artifact: Artifact, data: dict[str, str], status: int, words: str
) -> None:
    see_worker()
    answer = manager.post(reverse("away_push", args=[artifact.run_id]), data)
    assert answer.status_code == status
    assert words in answer.content.decode()
    assert not Departure.objects.exists()


def test_a_repository_is_private_unless_somebody_says_so(manager: Client, artifact: Artifact) -> None:
    see_worker("https://hub.example")
    address = reverse("away_push", args=[artifact.run_id])
    manager.post(address, {"push-form": "stored", "push-repo": "org/fox", "push-licence": "apache-2.0"})
    manager.post(address, {"push-form": "stored", "push-repo": "org/open", "push-public": "on"})
    assert list(Departure.objects.order_by("pk").values_list("private", flat=True)) == [True, False]
    card = departures.write_job(Departure.objects.select_related("artifact__run").earliest("pk"))
    job = json.loads((card / "job.json").read_text())
    assert job["texts"]["README.md"].startswith("---\n")
    assert 'license: "apache-2.0"' in job["texts"]["README.md"]
    assert '.from_pretrained("org/fox")' in job["texts"]["README.md"]


def test_an_adapter_is_downloaded_without_a_place_on_this_machine(
    manager: Client, artifact: Artifact
) -> None:
    answer = manager.get(reverse("away_stored", args=[artifact.run_id, "adapter"]))
    archive = zipfile.ZipFile(io.BytesIO(answer.getvalue()))
    assert json.loads(archive.read("dpo-1-adapter/adapter_config.json")) == {
        "base_model_name_or_path": "org/starter",
        "r": 8,
    }


def test_raters_and_strangers_take_nothing_away(client: Client, artifact: Artifact, ann: User) -> None:
    row = Departure.objects.create(artifact=artifact, form="fp32", state=State.COMPLETE)
    (row.folder / "model").mkdir(parents=True)
    for user in (None, ann):
        if user is not None:
            client.force_login(user)
        expected = 404 if user else 302
        assert client.get(reverse("away", args=[artifact.run_id])).status_code == expected
        assert client.get(reverse("departure", args=[row.pk])).status_code == expected
        for name in ("away_write", "away_push"):
            answer = client.post(reverse(name, args=[artifact.run_id]), {"form": "fp32"})
            assert answer.status_code == expected
    assert Departure.objects.count() == 1


def test_a_lost_worker_leaves_it_to_the_next_and_writes_nothing_any_more(artifact: Artifact) -> None:
    departures.ask(artifact=artifact, form="fp32")
    first = departures.claim(worker="one", pushes=False)
    assert first is not None and departures.claim(worker="two", pushes=False) is None
    Departure.objects.update(leased_until=timezone.now() - timedelta(seconds=1))
    assert departures.claim(worker="two", pushes=False, lost=False) is None
    second = departures.claim(worker="two", pushes=False)
    assert second is not None and second.attempt == 2
    assert not departures.write(first, percent=90)
    assert departures.write(second, percent=10)


def test_what_was_written_a_week_ago_makes_room(artifact: Artifact, settings: Any) -> None:
    now = timezone.now()
    old, fresh = (
        Departure.objects.create(artifact=artifact, form="fp32", state=State.COMPLETE, ended_at=now - age)
        for age in (timedelta(days=8), timedelta(days=1))
    )
    for row in (old, fresh):
        (row.folder / "model").mkdir(parents=True)
    of_somebody_else = Path(settings.EXPORTS_DIR) / "kept by hand"
    of_somebody_else.mkdir()
    departures.remove_old_folders()
    assert (old.is_here, fresh.is_here, of_somebody_else.exists()) == (False, True, True)


@pytest.mark.training
@pytest.mark.slow
def test_a_real_worker_writes_a_model_and_pushes_it(
    manager: Client, artifact: Artifact, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("torch")
    from tests.training_rlhf.conftest import save_tiny_policy

    save_tiny_policy(Path(artifact.folder))
    (Path(artifact.folder) / "model.safetensors").stat()
    settings.RUN_LEASE_SECONDS = 30
    with fake_hub() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.address)
        monkeypatch.setenv("HF_HUB_OFFLINE", "0")
        settings.HUB_TOKEN, settings.HUB_ENDPOINT = TOKEN, hub.address
        Run.objects.exclude(pk=artifact.run_id).delete()
        worker = stage.make_worker()
        worker.turn()
        assert runs.workers_alive()[0].hub == hub.address
        data = {"push-form": "bf16", "push-repo": "org/fox", "push-licence": "mit"}
        assert manager.post(reverse("away_push", args=[artifact.run_id]), data).status_code == 302
        row = Departure.objects.get()

        def is_over() -> bool:
            row.refresh_from_db()
            return not row.is_live

        stage.work_until(worker, is_over, 120)
        assert row.state == State.COMPLETE, row.message
        assert row.url.startswith(f"{hub.address}/org/fox/commit/")
        page = manager.get(reverse("away", args=[artifact.run_id])).content.decode()
        assert row.url in page and TOKEN not in page
        answer = manager.get(reverse("departure", args=[row.pk]))
        archive = zipfile.ZipFile(io.BytesIO(answer.getvalue()))
        there = {name.partition("/")[2]: archive.read(name) for name in archive.namelist()}
        assert there == hub.files["org/fox"]
        assert json.loads(there["config.json"])["dtype"] == "bfloat16"
