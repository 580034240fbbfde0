"""Where a PPO run stands, and its checkpoints: with them a run goes on bit for bit where it stopped.

A checkpoint holds what moves (weights, optimiser, KL coefficient, scale of rewards) after a number of steps.
One that was written in the middle of a step holds the rollout in hand too, and how many updates it has seen.
Every draw follows from seed and step, so no random state is kept. Safetensors and JSON: nothing that can run.
"""

import dataclasses
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from training.rlhf import checkpoints, scoring
from training.rlhf.checks import finite
from training.rlhf.losses.policy_gradient import RunningScale
from training.rlhf.ppo_parts.rollout import Rollout
from training.rlhf.run_dir import RunDir, write_json

_TENSORS = ("mask", "logps", "values", "advantages", "returns")
_DRAFT, _REPLACED = "draft", "replaced"  # names that nobody takes for a checkpoint's


@dataclass
class State:
    kl_coefficient: float
    step: int = 0  # rollouts whose updates are all done
    scale: RunningScale = field(default_factory=RunningScale)
    rollout: Rollout | None = None  # in hand: drawn, and not all of its updates done
    notes: list[list[float]] = field(default_factory=list)  # figures of each update that it has seen


def save(
    run_dir: RunDir,
    state: State,
    *,
    trained: dict[str, nn.Parameter],
    optimizer: torch.optim.Optimizer,
    beside: Callable[[Path], None] | None = None,
) -> Path:
    """Write checkpoint-STEP whole or not at all, and keep the last two. Raises CheckpointNotSaved.

    `beside` puts more into its folder. One of the same step, from before its updates began, is replaced.
    """
    folder = run_dir.checkpoints / f"checkpoint-{state.step}"
    draft, replaced = run_dir.checkpoints / _DRAFT, run_dir.checkpoints / _REPLACED
    try:
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(parents=True)
        _write(draft, state, trained, optimizer)
        if beside is not None:
            beside(draft)
        checkpoints.mark_complete(draft, step=state.step)
        if folder.exists():
            folder.rename(replaced)
        draft.rename(folder)
        checkpoints.sync(run_dir.checkpoints)
    except Exception as error:
        shutil.rmtree(draft, ignore_errors=True)
        put_back(run_dir)
        raise checkpoints.CheckpointNotSaved(
            step=state.step,
            kept=run_dir.last_checkpoint(),
            disk_full=checkpoints.is_disk_full(error),
            folder=folder,
        ) from error
    shutil.rmtree(replaced, ignore_errors=True)
    whole = sorted(run_dir.checkpoints.glob("checkpoint-*/complete.json"), key=_step)
    for old in whole[: -checkpoints.KEPT]:
        shutil.rmtree(old.parent)
    return folder


def _step(marker: Path) -> int:
    return int(marker.parent.name.rpartition("-")[2])


def put_back(run_dir: RunDir) -> None:
    """Undo a replacement that a crash cut in two. Call before a run looks for its last checkpoint."""
    replaced = run_dir.checkpoints / _REPLACED
    if replaced.exists():
        folder = run_dir.checkpoints / f"checkpoint-{checkpoints.step_of(replaced)}"
        if folder.exists():
            shutil.rmtree(replaced)
        else:
            replaced.rename(folder)


def forget(run_dir: RunDir, step: int) -> None:
    """Remove the checkpoint of a step whose policy turned out to be of no use."""
    shutil.rmtree(run_dir.checkpoints / f"checkpoint-{step}", ignore_errors=True)


def load(folder: Path, *, trained: dict[str, nn.Parameter], optimizer: torch.optim.Optimizer) -> State:
    """Put a checkpoint's weights and optimiser in place, and return the rest of it."""
    load_weights(folder, trained)
    moments = load_file(folder / "optimizer.safetensors")
    for name, weight in trained.items():
        found = {
            key.rpartition("/")[2]: tensor for key, tensor in moments.items() if key.startswith(f"{name}/")
        }
        if found:
            # The count stays where the optimiser keeps it; the moments lie beside their weight.
            optimizer.state[weight] = {key: tensor.to(weight.device) for key, tensor in found.items()}
    known: dict[str, Any] = json.loads((folder / "state.json").read_text(encoding="utf-8"))
    figures = known.pop("figures")
    state = State(**known | {"scale": RunningScale(**known["scale"])})
    if figures is not None:
        state.rollout = _read_rollout(folder, figures)
    return state


def save_weights(folder: Path, trained: dict[str, nn.Parameter]) -> None:
    weights = {name: weight.detach().contiguous() for name, weight in trained.items()}
    save_file(weights, folder / "weights.safetensors")


def load_weights(folder: Path, trained: dict[str, nn.Parameter]) -> None:
    weights = load_file(folder / "weights.safetensors")
    finite.refuse_checkpoint(weights.items(), folder)
    with torch.no_grad():
        for name, weight in trained.items():
            weight.copy_(weights[name])


def _write(
    folder: Path, state: State, trained: dict[str, nn.Parameter], optimizer: torch.optim.Optimizer
) -> None:
    save_weights(folder, trained)
    moments = {
        f"{name}/{key}": tensor.contiguous()
        for name, weight in trained.items()
        for key, tensor in optimizer.state.get(weight, {}).items()
    }
    save_file(moments, folder / "optimizer.safetensors")
    rollout = state.rollout
    if rollout is not None:
        tensors = {name: getattr(rollout, name).contiguous() for name in _TENSORS}
        for name in ("prompts", "completions"):
            tensors |= _packed(name, getattr(rollout, name))
        save_file(tensors, folder / "rollout.safetensors")
    write_json(
        folder / "state.json",
        {
            "step": state.step,
            "kl_coefficient": state.kl_coefficient,
            "scale": dataclasses.asdict(state.scale),
            "notes": state.notes,
            "figures": rollout.figures if rollout is not None else None,
        },
    )


def _read_rollout(folder: Path, figures: dict[str, float]) -> Rollout:
    tensors = load_file(folder / "rollout.safetensors")
    return Rollout(
        prompts=_unpacked("prompts", tensors),
        completions=_unpacked("completions", tensors),
        figures=figures,
        **{name: tensors[name] for name in _TENSORS},
    )


def _packed(name: str, rows: Sequence[Sequence[int]]) -> dict[str, Tensor]:
    ids, mask = scoring.padded(rows, pad_id=0)
    return {f"{name}.ids": ids, f"{name}.lengths": mask.sum(dim=1)}


def _unpacked(name: str, tensors: dict[str, Tensor]) -> list[list[int]]:
    rows, lengths = tensors[f"{name}.ids"].tolist(), tensors[f"{name}.lengths"].tolist()
    return [row[:length] for row, length in zip(rows, lengths, strict=True)]
