"""Evaluation of speculative decoding: how many tokens a round gives, where drafts die, and whether the drafter is wired right.

from mimo_ultraspeed import evaluate
result = evaluate.acceptance("smollm2-135m", temperatures=(0.0,), limit=4)
print(result)
result.figures["coding"]["both T=0"]["acceptance_length"]
"""

from __future__ import annotations

from ..rounds import DEFINITIONS, Rounds, acceptance_length, figures, speculative_decoding
from .check import self_check
from .report import Evaluation, merge
from .run import Settings, acceptance
from .scenarios import PUBLISHED, SCENARIOS, PromptSet, load_prompts
from .selfcheck import SelfCheck

__all__ = [
    "DEFINITIONS",
    "PUBLISHED",
    "SCENARIOS",
    "Evaluation",
    "PromptSet",
    "Rounds",
    "SelfCheck",
    "Settings",
    "acceptance",
    "acceptance_length",
    "figures",
    "load_prompts",
    "merge",
    "self_check",
    "speculative_decoding",
]
