"""A plan for people: its reasons, its numbers, what is known of the structures, and what else was considered. HTML."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

from pydantic import BaseModel

from medseg.core.units import size_text
from medseg.data.plan import DataFacts, Plan
from medseg.report.html import bullets, table, text_cell
from medseg.report.tables import number

SHOWN_ELSEWHERE = (
    "reasons", "left_out", "training_cases", "validation_cases", "candidates", "fingerprint", "memory_bytes",
)  # fmt: skip
"""Fields of a plan that are no lines in the table of its numbers."""

LONGEST_VALUE = 160
"""Of a line in that table [characters]."""


def plan_section(plan: Plan) -> str:
    """All of it; what a plan does not have is not shown."""
    parts = [
        "<h2>Plan, and why</h2>\n<p>Decided once, before the first step, and frozen in plan.json.</p>",
        bullets(plan.reasons),
        _numbers(plan),
        "" if plan.fingerprint is None else _structures(plan, plan.fingerprint),
        _candidates(plan),
    ]
    return "\n".join(part for part in parts if part)


def _numbers(plan: Plan) -> str:
    rows = []
    for name, about in type(plan).model_fields.items():
        shown = _value(getattr(plan, name)) if name not in SHOWN_ELSEWHERE else ""
        if shown:
            rows.append([escape(name), text_cell(shown), text_cell(about.description or "")])
    if plan.memory_bytes:
        parts = ", ".join(f"{what} {size_text(size)}" for what, size in plan.memory_bytes.items())
        rows.append(
            ["memory", text_cell(size_text(sum(plan.memory_bytes.values()))), text_cell(f"Predicted: {parts}.")]
        )
    return table(["number", '<th class="text">value</th>', '<th class="text">what it is</th>'], rows)


def _structures(plan: Plan, facts: DataFacts) -> str:
    header = ["structure", "annotated", "found", "volume [ml]", "thickness [mm]", "thickness [voxels]"]
    coarsest_mm = max(plan.spacing_ijk_mm)
    rows = []
    for name, known in facts.structures.items():
        thick_mm = known.median_thickness_mm
        voxels = None if thick_mm is None else thick_mm / coarsest_mm
        sizes = [number(known.median_volume_ml, 1), number(thick_mm, 1), number(voxels, 1)]
        rows.append([escape(name), str(known.num_annotated), str(known.num_found), *sizes])
    return (
        f"<h3>Structures in the {facts.num_cases} training cases</h3>\n<p>Medians. Thickness is the diameter of the largest ball "
        f"that fits inside; in voxels along the coarsest axis of the network's grid.</p>\n{table(header, rows)}"
    )


def _candidates(plan: Plan) -> str:
    if not plan.candidates:
        return ""
    header = ["spacing [mm]", "patch", "features", "batch", "steps", "s a step", "memory", "expected", "lost by"]
    rows = []
    for one in plan.candidates:
        losses = ", ".join(f"{why} {lost:.3f}" for why, lost in one.losses.items())
        cells = [_value(one.spacing_ijk_mm), _value(one.patch_ijk), _value(one.features), str(one.batch_size)]
        cells += [str(one.num_steps), f"{one.seconds_per_step:.3f}", size_text(one.peak_bytes)]
        rows.append([*map(escape, cells), f"{one.expected_dice:.3f}", text_cell(losses)])
    return (
        "<h3>What was considered</h3>\n<p>The best first; the plan is the first of them. What is expected is for comparison only: "
        f"it is no promise.</p>\n{table(header, rows)}"
    )


def _value(value: Any) -> str:
    """A value for people; nothing where there is none, or where it is too long to be read."""
    if isinstance(value, BaseModel | Mapping):
        pairs = value if isinstance(value, BaseModel) else value.items()
        shown = ", ".join(f"{key} {text}" for key, part in pairs if (text := _value(part)))
    elif isinstance(value, list | tuple):
        is_nested = any(isinstance(part, list | tuple | BaseModel | Mapping) for part in value)
        shown = ("; " if is_nested else " × ").join(_value(part) for part in value)
    elif isinstance(value, float):
        shown = f"{value:.4g}"
    else:
        shown = "" if value is None else str(value)
    return shown if len(shown) <= LONGEST_VALUE else ""
