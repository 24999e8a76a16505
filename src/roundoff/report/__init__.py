"""Pages and pictures of a run; reads the store and nothing else.

The files, from what is read to what is written:

    rows.py       lines of a run -> samples and points, whatever the operator's parameters
    figure.py     a figure apart from its drawing: rows, views, names, axes
    charts.py     Vega-Lite specs, built with Altair
    lines.py      error against each numeric axis
    views.py      what figures share: sections, a view for each metric
    formats.py    error by format
    ratios.py     the map of ratios to the baseline
    bias.py       size and bias side by side
    training.py   what was trained: a section an experiment (trained.py: its repeats and arms;
                  curves.py, losses.py, layers.py: figures; training_tables.py; drawings.py:
                  samples)
    claims.py     a study's verdicts and their evidence
    tables.py     results, matches, timings, failures, environments, metrics
    look.py       colours, light and dark
    page.py       `write_report`: all of it in one file (page.html.j2, page.css, page.js)
    files.py      whole files, pictures, what stands inside a script
"""

from __future__ import annotations

from roundoff.report.page import write_report

__all__ = ["write_report"]
