"""The learning rate that nobody chose follows the method, the kind of tuning and the size of the model."""

import json
from pathlib import Path
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.test import Client
from django.urls import reverse

from labeling.models import Project
from tests import factories
from tests.training.run_pages import manager
from tests.training.stage import make_dataset, make_run, make_starter
from tests.training.test_run_form import settings_of
from training.ingredients import TRAINABLE
from training.model_size import parameters_of
from training.models import Run
from training.rates import BILLION, USUAL, usual_rate
from training.rlhf.tuning_settings import KINDS

__all__ = ["manager"]


def test_every_method_and_kind_has_a_rate_that_a_recipe_takes() -> None:
    assert set(USUAL) >= set(TRAINABLE)
    for method in TRAINABLE:
        for kind in KINDS:
            for size in (None, 1_000_000, BILLION, 7 * BILLION, 70 * BILLION):
                assert 0 < usual_rate(method, kind, size) < 1


def test_larger_models_begin_at_lower_rates_and_adapters_at_higher_ones() -> None:
    sizes = (1_000_000, BILLION, 7 * BILLION, 70 * BILLION)
    for method in TRAINABLE:
        rates = [usual_rate(method, "full", size) for size in sizes]
        assert rates == sorted(rates, reverse=True)
        for size in sizes:
            assert usual_rate(method, "lora", size) > usual_rate(method, "full", size)
            assert usual_rate(method, "prompt", size) > usual_rate(method, "lora", size)


def shard(folder: Path, name: str, **shapes: list[int]) -> None:
    header = {key: {"dtype": "F32", "shape": shape, "data_offsets": [0, 0]} for key, shape in shapes.items()}
    raw = json.dumps(header | {"__metadata__": {"format": "pt"}}).encode()
    (folder / name).write_bytes(len(raw).to_bytes(8, "little") + raw)


def test_a_model_is_as_large_as_the_headers_of_its_files_say(tmp_path: Path) -> None:
    shard(tmp_path, "model-1.safetensors", a=[10, 20], b=[7])
    shard(tmp_path, "model-2.safetensors", c=[3, 3])
    assert parameters_of(str(tmp_path)) == 216
    (tmp_path / "model-3.safetensors").write_bytes(b"\xff" * 20)
    assert parameters_of(str(tmp_path)) is None
    assert parameters_of("org/model") is None


def test_another_kind_of_tuning_brings_its_own_rate(project: Project, ann: User) -> None:
    def rate(**config: Any) -> float:
        return float(make_run(project, ann, config=config).config["training"]["learning_rate"])

    assert rate() == usual_rate("dpo", "lora")
    assert rate(tuning={"kind": "full"}) == 5e-7
    assert rate(tuning={"kind": "ia3"}) == usual_rate("dpo", "ia3")
    assert rate(tuning={"kind": "ia3"}, training={"learning_rate": 0.1}) == 0.1
    assert make_run(project, ann, config={"tuning": {"kind": "prefix"}}).state == Run.State.CHECKING


@pytest.mark.parametrize(
    ("kind", "typed", "kept"), [("full", "", 5e-7), ("ia3", "", 3e-4), ("ia3", 0.1, 0.1)]
)
def test_an_empty_rate_on_the_page_is_that_of_the_posted_kind(
    kind: str, typed: Any, kept: float, manager: Client, project: Project, ann: User
) -> None:
    make_starter(project)
    make_dataset(project, ann)
    address = f"{reverse('run_new', args=[project.slug])}?method=dpo"
    page = manager.get(address)
    assert page.context["form"]["learning_rate"].value() is None
    manager.post(address, settings_of(page, kind=kind, learning_rate=typed))
    assert Run.objects.get().config["training"]["learning_rate"] == pytest.approx(kept)


def test_the_page_asks_for_the_usual_rate_when_another_kind_is_chosen(
    manager: Client, project: Project
) -> None:
    policy = make_starter(project)
    address = reverse("usual_rate", args=[project.slug])
    said = manager.get(
        address, {"method": "sft", "kind": "prompt", "policy": str(policy.pk)}
    ).content.decode()
    assert 'id="id_learning_rate_helptext"' in said and "0.01" in said
    assert manager.get(address, {"method": "sft", "kind": "<b>"}).status_code == 404
    manager.force_login(factories.make_user("nobody"))
    assert manager.get(address, {"method": "sft", "kind": "lora"}).status_code == 404
