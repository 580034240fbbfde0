"""Every way to train, chosen on a page: what is offered, what a run is made of, what is refused and where."""

from typing import Any

import pytest
from django.contrib.auth.models import User
from django.test import Client
from django.urls import reverse

from labeling import datasets
from labeling.models import Policy, PreferenceDataset, Project
from labeling.policies import starter_folder
from tests import factories
from tests.labeling.judged import compared_round, make_prompt, make_round, make_task, say
from tests.training.run_pages import manager
from tests.training.stage import make_run, make_starter
from tests.training.test_run_form import settings_of
from training.forms.setting_fields import SECTIONS
from training.forms.setting_fields import settings_of as settings_read
from training.forms.setting_words import CHOICES, OF_KINDS, WORDS
from training.ingredients import RUNNABLE, TRAINABLE
from training.models import Artifact, Run
from training.recipes import SMALL, USUAL, merged
from training.rlhf.config import RunConfig
from training.rlhf.methods import METHODS
from training.runs import RunRefused, create_run
from training.views.curves import BY_METHOD, curves_of
from training.views.method_choice import GROUPS, WHEN, choices

State = Run.State
__all__ = ["manager"]  # a fixture
ONLINE = [name for name in TRAINABLE if METHODS[name].is_online]
# What a method does not run without, in the form and in a recipe.
NEEDS: dict[str, dict[str, Any]] = {"distillation": {"system_prompt": "Be kind."}}
RULE: dict[str, Any] = {"rule_1_kind": "length", "rule_1_text": "60"}


@pytest.fixture
def judged(project: Project) -> PreferenceDataset:
    """A dataset of comparisons, ratings and texts, as pages see it: without its files."""
    make_starter(project)
    return listed(project, "all", "pairs", "ratings", "texts")


def listed(project: Project, name: str, *tables: str) -> PreferenceDataset:
    manifest = {"tables": {table: {"train": 9, "test": 1} for table in (*tables, "prompts")}}
    return PreferenceDataset.objects.create(
        project=project, name=name, rule="each_label", folder=name, digest=name, manifest=manifest
    )


@pytest.fixture
def frozen(project: Project, ann: User) -> PreferenceDataset:
    """Two rounds in one dataset: comparisons, and ratings."""
    starter = make_starter(project)
    compared = compared_round(project, [ann], [[2], [-1], [3], [1]])
    rated = make_round(project, "rating")
    for score in (1, 4):
        task = make_task(rated, make_prompt(project, f"Rate {score}."), ["A fox."], [starter])
        say(task, ann, {"scores": {"overall": score}})
    return datasets.freeze(project=project, rounds=[compared, rated], rule="each_label", name="all")


@pytest.fixture
def model(judged: PreferenceDataset) -> Artifact:
    return reward_model_on(judged)


def reward_model_on(dataset: PreferenceDataset, folder: str = "/runs/1/model") -> Artifact:
    run = Run.objects.create(
        project=dataset.project, method="reward_model", state=State.COMPLETE, dataset=dataset
    )
    return Artifact.objects.create(run=run, kind="reward_model", folder=folder)


def post(manager: Client, project: Project, method: str, **changes: Any) -> Any:
    address = f"{reverse('run_new', args=[project.slug])}?method={method}"
    return manager.post(address, settings_of(manager.get(address), **NEEDS.get(method, {}) | changes))


def recipe_needed(method: str) -> dict[str, Any]:
    rewards = [{"name": "length", "kind": "length", "options": {"target": 60}}]
    own = {method: NEEDS[method]} if method in NEEDS else {}
    return {**own, "rewards": rewards} if METHODS[method].is_online else own


# ---- the table of methods and what hangs on it


def test_every_method_of_the_table_is_a_method_of_a_run() -> None:
    assert set(Run.Method.values) == set(METHODS)
    assert {value: str(label) for value, label in Run.Method.choices} == {
        name: method.label for name, method in METHODS.items()
    }


def test_every_method_that_trains_is_offered_once_with_words_defaults_and_curves() -> None:
    offered = [name for _, names in GROUPS for name in names]
    assert sorted(offered) == sorted(RUNNABLE)
    assert set(RUNNABLE) <= set(WHEN) & set(BY_METHOD)
    assert set(TRAINABLE) <= set(SMALL) & set(USUAL)


def test_every_setting_has_words_and_no_word_is_of_another() -> None:
    known = {
        f"{name}.{field}" for name, section in SECTIONS.items() for field in section.__dataclass_fields__
    }
    assert set(WORDS) == known
    assert {*CHOICES, *OF_KINDS} <= known


@pytest.mark.parametrize("method", TRAINABLE)
def test_each_setting_has_a_field_of_its_own(method: str) -> None:
    found = settings_read(method)
    assert len({setting.field for setting in found}) == len(found)
    assert len({setting.key for setting in found}) == len(found)


@pytest.mark.parametrize("defaults", [SMALL, USUAL], ids=["small", "usual"])
@pytest.mark.parametrize("method", TRAINABLE)
def test_the_defaults_of_every_method_are_a_recipe(method: str, defaults: dict[str, Any]) -> None:
    given = {"method": method, "model": "org/starter", **recipe_needed(method)}
    config = RunConfig.from_json(merged(defaults[method], given))
    if method in ("rloo", "grpo"):
        at_once = config.training.batch_size * config.training.gradient_accumulation
        assert at_once % getattr(config, method).completions_per_prompt == 0


# ---- the page


@pytest.mark.parametrize("method", TRAINABLE)
def test_the_form_of_every_method_makes_its_run(
    method: str, manager: Client, project: Project, model: Artifact
) -> None:
    answer = post(manager, project, method, seed=7, learning_rate=0.002)
    run = Run.objects.exclude(pk=model.run_id).get()
    assert answer.headers["Location"] == run.get_absolute_url()
    assert (run.method, run.state, run.config["seed"]) == (method, State.CHECKING, 7)
    assert run.config["training"]["learning_rate"] == 0.002
    own = {name for name in SECTIONS if name in run.config} - {"training", "tuning", "sampling"}
    assert own == ({METHODS[method].section} - {""})
    rewards = [(r["kind"], r["location"]) for r in run.config["rewards"]]
    assert rewards == ([("model", model.folder)] if METHODS[method].is_online else [])
    assert RunConfig.from_json(run.config).to_json()["training"] == run.config["training"]


@pytest.mark.parametrize("method", TRAINABLE)
def test_another_run_like_it_has_the_same_recipe(
    method: str, manager: Client, project: Project, model: Artifact
) -> None:
    rules = RULE | {"rule_1_weight": 0.5, "rule_1_name": "short"} if METHODS[method].is_online else {}
    post(manager, project, method, batch_size=8, **rules)
    first = Run.objects.latest("pk")
    link = f"{reverse('run_new', args=[project.slug])}?like={first.pk}"
    manager.post(link, settings_of(manager.get(link)))
    second = Run.objects.latest("pk")
    assert second.pk != first.pk
    assert second.config == first.config


def test_a_setting_of_the_method_that_has_the_name_of_another_is_kept_apart(
    manager: Client, project: Project, model: Artifact
) -> None:
    post(manager, project, "ppo", epochs=3, ppo_epochs=2, batch_size=16, sampling_batch_size=99)
    config = Run.objects.latest("pk").config
    assert (config["training"]["epochs"], config["ppo"]["epochs"]) == (3.0, 2)
    assert (config["training"]["batch_size"], config["sampling"]["batch_size"]) == (16, 99)


def test_the_page_groups_the_methods_and_marks_the_one_that_is_shown(
    manager: Client, project: Project, judged: PreferenceDataset
) -> None:
    page = manager.get(reverse("run_new", args=[project.slug]), {"method": "kto"}).content.decode()
    for title, _ in GROUPS:
        assert f"<h3>{title}</h3>" in page
    assert 'href="?method=kto" aria-current="page"' in page
    assert page.count('aria-current="page"') == 1
    assert page.count('href="?method=') >= len(TRAINABLE)


def test_a_method_without_its_rows_says_what_is_missing_and_is_no_link(
    manager: Client, project: Project
) -> None:
    make_starter(project)
    listed(project, "pairs", "pairs")
    page = manager.get(reverse("run_new", args=[project.slug]), {"method": "dpo"}).content.decode()
    assert 'href="?method=ppo"' in page and 'href="?method=kto"' not in page
    assert "No dataset has what it learns from: single completions that were rated." in page
    assert "There is no reward model yet; rules or a judge may be the reward." in page


@pytest.mark.parametrize("tables", [{}, {"tables": {}}, {"tables": {"prompts": {"train": 1, "test": 0}}}])
def test_what_a_dataset_does_not_hold_is_not_offered(tables: dict[str, Any], project: Project) -> None:
    PreferenceDataset.objects.create(
        project=project, name="odd", rule="each_label", folder="o", digest="o", manifest=tables
    )
    offered = {choice.method for _, found in choices(project) for choice in found if not choice.missing}
    assert offered == ({*ONLINE, "distillation"} if tables.get("tables") else set())


def test_the_datasets_on_offer_are_those_that_the_method_learns_from(
    manager: Client, project: Project, judged: PreferenceDataset
) -> None:
    pairs = listed(project, "pairs", "pairs")
    address = reverse("run_new", args=[project.slug])

    def offered(method: str) -> list[PreferenceDataset]:
        return list(manager.get(address, {"method": method}).context["form"].fields["dataset"].queryset)

    assert offered("dpo") == offered("reward_model") == offered("ppo") == [pairs, judged]
    assert offered("kto") == [judged]


# ---- rewards


def test_the_reward_model_of_the_dataset_is_proposed(
    manager: Client, project: Project, model: Artifact, ann: User
) -> None:
    newer = reward_model_on(model.run.dataset or pytest.fail(), folder="/runs/2/model")
    page = manager.get(reverse("run_new", args=[project.slug]), {"method": "ppo"})
    ticked = [box.name for box, _ in page.context["form"].reward_models() if box.value()]
    assert ticked == [f"reward_{newer.run_id}"]


def test_rewards_of_every_kind_come_into_the_recipe(
    manager: Client, project: Project, model: Artifact, settings: Any
) -> None:
    settings.REWARD_MODULES = ["our.rewards"]
    settings.JUDGES = ["http://127.0.0.1:8001/v1"]
    post(
        manager, project, "grpo",
        **{f"reward_{model.run_id}_weight": 2},
        rule_1_kind="length", rule_1_text="40 to 80",
        rule_2_kind="regex", rule_2_text=r"\bfox\b", rule_2_weight=-1, rule_2_name="no fox",
        rule_3_kind="forbidden", rule_3_text="sorry, as an AI",
        rule_4_kind="length", rule_4_text="60",
        judge_location="http://127.0.0.1:8001/v1", judge_rubric="Kind to children.", judge_model="small",
        python_function="our.rewards:rhymes", python_weight=0.25,
    )  # fmt: skip
    found = {
        r["name"]: (r["kind"], r["weight"], r["options"]) for r in Run.objects.latest("pk").config["rewards"]
    }
    assert found == {
        f"reward model {model.run_id}": ("model", 2.0, {}),
        "length": ("length", 1.0, {"min": 40, "max": 80}),
        "no fox": ("regex", -1.0, {"pattern": r"\bfox\b"}),
        "words": ("forbidden", 1.0, {"words": ["sorry", "as an AI"]}),
        "length 2": ("length", 1.0, {"target": 60}),
        "judge": ("judge", 1.0, {"rubric": "Kind to children.", "model": "small"}),
        "rhymes": ("python", 0.25, {"function": "our.rewards:rhymes"}),
    }


@pytest.mark.parametrize(
    ("changes", "beside", "said"),
    [
        ({"reward": ""}, "reward", "Choose at least one reward"),
        ({"rule_1_kind": "length", "rule_1_text": "short"}, "rule_1_text", "such as 60"),
        ({"rule_2_kind": "forbidden", "rule_2_text": " , "}, "rule_2_text", "Write the words"),
        ({"rule_3_text": "fox"}, "rule_3_kind", "Which rule is it?"),
        ({"judge_rubric": "Kind."}, "judge_location", "Who is to judge"),
        ({"judge_location": "org/starter"}, "judge_rubric", "what makes a completion good"),
        ({"judge_location": "http://169.254.169.254/"}, "judge_location", "not one of the available choices"),
        ({"reward_weight": 5000}, "reward_weight", "from -1,000 to 1,000"),
        ({**RULE, "rule_1_weight": -5000}, "rule_1_weight", "from -1,000 to 1,000"),
        ({"kl_coefficient": -1}, "kl_coefficient", "KL coefficient is -1.0: from 0 to 10"),
        ({"ppo_epochs": 0}, "ppo_epochs", "Passes over a rollout is 0"),
    ],
)
def test_a_bad_reward_or_setting_is_refused_beside_its_field(
    changes: dict[str, Any], beside: str, said: str, manager: Client, project: Project, model: Artifact
) -> None:
    ours = f"reward_{model.run_id}"
    named = {
        name.replace("reward", ours) if name.startswith("reward") else name: v for name, v in changes.items()
    }
    answer = post(manager, project, "ppo", **named)
    beside = beside.replace("reward", ours)
    assert answer.status_code == 422
    errors = answer.context["form"].errors
    assert list(errors) == [beside] and said in errors[beside][0]
    assert f'href="#id_{beside}"' in answer.content.decode()
    assert Run.objects.count() == 1


def test_a_pair_of_thresholds_that_cross_is_refused_beside_its_field(
    manager: Client, project: Project, judged: PreferenceDataset
) -> None:
    answer = post(manager, project, "kto", bad_to=5)
    assert answer.context["form"].errors == {"bad_to": ["Bad up to is 5.0: below Good from (4.0)"]}


@pytest.mark.parametrize(
    ("method", "changes", "said"),
    [
        ("ppo", {"kind": "prompt"}, "Tuning is “Prompt tuning” with ppo: PPO reads"),
        ("sft", {"kind": "prefix", "gradient_checkpointing": "on"}, "turn gradient checkpointing off"),
        ("dpo", {"kind": "freeze", "frozen_layers": 0}, "Frozen layers is 0: from 1"),
    ],
)
def test_a_kind_of_tuning_that_cannot_work_is_refused_beside_its_field(
    method: str, changes: dict[str, Any], said: str, manager: Client, project: Project, model: Artifact
) -> None:
    answer = post(manager, project, method, **changes)
    errors = answer.context["form"].errors
    assert list(errors) == [next(reversed(changes)) if method == "dpo" else "kind"]
    assert said in next(iter(errors.values()))[0]


def test_every_kind_of_tuning_can_be_chosen(manager: Client, project: Project, model: Artifact) -> None:
    page = manager.get(f"{reverse('run_new', args=[project.slug])}?method=sft")
    offered = [value for value, _ in page.context["form"].fields["kind"].choices]
    assert offered == list(CHOICES["tuning.kind"])
    post(manager, project, "sft", kind="p_tuning", virtual_tokens=12, gradient_checkpointing="")
    tuning = Run.objects.latest("pk").config["tuning"]
    assert (tuning["kind"], tuning["virtual_tokens"]) == ("p_tuning", 12)


def test_the_reward_model_of_another_project_is_not_offered(
    manager: Client, project: Project, model: Artifact, ann: User
) -> None:
    theirs = make_run(factories.make_project("Others"), ann, Run.Method.REWARD_MODEL)
    Run.objects.filter(pk=theirs.pk).update(state=State.COMPLETE)
    foreign = Artifact.objects.create(run=theirs, kind="reward_model", folder="/runs/9/model")
    answer = post(manager, project, "ppo", **{f"reward_{model.run_id}": "", f"reward_{foreign.run_id}": "on"})
    assert "Choose at least one reward" in answer.content.decode()
    assert f"reward_{foreign.run_id}" not in answer.content.decode()


def test_functions_are_offered_only_where_the_server_allows_their_modules(
    manager: Client, project: Project, model: Artifact, settings: Any
) -> None:
    address = reverse("run_new", args=[project.slug])
    assert 'name="python_function"' not in manager.get(address, {"method": "ppo"}).content.decode()
    settings.REWARD_MODULES = ["our.rewards"]
    assert 'name="python_function"' in manager.get(address, {"method": "ppo"}).content.decode()
    answer = post(manager, project, "ppo", python_function="os:system")
    assert answer.status_code == 422
    assert "not in RATCHET_REWARD_MODULES" in answer.context["form"].errors["python_function"][0]


# ---- the run


def test_the_run_names_its_rewards_and_has_a_chart_for_each(
    manager: Client, project: Project, model: Artifact
) -> None:
    post(manager, project, "ppo", **RULE, rule_1_name="sixty", rule_1_weight=0.5)
    run = Run.objects.latest("pk")
    page = manager.get(run.get_absolute_url())
    assert page.context["rewards"] == [
        (f"reward model {model.run_id}", 1.0, "a reward model"),
        ("sixty", 0.5, "length, in tokens: 60"),
    ]
    curves = {curve["title"]: curve["lines"] for curve in curves_of(run)}
    assert curves["Rewards one by one"]["sixty"] == ("rewards/sixty/mean",)
    assert '"rewards/sixty/mean"' in page.content.decode()
    assert "Explained variance" in page.content.decode()


@pytest.mark.parametrize(
    "method", [m for m in TRAINABLE if METHODS[m].makes == "policy" and m != "pretraining"]
)
def test_the_policy_of_any_method_is_a_candidate_with_its_name(
    method: str, project: Project, frozen: PreferenceDataset
) -> None:
    from tests.training.test_results import claim, leave_model
    from training import results, runs

    run = runs.create_run(
        project=project,
        method=method,
        dataset=frozen,
        policy=project.current_policy or pytest.fail(),
        config=recipe_needed(method),
    )
    Run.objects.filter(pk=run.pk).update(state=State.QUEUED)
    lease, folder = claim(run)
    tables = {path.name.partition(".")[0] for path in folder.data.glob("*.train.jsonl")}
    assert tables == set(METHODS[method].tables) & {"pairs", "ratings", "prompts"}
    leave_model(folder)
    results.import_results(lease)
    policy = Policy.objects.get(artifact__run=run)
    assert policy.name == f"policy 2 ({METHODS[method].label}, run {run.pk})"
    assert (policy.state, policy.parent) == ("candidate", run.policy)
    run.refresh_from_db()
    assert run.next_round is not None and run.next_round.new_policy == policy


# ---- a teacher


def test_a_teacher_is_a_policy_of_the_project(manager: Client, project: Project, model: Artifact) -> None:
    larger = factories.make_policy(project, "larger")
    larger.location = "org/larger"
    larger.save()
    page = manager.get(f"{reverse('run_new', args=[project.slug])}?method=distillation").content.decode()
    assert '<option value="org/larger">larger</option>' in page
    post(manager, project, "distillation", teacher="org/larger")
    run = Run.objects.latest("pk")
    assert run.config["distillation"]["teacher"] == "org/larger"
    assert run.config["distillation"]["system_prompt"] == "Be kind."


def test_a_model_from_elsewhere_does_not_teach(manager: Client, project: Project, model: Artifact) -> None:
    before = Run.objects.count()
    answer = post(manager, project, "distillation", teacher="/srv/other/model")
    assert "Select a valid choice" in answer.content.decode()
    with pytest.raises(RunRefused, match="teacher is no policy of this project"):
        create_run(
            project=project,
            method="distillation",
            dataset=project.datasets.get(),
            policy=project.policies.get(name="starter"),
            config={"distillation": {"teacher": "/srv/other/model"}},
        )
    assert Run.objects.count() == before


def test_without_teacher_and_system_prompt_the_form_says_what_is_missing(
    manager: Client, project: Project, model: Artifact
) -> None:
    answer = post(manager, project, "distillation", system_prompt="")
    assert answer.status_code == 422
    assert "at least one of them" in answer.content.decode()


# ---- what is only watched


def test_in_the_starters_world_its_hidden_preference_is_watched(
    manager: Client, project: Project, judged: PreferenceDataset
) -> None:
    starter = project.policies.get(name="starter")
    starter.location = str(starter_folder())
    starter.save()
    rule = {"name": "length", "kind": "length", "weight": 1.0, "options": {"target": 60}}
    run = create_run(
        project=project, method="ppo", dataset=judged, policy=starter, config={"rewards": [rule]}
    )
    seen = [(reward["kind"], reward["weight"]) for reward in run.config["rewards"]]
    assert seen == [("length", 1.0), ("hidden_preference", 0.0)]
    against = next(curve for curve in curves_of(run) if curve["across"] == "root_kl")
    assert list(against["lines"]) == ["reward", "hidden preference"]
    assert "Reward against distance" in manager.get(run.get_absolute_url()).content.decode()
    again = create_run(project=project, method="ppo", dataset=judged, policy=starter, config=run.config)
    assert again.config["rewards"] == run.config["rewards"]
    dpo = create_run(project=project, method="dpo", dataset=judged, policy=starter)
    assert not dpo.config["rewards"]
