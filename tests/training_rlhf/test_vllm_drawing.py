"""vLLM's settings: TRL's own config classes take them, and what is missing is said before the start."""

import dataclasses
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest

pytest.importorskip("torch")

import torch
from trl.trainer.grpo_config import GRPOConfig
from trl.trainer.rloo_config import RLOOConfig

from tests.loopback import serving
from tests.training_rlhf.conftest import MakeRun, write_rows
from training.rlhf import learners, preflight, vllm_drawing
from training.rlhf.config import RunConfig
from training.rlhf.method_settings import ConfigError
from training.rlhf.run_dir import RunDir
from training.rlhf.server_settings import Vllm

REWARD = {"name": "length", "kind": "length", "options": {"target": 4}}


def recipe(method: str, **vllm: Any) -> dict[str, Any]:
    return {"method": method, "model": "x/y", "rewards": [REWARD], "vllm": {"use_vllm": True, **vllm}}


@pytest.mark.parametrize("kind", [RLOOConfig, GRPOConfig])
def test_every_setting_is_one_of_trls(kind: Any) -> None:
    settings = Vllm(
        use_vllm=True,
        mode="server",
        server_base_url="http://127.0.0.1:9000",
        server_host="gpu",
        server_port=9000,
        server_timeout=10.0,
        group_port=1234,
        gpu_memory_utilization=0.5,
        max_model_length=512,
        tensor_parallel_size=2,
        enable_sleep_mode=True,
        model_impl="transformers",
    )
    passed = vllm_drawing.arguments(settings)
    known = {item.name for item in dataclasses.fields(kind)}
    assert set(passed) <= known and len(passed) == len(dataclasses.fields(Vllm))
    made = kind(output_dir="x", use_cpu=True, bf16=False, **passed)
    assert {name: getattr(made, name) for name in passed} == passed


def test_what_is_left_open_stays_trls_default_and_off_passes_nothing() -> None:
    assert vllm_drawing.arguments(Vllm()) == {}
    made = RLOOConfig(output_dir="x", use_cpu=True, bf16=False, **vllm_drawing.arguments(Vllm(use_vllm=True)))
    assert made.vllm_server_base_url is None and made.vllm_max_model_length is None
    assert (made.use_vllm, made.vllm_mode, made.vllm_gpu_memory_utilization) == (True, "colocate", 0.3)


class Health(BaseHTTPRequestHandler):
    status = 200

    def do_GET(self) -> None:
        self.send_response(self.status if self.path == "/health" else 404)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def server() -> Iterator[HTTPServer]:
    with serving(HTTPServer(("127.0.0.1", 0), type("Own", (Health,), {}))) as running:
        yield running


def found(method: str, **vllm: Any) -> list[str]:
    return [error["what"] for error in vllm_drawing.problems(RunConfig.from_json(recipe(method, **vllm)))]


@pytest.mark.parametrize("method", ["rloo", "grpo"])
def test_a_machine_without_vllm_or_cuda_is_refused_with_the_reason(method: str) -> None:
    said = " ".join(found(method))
    assert ("vLLM is not installed" in said) == (not vllm_drawing.is_installed())
    assert ("no CUDA device" in said) == (not torch.cuda.is_available())


def test_a_server_that_is_silent_or_unwell_is_refused_and_a_healthy_one_is_not(server: HTTPServer) -> None:
    port = server.server_address[1]
    silent = [what for what in found("rloo", mode="server", server_port=9) if "does not answer" in what]
    assert silent and "Connect" in silent[0]
    assert not [w for w in found("rloo", mode="server", server_port=port) if "does not answer" in w]
    server.RequestHandlerClass.status = 503  # type: ignore[attr-defined]
    address = f"http://127.0.0.1:{port}/"
    assert "HTTP 503" in " ".join(found("grpo", mode="server", server_base_url=address))


def test_preflight_says_it_before_the_run_starts(make_run: MakeRun) -> None:
    run_dir: RunDir = make_run("rloo", rewards=[REWARD], vllm={"use_vllm": True, "mode": "server"})
    write_rows(run_dir.data / "prompts.train.jsonl", [{"prompt": [{"role": "user", "content": "Hi."}]}] * 4)
    report = preflight.check(run_dir, RunConfig.load(run_dir.config))
    assert not report["ok"]
    assert "http://127.0.0.1:8000/health" in {error["where"] for error in report["errors"]}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"mode": "beside"}, "vllm.mode"),
        ({"gpu_memory_utilization": 1.5}, "gpu_memory_utilization"),
        ({"server_base_url": "gpu:8000"}, "server_base_url"),
    ],
)
def test_a_wrong_setting_is_refused_by_the_recipe(change: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        RunConfig.from_json(recipe("grpo", **change))


def test_adapters_that_do_not_merge_cannot_be_sent() -> None:
    with pytest.raises(ConfigError, match="vLLM is sent whole weights"):
        RunConfig.from_json(recipe("rloo") | {"tuning": {"kind": "prompt"}})
    assert "vllm" not in RunConfig.from_json({"method": "dpo", "model": "x/y"}).to_json()


@pytest.mark.parametrize("method", ["rloo", "grpo"])
def test_what_vllm_draws_is_what_is_rewarded(method: str, make_run: MakeRun) -> None:
    """TRL's call of vLLM with an answer in its place, since there is none here."""
    from training.rlhf import loading

    run_dir = make_run(method, rewards=[REWARD], training={"batch_size": 8, "max_steps": 1, "bf16": False})
    write_rows(run_dir.data / "prompts.train.jsonl", [{"prompt": [{"role": "user", "content": "Hi."}]}] * 4)
    config = RunConfig.load(run_dir.config)
    tokenizer = loading.load_tokenizer(config.model)
    model = loading.load_policy(config.model)
    loading.fit(model, tokenizer, where=config.model)
    trainer = learners.learner(method).make_trainer(
        model=model,
        tokenizer=tokenizer,
        train=learners.tables(run_dir, config, "train")["prompts"],
        test=[],
        config=config,
        run_dir=run_dir,
    )
    trainer.use_vllm, trainer._last_loaded_step = True, -1  # as TRL does where vLLM is there
    trainer.vllm_generation = Drawing([*tokenizer("no")["input_ids"], tokenizer.eos_token_id])
    ids = [[1, 3, 8], [1, 3, 9]]
    extra: Any = (None, {}) if method == "rloo" else (None, {}, 2)
    drawn = trainer._generate_single_turn(ids, *extra)
    assert [(one.text, one.finish, list(one.prompt_ids)) for one in trainer.drawn] == [
        ("no", "eos", ids[0]),
        ("no", "eos", ids[1]),
    ]
    if method == "grpo":
        assert drawn[1] == [[-0.5, -0.5, -0.5]] * 2  # vLLM's log-probabilities go on to TRL


class Drawing:
    """What TRL's VLLMGeneration answers."""

    def __init__(self, ids: list[int]) -> None:
        self.ids = ids

    def sync_weights(self) -> None:
        pass

    def generate(self, prompts: list[list[int]], **options: Any) -> Any:
        return prompts, [self.ids] * len(prompts), [[[-0.5]] * len(self.ids)] * len(prompts), None
