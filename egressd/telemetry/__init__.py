"""Metrics: one table of what there is, and its rendering for Prometheus. The only home of prometheus_client.

A scrape reads what the data path said last and what the control side knows; nobody is asked anything for it.
"""

from __future__ import annotations

from egressd.telemetry.collect import CONTENT_TYPE, ControlFacts, HistoryFacts, Reading, exposition, readings
from egressd.telemetry.process import ProcessUse, own_use
from egressd.telemetry.table import METRICS, Metric, sample_names

__all__ = [
    "CONTENT_TYPE",
    "METRICS",
    "ControlFacts",
    "HistoryFacts",
    "Metric",
    "ProcessUse",
    "Reading",
    "exposition",
    "own_use",
    "readings",
    "sample_names",
]
