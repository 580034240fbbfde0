"""The settings of methods that write data by a constitution: sections of a recipe. Standard library only."""

from dataclasses import dataclass

from training.rlhf.method_settings import check, check_range
from training.rlhf.reward_options import JudgeOptions, check_address, is_address


@dataclass(frozen=True, kw_only=True)
class CritiqueRevision:
    """The policy answers, criticises itself by a principle, and writes again (2212.08073, section 3.1)."""

    rounds: int = 1  # critiques and revisions of one answer, each by a principle of its own
    prompts: int = 500  # written to at most, of those to train on; a quarter as many held out

    def __post_init__(self) -> None:
        check_range("critique_revision.rounds", self.rounds, 1, 16)
        check_range("critique_revision.prompts", self.prompts, 1, 1_000_000)


@dataclass(frozen=True, kw_only=True)
class AiPreferences:
    """Two completions for each prompt, compared by a model (2212.08073, section 4.1).

    `judge` is a folder or hub id, or the address of an OpenAI-compatible server; empty: the policy itself.
    """

    judge: str = ""
    judge_model: str = ""  # as the server names it
    principles: int = 1  # asked about each pair, one after the other; `p` is their mean
    prompts: int = 500  # written to at most, of those to train on; a quarter as many held out
    timeout: float = 60.0  # seconds for one answer of a server
    retries: int = 4
    at_once: int = 8  # questions under way at a server
    max_tokens: int = 16  # of an answer

    def __post_init__(self) -> None:
        check_range("ai_preferences.principles", self.principles, 1, 16)
        check_range("ai_preferences.prompts", self.prompts, 1, 1_000_000)
        check(len(self.judge_model) <= 200, "ai_preferences.judge_model: at most 200 letters")
        if is_address(self.judge):
            check_address(self.judge, where="ai_preferences.judge")
        self.voice()

    def voice(self) -> JudgeOptions:
        """How the judge is asked; each question brings its own rubric."""
        return JudgeOptions(
            rubric="a principle of the constitution",
            model=self.judge_model,
            timeout=self.timeout,
            retries=self.retries,
            at_once=self.at_once,
            max_tokens=self.max_tokens,
        )
