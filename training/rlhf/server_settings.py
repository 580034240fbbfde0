"""Servers that write or draw for a run, as a recipe names them. Standard library only."""

from dataclasses import dataclass
from typing import Literal
from urllib.parse import urlsplit

from training.rlhf.method_settings import check, check_choice, check_range


def is_address(location: str) -> bool:
    return location.startswith(("http://", "https://"))


def address_problem(address: str) -> str:
    """Why this is no address of a server; empty when it is one.

    >>> address_problem("https://models.example/v1"), address_problem("http://me:secret@host/v1")
    ('', 'a key does not belong into an address')
    """
    try:
        parts = urlsplit(address)
        named = bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        return "it is no address"
    if not is_address(address) or not named:
        return "expected http:// or https:// and a host"
    if "@" in parts.netloc:
        return "a key does not belong into an address"
    return "it ends at its path: leave out ? and #" if parts.query or parts.fragment else ""


@dataclass(frozen=True, kw_only=True)
class ServedPolicy:
    """How a policy whose location is an address is asked: POST {address}/chat/completions."""

    model: str = ""  # as the server names it; empty: the server has one
    at_once: int = 8  # questions under way
    retries: int = 6  # with 0.5, 1, 2 ... seconds between them
    timeout: float = 120.0  # seconds for one answer

    def __post_init__(self) -> None:
        check(isinstance(self.model, str) and len(self.model) <= 200, "servers: a model's name is a text")
        check_range("servers.at_once", self.at_once, 1, 256)
        check_range("servers.retries", self.retries, 0, 20)
        check_range("servers.timeout", self.timeout, 1, 3600)


VLLM_MODES = ("colocate", "server")


@dataclass(frozen=True, kw_only=True)
class Vllm:
    """TRL's settings of vLLM for RLOO and GRPO, under TRL's names without their `vllm_`."""

    use_vllm: bool = False
    mode: Literal["colocate", "server"] = "colocate"  # in the process that trains, or beside it
    server_base_url: str = ""  # server: such as http://127.0.0.1:8000; else host and port
    server_host: str = "127.0.0.1"
    server_port: int = 8000
    server_timeout: float = 240.0  # seconds until it has to answer
    group_port: int = 51216  # of the group over which weights are sent
    gpu_memory_utilization: float = 0.3  # colocate: share of the GPU's memory
    max_model_length: int = 0  # colocate: tokens; 0: as the model says
    tensor_parallel_size: int = 1  # colocate
    enable_sleep_mode: bool = False  # colocate: its weights leave the GPU while the policy learns
    model_impl: Literal["vllm", "transformers"] = "vllm"

    def __post_init__(self) -> None:
        check_choice("vllm.mode", self.mode, VLLM_MODES)
        check_choice("vllm.model_impl", self.model_impl, ("vllm", "transformers"))
        if self.server_base_url:
            problem = address_problem(self.server_base_url)
            check(not problem, f"vllm.server_base_url is {self.server_base_url!r}: {problem}")
        check_range("vllm.server_port", self.server_port, 1, 65_535)
        check_range("vllm.group_port", self.group_port, 1, 65_535)
        check_range("vllm.server_timeout", self.server_timeout, 0, 86_400)
        check(
            0 < self.gpu_memory_utilization < 1,
            f"vllm.gpu_memory_utilization is {self.gpu_memory_utilization}: above 0, below 1",
        )
        check_range("vllm.max_model_length", self.max_model_length, 0, 10_000_000)
        check_range("vllm.tensor_parallel_size", self.tensor_parallel_size, 1, 64)

    @property
    def server(self) -> str:
        """The address of vLLM's server."""
        return self.server_base_url.rstrip("/") or f"http://{self.server_host}:{self.server_port}"
