"""Prompts made from templates, for scenarios where few written ones are at hand."""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Iterator

__all__ = ["as_stub", "chats"]

_TOPICS = """
the water cycle|black holes|the French Revolution|photosynthesis|supply and demand|machine learning|the Roman Empire|vaccines
plate tectonics|the human heart|inflation|solar panels|the Silk Road|DNA|gravity|democracy|the immune system|blockchains
tides|the printing press|antibiotics|electric cars|volcanoes|the Renaissance|climate change|sleep|coffee|chess|marathon running
bees|coral reefs|the internet|databases|operating systems|neural networks|recursion|sorting algorithms|public key cryptography
compound interest|mortgages|opportunity cost|the Great Wall of China|ancient Egypt|the Cold War|jazz|classical music|photography
oil painting|poetry|Shakespeare|the novel|time management|public speaking|job interviews|remote work|teamwork|leadership
negotiation|gardening|baking bread|vegetarian cooking|Italian food|sushi|hiking|camping|swimming|yoga|meditation|stress
healthy eating|vitamins|exercise|learning a language|reading|writing essays|studying for exams|online courses|mathematics
probability|statistics|geometry|calculus|prime numbers|fractions|the scientific method|atoms|acids and bases|magnets|light|sound
electricity|batteries|engines|airplanes|rockets|the moon|Mars|telescopes|dinosaurs|evolution|whales|elephants|cats|dogs|horses
forests|deserts|rivers|oceans|earthquakes|hurricanes|rainbows|snow|cities|public transport|bicycles|trains|bridges|houses
recycling|plastic waste|renewable energy|nuclear power|water conservation|taxes|insurance|saving money|credit cards|the stock market
small businesses|marketing|customer service|e-commerce|social media|video games|movies|board games|museums|travel in Japan
a trip to Paris|national parks|weddings|birthdays|parenting|friendship|kindness|honesty|courage|creativity|curiosity|happiness
ethics|philosophy|psychology|memory|habits|language|writing systems|law|human rights|journalism|libraries|schools|hospitals
""".replace("\n", "|")
_FORMS = """
Explain {t} to a ten-year-old.|Explain {t} in simple terms.|What is the most important thing to know about {t}?
Write a short paragraph about {t}.|Write a poem about {t}.|Write a short story that involves {t}.|Write a blog post about {t}.
Give me five tips about {t}.|List three interesting facts about {t} and explain each of them.|What are the pros and cons of {t}?
Write an email to a friend in which you tell about {t}.|Summarize what is known about {t} in three sentences.
How has {t} changed over the last hundred years?|Why does {t} matter?|Write a dialogue between two people who talk about {t}.
What are common misconceptions about {t}?|Write an introduction for an article on {t}.|How would you teach a class about {t}?
Compare {t} and {u}.|What do {t} and {u} have in common?|Write a letter to a newspaper about {t}.
What should a beginner know about {t}?
Describe {t} from the point of view of an expert.|Give a step-by-step guide to {t}.|Write a speech about {t}.
Imagine that you are a journalist who reports on {t}. What would you write?
Which questions should I ask an expert on {t}?
What is the history of {t}?|Write a review of a book about {t}.|Create an outline for an essay about {t}.|Tell me about {t}.
I am interested in {t}. Where should I start?|Can you help me understand {t}?|Make a table that compares {t} and {u}.
Discuss the role of {t} in everyday life.|What might {t} look like in fifty years?|Write a product description related to {t}.
Pretend to be a teacher and answer a student's question about {t}.|What are the main causes and effects related to {t}?
""".replace("\n", "|")
_FOLLOW_UPS = """
Rewrite that in a more formal tone.|Make it shorter.|Can you give an example?|Explain the last point in more detail.
Now summarize your answer in one sentence.|Turn this into a bulleted list.|Why is that?|What would a critic say about this?
Rewrite it for children.|Continue.|Add a title and a conclusion.|Translate the main idea into everyday language.
What did you leave out?|Give me three more.|How certain are you of this?|Can you write this as a story instead?
""".replace("\n", "|")
_SYSTEM_ROLES = (
    "a pirate",
    "a chef",
    "a detective",
    "an old professor",
    "a travel guide",
    "a robot",
    "a king",
    "a sports commentator",
)
_ARGUMENTS = ("values: list[int]", "text: str", "n: int", "items", "x: float", "k: int = 1")
_STOP_WORDS = frozenset(
    [
        "a",
        "an",
        "and",
        "are",
        "as",
        "create",
        "code",
        "for",
        "from",
        "function",
        "given",
        "in",
        "is",
        "it",
        "of",
        "on",
        "or",
        "program",
        "python",
        "script",
        "takes",
        "that",
        "the",
        "to",
        "using",
        "which",
        "with",
        "write",
        "generate",
        "accepts",
        "returns",
        "you",
        "your",
        "can",
        "please",
        "develop",
        "design",
        "implement",
        "simple",
    ]
)
_WORD = re.compile(r"[a-z]+")


def chats(seed: int) -> Iterator[dict[str, object]]:
    """Chat prompts without end: {"scenario": "chat", "source": "templates", "turns": [...]}, one or two turns each."""
    draw = random.Random(f"chats {seed}")
    topics, forms, follow_ups = (_split(text) for text in (_TOPICS, _FORMS, _FOLLOW_UPS))
    while True:
        topic, other = draw.sample(topics, 2)
        turn = draw.choice(forms).format(t=topic, u=other)
        if draw.random() < 0.1:
            turn = f"Answer as {draw.choice(_SYSTEM_ROLES)} would. {turn}"
        turns = [turn] if draw.random() < 0.6 else [turn, draw.choice(follow_ups)]
        yield {"scenario": "chat", "source": "templates", "turns": turns}


def as_stub(request: str, seed: int) -> str | None:
    """A coding request as the stub of a Python function to complete; None when it is too long for a docstring."""
    if len(request) > 300 or "```" in request or '"""' in request:
        return None
    draw = random.Random(f"stub {seed} {request}")
    words = [word for word in _WORD.findall(request.lower()) if word not in _STOP_WORDS and len(word) > 2]
    name = "_".join(words[: draw.randint(2, 3)]) or "solve"
    arguments = ", ".join(draw.sample(_ARGUMENTS, draw.randint(1, 2)))
    stub = f'def {name}({arguments}):\n    """ {request.strip()}\n    """\n'
    lead = draw.choice(
        (
            "Write a solution to the following problem and make sure that it passes the tests:\n```python\n{stub}```",
            "Complete the following Python function.\n\n{stub}",
            "Implement this function:\n```python\n{stub}```",
        )
    )
    return lead.format(stub=stub)


def _split(text: str) -> list[str]:
    return [part for part in _strip(text.split("|")) if part]


def _strip(parts: Iterable[str]) -> Iterator[str]:
    return (part.strip() for part in parts)
