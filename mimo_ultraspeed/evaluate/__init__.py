"""Evaluation: what drafts give, where they die, whether the drafter is wired right, and how far a model is from its source.

from mimo_ultraspeed import evaluate
result = evaluate.acceptance("smollm2-135m", temperatures=(0.0,), limit=4)
print(result)
result.figures["coding"]["both T=0"]["acceptance_length"]
"""

from __future__ import annotations

from ..rounds import DEFINITIONS, Rounds, acceptance_length, figures, speculative_decoding
from .check import self_check
from .quality import Quality, quality
from .report import Evaluation, merge
from .run import Settings, acceptance
from .scenarios import PUBLISHED, SCENARIOS, PromptSet, load_prompts
from .selfcheck import SelfCheck
from .tasks import TASKS, Tasks, tasks

__all__ = [
    "DEFINITIONS",
    "PUBLISHED",
    "SCENARIOS",
    "TASKS",
    "Evaluation",
    "PromptSet",
    "Quality",
    "Rounds",
    "SelfCheck",
    "Settings",
    "Tasks",
    "acceptance",
    "acceptance_length",
    "figures",
    "load_prompts",
    "merge",
    "quality",
    "self_check",
    "speculative_decoding",
    "tasks",
]
