"""Children on this machine: the one place of the Django side that starts processes.

The child leads a session of its own, so Ctrl-C in the worker's terminal reaches the worker alone, and one
signal ends it with all it started. It finds RATCHET_PARENT_PID in its environment, asks the kernel to be
killed when that process dies (PDEATHSIG), and leaves at once when it is dead already. PDEATHSIG follows the
*thread* that started the child: `start` belongs to the main thread.
"""

import contextlib
import logging
import os
import shutil
import signal
import subprocess
import threading
import time
from pathlib import Path

from django.conf import settings

from training.launchers.local_child import LocalChild
from training.launchers.local_server import LocalServer
from training.launchers.standby import Standby, StandbyCheck
from training.rlhf.prompt_parts import FILE, NONE, PromptParts
from training.rlhf.run_dir import RunDir, RunLocked, write_json

log = logging.getLogger(__name__)

# What a child is given of our environment. The database's address and the secret key are not in it.
PASSED_ON = {
    "PATH", "HOME", "USER", "LOGNAME", "LANG", "LANGUAGE", "TZ", "TMPDIR", "VIRTUAL_ENV", "LD_LIBRARY_PATH",
    "SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE",
    "http_proxy", "https_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY",
    "RATCHET_REWARD_MODULES", "RATCHET_JUDGE_API_KEY",
    "RATCHET_MODEL_SERVER_KEY", "RATCHET_MODEL_SERVER_KEYS",
}  # fmt: skip
PASSED_ON_PREFIXES = (
    "LC_", "PYTHON", "CUDA_", "NVIDIA_", "ROCR_", "HIP_", "NCCL_", "TORCH", "PYTORCH_", "TRITON_",
    "OMP_", "MKL_", "KMP_", "OPENBLAS_", "HF_", "TRANSFORMERS_", "TOKENIZERS_", "XDG_",
    "WANDB_", "MLFLOW_", "TRACKIO_",
)  # fmt: skip


def default_device() -> str:
    """The first GPU where the driver shows one, else the CPU. The worker itself never asks torch."""
    return "cuda:0" if Path("/dev/nvidia0").exists() else "cpu:0"


def child_environment(device: str) -> dict[str, str]:
    env = {
        name: value
        for name, value in os.environ.items()
        if name in PASSED_ON or name.startswith(PASSED_ON_PREFIXES)
    }
    kind, _, number = device.partition(":")
    if kind == "cpu":
        env["CUDA_VISIBLE_DEVICES"] = ""
    elif kind == "cuda":
        visible = [name for name in env.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
        index = int(number or 0)
        env["CUDA_VISIBLE_DEVICES"] = visible[index] if index < len(visible) else str(index)
    env["RATCHET_PARENT_PID"] = str(os.getpid())
    env["PYTHONUNBUFFERED"] = "1"
    return env


class LocalLauncher:
    """Starts children on one device. With `standby`, one waits ready-imported for the next run."""

    def __init__(self, device: str, *, standby: bool = False) -> None:
        self.device = device
        self._keeps_standby = standby
        self._standby: Standby | None = None

    def prepare(self) -> None:
        if self._keeps_standby and (self._standby is None or self._standby.process.poll() is not None):
            self._standby = Standby(child_environment(self.device))

    def close(self) -> None:
        if self._standby is not None and self._standby.process.poll() is None:
            end_process(self._standby.process.pid)
            self._standby.process.wait()

    def start(self, folder: Path, *, preflight: bool) -> LocalChild:
        if threading.current_thread() is not threading.main_thread():
            raise RuntimeError("a child is started from the main thread: see the module's first lines")
        name = "preflight" if preflight else "trainer"
        stdout, stderr = folder / f"{name}.stdout.log", folder / f"{name}.stderr.log"
        command = [*settings.TRAINER_COMMAND, str(folder), *(["--preflight"] if preflight else [])]
        stdout.unlink(missing_ok=True)
        stderr.unlink(missing_ok=True)
        standby = self._standby
        if (
            standby is not None
            and standby.is_free
            and standby.send(folder, preflight=preflight, stdout=stdout, stderr=stderr)
        ):
            if preflight:
                return StandbyCheck(standby, stderr, stdout)
            self._standby = None
            self._prepare_next()
            return LocalChild(standby.process, stderr, stdout)
        self._prepare_next()
        return LocalChild(_started(command, child_environment(self.device), stdout, stderr), stderr, stdout)

    def serve(
        self, location: str, *, name: str, folder: Path, host: str, token: str, parts: PromptParts = NONE
    ) -> LocalServer:
        """A child that answers for a policy. What it prints, and where it listens, is written to `folder`."""
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        stdout, stderr, announced = folder / "stdout.log", folder / "stderr.log", folder / "address.json"
        prompt = folder / FILE
        write_json(prompt, parts.to_json())  # also without any: what lies beside the weights is another's
        command = [*settings.SERVE_COMMAND, "--engine", "embedded", "--host", host, "--port", "0",
                   "--name", name, "--announce", str(announced), "--prompt-parts", str(prompt),
                   "--", location]  # fmt: skip
        # Not on a command line, which everybody on this machine can read.
        env = child_environment(self.device) | {"RATCHET_SERVE_KEY": token}
        return LocalServer(_started(command, env, stdout, stderr), stderr, stdout, announced)

    def leave(self, folder: Path, *, token: str) -> LocalChild:
        """A child that writes a model in another form and sends it where its job says. It needs no GPU."""
        stdout, stderr = folder / "stdout.log", folder / "stderr.log"
        env = child_environment("cpu:0") | ({"HF_TOKEN": token} if token else {})
        command = [*settings.LEAVE_COMMAND, str(folder)]
        return LocalChild(_started(command, env, stdout, stderr), stderr, stdout)

    def _prepare_next(self) -> None:
        # A child that was just given its run must not be lost because the next one cannot stand by.
        try:
            self.prepare()
        except OSError:
            log.warning("no child can stand by for the next run", exc_info=True)

    def evict(self, folder: Path) -> int | None:
        holder, ended = 0, 0
        for _ in range(200):  # a killed process lets go of its lock last, after its memory
            try:
                with RunDir(folder).locked():
                    return None
            except RunLocked as locked:
                holder = locked.pid
            if holder != ended:
                if not works_in(holder, folder):
                    return holder
                end_process(holder)
                ended = holder
            time.sleep(0.05)
        return holder


def _started(
    command: list[str], env: dict[str, str], stdout: Path, stderr: Path
) -> "subprocess.Popen[bytes]":
    if threading.current_thread() is not threading.main_thread():
        raise RuntimeError("a child is started from the main thread: see the module's first lines")
    with open(stdout, "ab") as out, open(stderr, "ab") as err:
        return subprocess.Popen(
            command,
            cwd=settings.BASE_DIR,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=err,
            start_new_session=True,
        )


def works_in(pid: int, folder: Path) -> bool:
    """Whether the process is a trainer of this run folder: only such a one may be ended."""
    try:
        arguments = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return False
    of_ours = all(part in arguments for part in settings.TRAINER_COMMAND[1:])
    # A standby was given its folder later; that it holds the folder's lock is how it was found.
    return of_ours and (str(folder) in arguments or "--standby" in arguments)


def end_process(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        if os.getpgid(pid) == pid:
            os.killpg(pid, signal.SIGKILL)
        else:
            os.kill(pid, signal.SIGKILL)
