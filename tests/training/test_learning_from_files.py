"""From files to a policy: demonstrations and single judgements come in, freeze, and train in a real child."""

import json
from pathlib import Path
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.test import Client

from labeling import datasets
from labeling.imports import import_file
from labeling.models import Collection, PreferenceDataset, Project
from tests.training import stage
from tests.training.test_real_trainer import SECONDS, TINY
from training import runs
from training.mixtures import Mixed
from training.models import Run

pytestmark = pytest.mark.training


def brought_in(project: Project, tmp_path: Path, rows: list[dict[str, Any]], name: str) -> PreferenceDataset:
    path = tmp_path / f"{name}.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    report = import_file(project=project, path=path)
    collection = Collection.objects.get(pk=report.collection or 0)
    return datasets.freeze(project=project, rounds=[], collections=[collection], rule="each_label", name=name)


def shown(number: int, **more: Any) -> dict[str, Any]:
    return {"prompt": f"Greet guest {number}.", "completion": f"Hello, guest {number}!", **more}


@pytest.mark.parametrize("method", ["sft", "kto", "pretraining"])
def test_what_a_file_brings_in_trains_a_policy_beside_what_people_judged(
    method: str, project: Project, ann: User, mia: User, client: Client, settings: Any, tmp_path: Path
) -> None:
    settings.RUN_LEASE_SECONDS = 30
    project.test_percent = 30
    project.save()
    policy = stage.make_tiny_starter(project, tmp_path / "models")
    rows = {
        "sft": [shown(n) for n in range(20)],
        "kto": [shown(n, label=n % 3 > 0) for n in range(20)],
        "pretraining": [{"text": f"Guest {n} sat down and ate a plate of soup."} for n in range(20)],
    }[method]
    first = brought_in(project, tmp_path, rows[:12], "first")
    further = (
        stage.make_dataset(project, ann, "judged") if method == "sft" else None
    )  # pairs, for SFT to imitate
    further = further or brought_in(project, tmp_path, rows[12:], "second")
    run = runs.create_run(
        project=project,
        method=method,
        dataset=first,
        mixture=[Mixed(further, 2.0)],
        policy=policy,
        config=TINY,
        start_when_ready=True,
        then_next_round=False,
    )
    stage.work_through(stage.make_worker(), run, SECONDS)
    assert run.state == Run.State.COMPLETE, f"{run.message}\n{run.stderr_tail}"
    main, other = run.evaluation["datasets"]
    assert (main["name"], other["name"], other["weight"]) == ("main", further.name, 2.0)
    assert main["train"] and other["train"]
    assert main["test"] and main["figures"]["loss"] > 0
    client.force_login(mia)
    page = client.get(run.get_absolute_url()).content.decode()
    assert "On each dataset" in page
    assert f'href="{further.get_absolute_url()}"' in page[page.index("On each dataset") :]
