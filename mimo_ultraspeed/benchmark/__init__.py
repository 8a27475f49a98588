"""How fast a model runs on this machine, and where its time goes: `mimo_ultraspeed.bench` and `mimo-ultraspeed bench`.

settings.py says what to measure, made.py makes models to measure, measure.py runs them, result.py keeps every sample (and documents
the JSON), figures.py computes from samples, report.py and plot.py show.
"""

from __future__ import annotations

from .measure import bench
from .result import BenchResult

__all__ = ["BenchResult", "bench"]
