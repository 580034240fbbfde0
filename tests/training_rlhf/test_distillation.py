"""Distillation: a policy that comes to write as its teacher, or as itself under a system prompt."""

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("trl")
pytestmark = pytest.mark.training

import torch  # noqa: E402

from tests.training_rlhf.conftest import save_tiny_policy, write_rows, write_run  # noqa: E402
from training.rlhf import distillation, fitting, loading, preflight, recipe, scoring  # noqa: E402
from training.rlhf import progress as progress_module  # noqa: E402
from training.rlhf.config import ConfigError, RunConfig  # noqa: E402
from training.rlhf.progress import Cancelled  # noqa: E402
from training.rlhf.run_dir import ProgressWriter, RunDir, read_jsonl  # noqa: E402

LORA = {"kind": "lora", "lora_rank": 8, "lora_alpha": 32}


def save_decided_policy(folder: Path, *, seed: int) -> Path:
    """A random policy is nearly uniform and has nothing to teach; this one has opinions."""
    save_tiny_policy(folder, seed=seed)
    model: Any = loading.load_policy(str(folder))
    with torch.no_grad():
        model.model.norm.weight *= 20
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight *= 20  # and it minds what it read
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_decided_policy(tmp_path_factory.mktemp("teacher"), seed=9)


@pytest.fixture(scope="module")
def decided(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_decided_policy(tmp_path_factory.mktemp("decided"), seed=0)


def make_run(folder: Path, model: Path, *, prompts: int = 24, **config: Any) -> RunDir:
    training = {"batch_size": 8, "learning_rate": 5e-3, "max_steps": 12, "save_every": 4, "log_every": 1}
    run_dir = write_run(
        folder,
        model=model,
        method="distillation",
        **(
            {"sampling": {"max_new_tokens": 8}} | config | {"training": training | config.get("training", {})}
        ),
    )
    for split, start, count in (("train", 0, prompts), ("test", 500, 4)):
        rows = [{"prompt": [{"role": "user", "content": f"Say {n}."}]} for n in range(start, start + count)]
        write_rows(run_dir.data / f"prompts.{split}.jsonl", rows)
    return run_dir


def train(run_dir: RunDir) -> dict[str, Any]:
    return recipe.train(run_dir, RunConfig.load(run_dir.config), ProgressWriter(run_dir))


def losses(run_dir: RunDir) -> list[float]:
    return [line["values"]["loss"] for line in run_dir.progress_after(0) if "loss" in line["values"]]


def likelihood(run_dir: RunDir, model: str, prompts: list[list[dict[str, str]]]) -> float:
    """Of what the teacher wrote to the held-out prompts, after these prompts: nats a token."""
    tokenizer, policy = loading.load_tokenizer(model), loading.load_policy(model)
    from training.rlhf import rendering

    taught = [line["ids"] for line in read_jsonl(run_dir.path / "taught.jsonl")][-len(prompts) :]
    asked = [rendering.prompt_ids(tokenizer, prompt) for prompt in prompts]
    found = scoring.completion_logprobs(policy, asked, taught, pad_id=0)
    return float(torch.cat(found).mean())


def held_out(run_dir: RunDir) -> list[list[dict[str, str]]]:
    return [row["prompt"] for row in read_jsonl(run_dir.data / "prompts.test.jsonl")]


@pytest.mark.parametrize("on_policy", [0.0, 1.0], ids=["off-policy", "on-policy"])
def test_a_student_comes_to_write_as_its_teacher(
    on_policy: float, tiny_policy: Path, teacher: Path, tmp_path: Path
) -> None:
    said = {"teacher": str(teacher), "on_policy": on_policy}
    run_dir = make_run(tmp_path, tiny_policy, distillation=said, training={"max_steps": 30})
    result = train(run_dir)
    found = losses(run_dir)
    assert sum(found[-5:]) < 0.6 * sum(found[:5])
    assert result["held_out"]["eval_loss"] < 0.75 * found[0]
    before = likelihood(run_dir, str(tiny_policy), held_out(run_dir))
    assert likelihood(run_dir, str(run_dir.model), held_out(run_dir)) > before + 0.3
    shares = {line["values"].get("on_policy") for line in run_dir.progress_after(0)} - {None}
    assert shares == {on_policy}


def test_a_policy_learns_to_do_without_the_system_prompt_that_made_its_behaviour(
    decided: Path, tmp_path: Path
) -> None:
    said = {"system_prompt": "!" * 20, "on_policy": 0.0}
    run_dir = make_run(tmp_path, decided, distillation=said, training={"max_steps": 30})
    train(run_dir)
    without = held_out(run_dir)
    under = [[{"role": "system", "content": "!" * 20}, *prompt] for prompt in without]
    meant = likelihood(run_dir, str(decided), under)
    before = likelihood(run_dir, str(decided), without)
    after = likelihood(run_dir, str(run_dir.model), without)
    assert before < meant
    assert abs(meant - after) < 0.5 * (meant - before)


def test_the_teacher_is_the_reference_of_itself(tiny_policy: Path, tmp_path: Path) -> None:
    same = {"teacher": str(tiny_policy), "on_policy": 0.5}
    run_dir = make_run(tmp_path, tiny_policy, distillation=same, training={"max_steps": 2})
    train(run_dir)
    assert losses(run_dir)[0] == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("tuning", [{}, LORA], ids=["full", "lora"])
def test_an_interrupted_run_goes_on_bit_exactly(
    tuning: dict[str, Any],
    tiny_policy: Path,
    teacher: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    said: dict[str, Any] = {"distillation": {"teacher": str(teacher)}, "tuning": tuning}
    whole, broken = (make_run(tmp_path / name, tiny_policy, **said) for name in ("whole", "broken"))
    train(whole)

    step_end = fitting.Reporter.on_step_end

    def stop_at_six(self: Any, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        monkeypatch.setattr(progress_module._Stop, "requested", state.global_step == 6)
        step_end(self, args, state, control, **kwargs)

    monkeypatch.setattr(fitting.Reporter, "on_step_end", stop_at_six)
    with pytest.raises(Cancelled):
        train(broken)
    monkeypatch.setattr(progress_module._Stop, "requested", False)
    monkeypatch.setattr(fitting.Reporter, "on_step_end", step_end)
    saved = broken.last_checkpoint()
    assert saved is not None
    assert saved.name == "checkpoint-6"
    train(broken)
    assert losses(broken) == losses(whole)
    one, other = ((run.model / "model.safetensors").read_bytes() for run in (whole, broken))
    assert one == other


def test_a_teacher_of_another_vocabulary_is_refused_before_the_start(
    tiny_policy: Path, teacher: Path, tmp_path: Path
) -> None:
    stranger = tmp_path / "stranger"
    save_tiny_policy(stranger)
    tokenizer = json.loads((stranger / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    (stranger / "tokenizer.json").write_text(json.dumps(tokenizer))
    run_dir = make_run(tmp_path / "run", tiny_policy, distillation={"teacher": str(stranger)})
    report = preflight.check(run_dir, RunConfig.load(run_dir.config))
    assert "another vocabulary" in report["errors"][0]["what"]
    good = make_run(tmp_path / "good", tiny_policy, distillation={"teacher": str(teacher)})
    report = preflight.check(good, RunConfig.load(good.config))
    assert report["ok"], report["errors"]
    assert report["rows"]["prompts"]["train"]["kept"] == 24


def test_without_a_teacher_and_a_system_prompt_there_is_nothing_to_learn() -> None:
    with pytest.raises(ConfigError, match="at least one of them"):
        RunConfig(method="distillation", model="here")


def test_a_system_prompt_joins_the_one_that_is_there() -> None:
    config = RunConfig.from_json(
        {"method": "distillation", "model": "here", "distillation": {"system_prompt": "Be kind."}}
    )
    asked = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}]
    assert distillation.prefixed(config, asked)[0]["content"] == "Be kind.\n\nBe brief."
    assert distillation.prefixed(config, asked[1:])[0] == {"role": "system", "content": "Be kind."}
