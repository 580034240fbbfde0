"""RLOO and GRPO draw by vLLM: the recipe's section `vllm` as TRL's arguments, and what it needs to start.

TRL sends the weights to vLLM after each step, in the process that trains (colocate) or to a server beside it.
A run that draws by vLLM resumes where it stood, but not bit for bit: vLLM's draws are its own.
"""

import dataclasses
import importlib.util
from typing import Any

import httpx2
import torch

from training.rlhf.config import DRAWS_BY_VLLM, RunConfig
from training.rlhf.run_dir import RunError
from training.rlhf.server_settings import Vllm

_OPEN = {"server_base_url": "", "max_model_length": 0}  # values at which TRL's argument stays None
_HEALTH_SECONDS = 5.0


def arguments(settings: Vllm) -> dict[str, Any]:
    """Arguments of RLOOConfig and GRPOConfig; none where vLLM does not draw."""
    if not settings.use_vllm:
        return {}
    values = {item.name: getattr(settings, item.name) for item in dataclasses.fields(settings)}
    named = {name if name == "use_vllm" else f"vllm_{name}": value for name, value in values.items()}
    return {
        name: value for name, value in named.items() if _OPEN.get(name.removeprefix("vllm_"), ...) != value
    }


def is_installed() -> bool:
    return importlib.util.find_spec("vllm") is not None


def problems(config: RunConfig) -> list[RunError]:
    """What keeps this machine from drawing by vLLM, one error each; none where the run does not."""
    settings = config.vllm
    if config.method not in DRAWS_BY_VLLM or not settings.use_vllm:
        return []
    found = []
    if not is_installed():
        found.append(
            RunError(
                what="vLLM is not installed where the worker runs; TRL needs it for both modes.",
                where="vllm.use_vllm",
                do="Install vllm beside the training extra, or turn vLLM off: the built-in sampler draws.",
            )
        )
    if not torch.cuda.is_available():
        found.append(
            RunError(
                what="There is no CUDA device here: weights go to vLLM from GPU to GPU.",
                where="vllm.use_vllm",
                do="Run the worker on a machine with a GPU, or turn vLLM off.",
            )
        )
    if settings.mode == "server" and (said := _why_silent(settings.server)):
        found.append(
            RunError(
                what=f"vLLM's server does not answer: {said}.",
                where=f"{settings.server}/health",
                do=f"Start it with `vllm serve {config.model}`, or correct its address in the recipe.",
            )
        )
    return found


def _why_silent(server: str) -> str:
    """Why the server's health endpoint gives no 200; empty when it does."""
    try:
        answer = httpx2.get(f"{server}/health", timeout=_HEALTH_SECONDS, follow_redirects=False)
    except (httpx2.HTTPError, httpx2.InvalidURL) as error:
        return f"{type(error).__name__}: {error}"[:200]
    return (
        "" if answer.status_code == 200 else f"HTTP {answer.status_code} {answer.text[:100].strip()}".strip()
    )
