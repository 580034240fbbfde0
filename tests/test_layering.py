"""The arrows of docs/architecture.md: rlhf_site → training → labeling, and the GPU side apart."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
GPU_STACK = {"torch", "transformers", "trl", "peft", "bitsandbytes", "datasets", "tokenizers", "accelerate"}
FROM_THE_GPU_SIDE = {
    "training.rlhf",
    "training.rlhf.compatibility",
    "training.rlhf.config",
    "training.rlhf.leftovers",
    "training.rlhf.held_out_figures",
    "training.rlhf.methods",
    "training.rlhf.mixture_settings",
    "training.rlhf.method_settings",
    "training.rlhf.prompt_parts",
    "training.rlhf.reward_options",
    "training.rlhf.run_dir",
    "training.rlhf.server_settings",
    "training.rlhf.tuning_settings",
    "training.rlhf.starter",
    "training.rlhf.starter.world",
    "training.rlhf.starter.hidden_preference",
}
STANDARD_LIBRARY_ONLY = [
    "leftovers",
    "compatibility",
    "config",
    "constitution_settings",
    "held_out_figures",
    "methods",
    "mixture_settings",
    "method_settings",
    "prompt_parts",
    "reward_options",
    "run_dir",
    "server_settings",
    "tuning_settings",
    "starter/world",
    "starter/hidden_preference",
]
INTERFACES = {
    "views",
    "forms",
    "consumers",
    "admin",
    "management",
    "api",
    "api_policies",
    "sweep_api",
    "api_urls",
    "urls",
    "routing",
}


def imported_by(path: Path) -> Iterator[str]:
    """Names of the modules that a file imports, at any depth; `from a import b` gives a and a.b."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute here"
            module = node.module or ""
            yield module
            yield from (f"{module}.{alias.name}" for alias in node.names)


def modules_of(*rooms: str) -> list[Path]:
    return sorted(p for room in rooms for p in (ROOT / room).rglob("*.py") if "migrations" not in p.parts)


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def is_below(module: str, *rooms: str) -> bool:
    return any(module == room or module.startswith(room + ".") for room in rooms)


@pytest.mark.parametrize("path", modules_of("labeling"), ids=name_of)
def test_judging_knows_nothing_of_training(path: Path) -> None:
    assert not [m for m in imported_by(path) if is_below(m, "training", "rlhf_site")]


@pytest.mark.parametrize("path", [p for p in modules_of("training") if "rlhf" not in p.parts], ids=name_of)
def test_training_knows_nothing_of_the_site_and_little_of_the_gpu_side(path: Path) -> None:
    modules = set(imported_by(path))
    assert not [m for m in modules if is_below(m, "rlhf_site")]
    from_gpu_side = {m for m in modules if is_below(m, "training.rlhf")}
    allowed = {m for m in from_gpu_side if any(is_below(m, a) for a in FROM_THE_GPU_SIDE - {"training.rlhf"})}
    assert from_gpu_side - allowed <= {"training.rlhf", "training.rlhf.starter"}


@pytest.mark.parametrize("path", modules_of("rlhf_site", "labeling", "training"), ids=name_of)
def test_only_the_gpu_side_names_the_gpu_stack(path: Path) -> None:
    if "rlhf" not in path.relative_to(ROOT).parts:
        assert not [m for m in imported_by(path) if m.partition(".")[0] in GPU_STACK]


@pytest.mark.parametrize("path", modules_of("training/rlhf"), ids=name_of)
def test_the_gpu_side_imports_nothing_of_ours_but_itself(path: Path) -> None:
    ours = {"rlhf_site", "labeling", "training", "django", "channels"}
    for module in imported_by(path):
        if module.partition(".")[0] in ours:
            assert is_below(module, "training.rlhf"), module


@pytest.mark.parametrize("name", STANDARD_LIBRARY_ONLY)
def test_what_both_sides_share_needs_no_library(name: str) -> None:
    import sys

    for module in imported_by(ROOT / "training" / "rlhf" / f"{name}.py"):
        top = module.partition(".")[0]
        assert top in sys.stdlib_module_names or is_below(module, "training.rlhf"), module


@pytest.mark.parametrize("path", modules_of("labeling", "training"), ids=name_of)
def test_nothing_imports_an_interface(path: Path) -> None:
    if "rlhf" in path.parts or INTERFACES & set(path.relative_to(ROOT).with_suffix("").parts):
        return
    for module in imported_by(path):
        if is_below(module, "labeling", "training"):
            assert not INTERFACES & set(module.split(".")), module
