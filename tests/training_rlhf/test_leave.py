"""A model leaves: others load what was written and get the same numbers, and a hub gets it byte for byte."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from tests.training.fake_hub import TOKEN, FakeHub, fake_hub
from tests.training_rlhf.conftest import ROOT, environment, in_bf16, run_child, stored_dtypes, write_run

HELLO = [{"role": "user", "content": "Say hello."}]


@pytest.fixture(scope="module")
def lora(tiny_policy: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished DPO run with LoRA, on a base in fp32."""
    return trained(tmp_path_factory.mktemp("lora"), tiny_policy, "dpo")


def trained(folder: Path, base: Path, method: str, kind: str = "lora") -> Path:
    run_dir = write_run(
        folder, model=base, method=method, pairs=8, tuning={"kind": kind}, training={"max_steps": 3}
    )
    child = run_child(run_dir)
    assert child.returncode == 0, child.stdout
    return folder


def leave(
    folder: Path, run: Path, form: str, *, env: dict[str, str] | None = None, **how: Any
) -> tuple[int, Path]:
    """The child's status and what it wrote."""
    folder.mkdir()
    job = {
        "model": str(run / "model"), "adapter": str(run / "adapter"), "form": form, "base": "org/base",
        "texts": {"README.md": "# A card\n"}, "leave_out": ["README.md", "lineage.json", "canaries.json"],
        "repo": "", "private": True, "message": "From a test",
    }  # fmt: skip
    (folder / "job.json").write_text(json.dumps(job | how))
    command = [sys.executable, "-m", "training.rlhf.leave", str(folder)]
    child = subprocess.run(command, cwd=ROOT, env=environment() | (env or {}), timeout=120)
    return child.returncode, folder / "model"


def logits(model: Any, folder: Path) -> Any:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = tokenizer.apply_chat_template(HELLO, add_generation_prompt=True, return_dict=False)
    with torch.inference_mode():
        return model.eval()(input_ids=torch.tensor([ids])).logits.float()


def written(model: Any, folder: Path) -> str:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = tokenizer.apply_chat_template(HELLO, add_generation_prompt=True, return_dict=False)
    output = model.generate(input_ids=torch.tensor([ids]), max_new_tokens=12, do_sample=False)
    return str(tokenizer.decode(output[0, len(ids) :]))


def test_fp32_of_a_bf16_policy_is_the_same_policy_to_the_bit(tiny_policy: Path, tmp_path: Path) -> None:
    run = trained(tmp_path / "run", in_bf16(tiny_policy, tmp_path / "bf16"), "dpo")
    code, folder = leave(tmp_path / "out", run, "fp32")
    assert code == 0
    assert stored_dtypes(folder) == {torch.float32}
    assert json.loads((folder / "config.json").read_text())["dtype"] == "float32"
    ours = AutoModelForCausalLM.from_pretrained(run / "model", dtype=torch.float32)
    theirs: Any = AutoModelForCausalLM.from_pretrained(folder)
    assert theirs.dtype == torch.float32
    assert torch.equal(logits(ours, folder), logits(theirs, folder))
    assert written(ours, folder) == written(theirs, folder)


def test_bf16_is_rounded_once_to_the_nearest_and_writes_the_same(lora: Path, tmp_path: Path) -> None:
    code, folder = leave(tmp_path / "out", lora, "bf16")
    assert code == 0
    assert stored_dtypes(folder) == {torch.bfloat16}
    ours = AutoModelForCausalLM.from_pretrained(lora / "model")
    theirs: Any = AutoModelForCausalLM.from_pretrained(folder)
    assert theirs.dtype == torch.bfloat16
    for (name, exact), (_, rounded) in zip(ours.named_parameters(), theirs.named_parameters(), strict=True):
        assert torch.equal(exact.to(torch.bfloat16), rounded), name
    assert (logits(ours, folder) - logits(theirs, folder)).abs().max() < 0.05
    config = json.loads((folder / "config.json").read_text())
    assert config["use_cache"] is True
    assert (folder / "generation_config.json").exists() and (folder / "chat_template.jinja").exists()


def test_the_adapter_gives_the_merged_policy_on_its_base(
    lora: Path, tiny_policy: Path, tmp_path: Path
) -> None:
    code, folder = leave(tmp_path / "out", lora, "adapter")
    assert code == 0
    assert json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"] == "org/base"
    base = AutoModelForCausalLM.from_pretrained(tiny_policy)
    theirs = PeftModel.from_pretrained(base, str(folder))
    ours = AutoModelForCausalLM.from_pretrained(lora / "model")
    torch.testing.assert_close(logits(ours, folder), logits(theirs, folder), rtol=1e-4, atol=1e-5)
    assert written(ours, folder) == written(theirs, folder)


def test_a_reward_model_leaves_with_its_head(tiny_policy: Path, tmp_path: Path) -> None:
    run = trained(tmp_path / "run", tiny_policy, "reward_model")
    code, folder = leave(tmp_path / "out", run, "bf16")
    assert code == 0
    ours = AutoModelForSequenceClassification.from_pretrained(run / "model")
    theirs: Any = AutoModelForSequenceClassification.from_pretrained(folder)
    assert theirs.config.num_labels == 1
    assert torch.equal(ours.score.weight.to(torch.bfloat16), theirs.score.weight)


def test_what_lies_beside_the_weights_comes_along(tiny_policy: Path, tmp_path: Path) -> None:
    run = trained(tmp_path / "run", tiny_policy, "dpo", kind="prompt")
    code, folder = leave(tmp_path / "out", run, "fp32")
    assert code == 0
    base = AutoModelForCausalLM.from_pretrained(folder)
    assert torch.equal(
        logits(base, folder), logits(AutoModelForCausalLM.from_pretrained(tiny_policy), folder)
    )
    whole = PeftModel.from_pretrained(base, str(folder), subfolder="adapter")
    assert not torch.equal(
        logits(whole, folder), logits(AutoModelForCausalLM.from_pretrained(folder), folder)
    )


def test_no_place_on_this_machine_leaves(lora: Path, tmp_path: Path) -> None:
    for form in ("stored", "adapter"):
        _, folder = leave(tmp_path / form, lora, form)
        texts = [path for path in folder.rglob("*") if path.is_file() and path.suffix != ".safetensors"]
        assert texts
        for path in texts:
            assert "/tmp" not in path.read_text(encoding="utf-8"), path
            assert str(ROOT) not in path.read_text(encoding="utf-8"), path


def pushed(hub: FakeHub, folder: Path, lora: Path, token: str = TOKEN, **how: Any) -> tuple[int, Path]:
    env = {"HF_ENDPOINT": hub.address, "HF_TOKEN": token, "HF_HUB_OFFLINE": "0"}
    return leave(folder, lora, "stored", repo="org/fox", env=env, **how)


def error(folder: Path) -> dict[str, str]:
    said: dict[str, str] = json.loads((folder / "error.json").read_text())
    return said


def test_a_hub_gets_every_file_byte_for_byte(lora: Path, tmp_path: Path) -> None:
    with fake_hub() as hub:
        code, folder = pushed(hub, tmp_path / "out", lora)
        assert code == 0
        arrived = hub.files["org/fox"]
        assert arrived == {path.name: path.read_bytes() for path in folder.iterdir()}
        assert "model.safetensors" in arrived and "README.md" in arrived
        assert hub.private == {"org/fox": True}
        assert hub.messages == ["From a test"]
        url = json.loads((tmp_path / "out" / "result.json").read_text())["url"]
        assert url.startswith(f"{hub.address}/org/fox/commit/")


def test_a_hub_that_refuses_is_told_of_in_words(lora: Path, tmp_path: Path) -> None:
    with fake_hub() as hub:
        code, _ = pushed(hub, tmp_path / "wrong", lora, token="hf_wrong")
        assert code == 4
        assert "The token is wrong or has expired" in error(tmp_path / "wrong")["do"]
        hub.private["org/fox"] = False
        pushed(hub, tmp_path / "public", lora)
        assert "anybody may see it" in error(tmp_path / "public")["what"]
        hub.private.clear()
        hub.refuse = 403
        pushed(hub, tmp_path / "refused", lora)
        assert "may not write to org/fox" in error(tmp_path / "refused")["do"]
        assert not hub.files
    code, _ = pushed(hub, tmp_path / "gone", lora)
    assert code == 4
    assert "cannot be reached" in error(tmp_path / "gone")["what"]
    code, _ = pushed(hub, tmp_path / "none", lora, token="")
    assert "There is no token" in error(tmp_path / "none")["what"]
