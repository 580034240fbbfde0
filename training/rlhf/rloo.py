"""RLOO: REINFORCE, with the other completions of a prompt as the baseline of each (2402.14740, equation 7).

TRL's trainer; the reward of a completion is lessened by beta times its KL to where the policy began. What is
drawn and how it is scored is ours (training.rlhf.online).
"""

from transformers import PreTrainedModel, PreTrainedTokenizerBase
from trl.trainer.rloo_config import RLOOConfig
from trl.trainer.rloo_trainer import RLOOTrainer

from training.rlhf.config import RunConfig
from training.rlhf.online import OnlineTrainer, make_ready_to_draw, parts_of_trainer, shared_arguments
from training.rlhf.online import check as check  # before the start (training.rlhf.learners)
from training.rlhf.rows.single_rows import PromptRow
from training.rlhf.run_dir import RunDir


class LeaveOneOutTrainer(OnlineTrainer, RLOOTrainer):
    pass


def make_trainer(
    *,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    train: list[PromptRow],
    test: list[PromptRow],
    config: RunConfig,
    run_dir: RunDir,
) -> LeaveOneOutTrainer:
    """A trainer over the model as it is now, which is also the reference. Raises Refused for the rewards."""
    trainer = LeaveOneOutTrainer(
        args=RLOOConfig(**shared_arguments(config.rloo, config, run_dir)),
        **parts_of_trainer(
            config.rloo, model=model, tokenizer=tokenizer, train=train, test=test, config=config
        ),
    )
    make_ready_to_draw(trainer, config)
    return trainer
