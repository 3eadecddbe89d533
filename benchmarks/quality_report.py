"""Tables and pictures of what ``search_quality.py`` has found."""

from __future__ import annotations

import datetime
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from overhead import hardware
from scipy.stats import rankdata

__all__ = ["LEAST", "Record", "table_head", "table_row", "write_report"]

Record = dict[str, Any]
LEAST = 1e-4
"""Medians of the regret below this count as this: a surrogate's best is not known any better."""
SHARES = (0.1, 0.25, 0.5, 1.0)
INTRODUCTIONS = {
    "full": "Trials train to their end. `regret`: 0 is the best known configuration, 1 the median random one.",
    "curves": "Learning curves; all methods get the same number of steps, counted in full trainings.",
    "failing": "Full trainings; those in the upper half of one parameter fail.",
}


@dataclass(frozen=True)
class Found:
    """The runs of one part with one number of workers."""

    records: Sequence[Record]

    @property
    def methods(self) -> list[str]:
        return list(dict.fromkeys(record["method"] for record in self.records))

    @property
    def instances(self) -> list[str]:
        return list(dict.fromkeys(record["instance"] for record in self.records))

    def of(self, method: str, instance: str | None = None) -> list[Record]:
        return [r for r in self.records if r["method"] == method and instance in (None, r["instance"])]

    def median(self, method: str, instance: str, mark: float) -> float:
        """The median regret over seeds at a mark on the runs' path; nan without a run."""
        return _median([_at(record, mark) for record in self.of(method, instance)])

    def medians(self, mark: float, unit: float | None = None) -> np.ndarray:
        """(methods, instances), not below ``LEAST``. unit: what a mark counts; by default a full training."""
        rows = []
        for method in self.methods:
            row = []
            for instance in self.instances:
                steps = next(r["max_steps"] for r in self.records if r["instance"] == instance)
                row.append(max(self.median(method, instance, mark * (unit or steps)), LEAST))
            rows.append(row)
        return np.array(rows)

    def cpu_ms(self, method: str, mark: int) -> float:
        """CPU milliseconds of a suggestion, the median over runs, at so many trials or else over the whole run."""
        return _median([r["cpu_ms"].get(str(mark), r["cpu_ms"]["all"]) for r in self.of(method)])


def _median(values: Sequence[float]) -> float:
    return float(np.median(values)) if values else math.nan


def _at(record: Record, mark: float) -> float:
    return next((point[1] for point in reversed(record["path"]) if point[0] <= mark), math.inf)


def _geometric_mean(medians: np.ndarray) -> np.ndarray:
    """(methods,) over the instances that each method has been run on."""
    return np.array([np.exp(np.mean(np.log(row[~np.isnan(row)]))) for row in medians])


def _mean_ranks(medians: np.ndarray) -> np.ndarray:
    """(methods,): 1 is best, equal ones share; nan for a method that has not been run on every instance."""
    ranks = np.full(len(medians), np.nan)
    whole = ~np.isnan(medians).any(axis=1)
    if whole.any():
        ranks[whole] = rankdata(medians[whole], axis=0).mean(axis=1)
    return ranks


def table_row(*cells: object) -> str:
    return "| " + " | ".join(str(cell) for cell in cells) + " |"


def table_head(*cells: object) -> list[str]:
    return [table_row(*cells), table_row(*["---"] * len(cells))]


def _number(value: float, digits: int = 4) -> str:
    return "–" if math.isnan(value) else f"{value:.{digits}f}"


# -- parts -------------------------------------------------------------------------------------------------------------


def _full(found: Found, marks: Sequence[int]) -> list[str]:
    means, ranks = [], []
    for mark in marks:
        medians = found.medians(mark, unit=1)
        means.append(_geometric_mean(medians))
        ranks.append(_mean_ranks(medians))
    cells = [f"{what}, {mark} trials" for what in ("regret", "mean rank") for mark in marks]
    lines = table_head("method", *cells, f"CPU ms a suggestion at {marks[-1]}", "runs")
    for index in np.argsort(means[-1]):
        method = found.methods[index]
        lines.append(
            table_row(
                method,
                *(_number(mean[index]) for mean in means),
                *(_number(rank[index], 2) for rank in ranks),
                _number(found.cpu_ms(method, marks[-1]), 1),
                len(found.of(method)),
            )
        )
    return lines


def _curves(found: Found, marks: Sequence[int]) -> list[str]:
    lines = []
    for size in marks:
        means = [_geometric_mean(found.medians(share * size)) for share in SHARES]
        ranks = _mean_ranks(found.medians(size))
        cells = [f"{share:.0%} of {size} trainings" for share in SHARES]
        lines += table_head("method", *cells, "mean rank", "virtual time to random's last regret", "runs")
        for index in np.argsort(means[-1]):
            method = found.methods[index]
            speed = [_time_to_random(found, method, instance, size) for instance in found.instances]
            lines.append(
                table_row(
                    method,
                    *(_number(mean[index]) for mean in means),
                    _number(ranks[index], 2),
                    f"{_number(_median(speed), 2)} (worst {_number(max(speed, default=math.nan), 2)})",
                    len(found.of(method)),
                )
            )
        lines.append("")
    return lines


def _time_to_random(found: Found, method: str, instance: str, size: int) -> float:
    """The median virtual time to the regret that random ends with at the median, as a share of random's time."""
    random = found.of("random", instance)
    if not random:
        return math.nan
    steps = size * random[0]["max_steps"]
    goal = _median([_at(record, steps) for record in random])
    whole = _median([_seconds_at(record, steps) for record in random])
    needed = [
        next((at for _, regret, at in record["path"] if regret <= goal), math.inf)
        for record in found.of(method, instance)
    ]
    return _median(needed) / whole


def _seconds_at(record: Record, steps: int) -> float:
    return float(record["seconds"]) * steps / record["steps"]


def _failing(found: Found, marks: Sequence[int]) -> list[str]:
    lines = table_head("method", "failed after the start-up", "worst instance", f"regret, {marks[-1]} trials", "runs")
    means = _geometric_mean(found.medians(marks[-1], unit=1))
    for method, mean in zip(found.methods, means, strict=True):
        shares = {
            instance: float(np.mean([record["failed"] for record in found.of(method, instance)]))
            for instance in found.instances
            if found.of(method, instance)
        }
        worst = max(shares, key=lambda instance: shares[instance])
        average = float(np.mean(list(shares.values())))
        worst_text = f"{shares[worst]:.0%} ({worst})"
        lines.append(table_row(method, f"{average:.0%}", worst_text, _number(mean), len(found.of(method))))
    return lines


PARTS = {"full": _full, "curves": _curves, "failing": _failing}


def write_report(
    records: Sequence[Record], part: str, marks: Sequence[int], versions: dict[str, str], output: Path | None
) -> str:
    """The report as Markdown; also written to ``output``, with pictures beside it."""
    if not records:
        return "no run has finished"
    seeds = len({record["seed"] for record in records})
    lines = [
        f"# Search quality, {part}, {datetime.date.today()}",
        "",
        f"{hardware()}.",
        "",
        f"{INTRODUCTIONS[part]} The median over up to {seeds} seeds, then the geometric mean over instances "
        f"(medians below {LEAST:g} count as {LEAST:g}); ranks are of the medians on each instance.",
        "",
    ]
    if output is not None:
        output.parent.mkdir(parents=True, exist_ok=True)
    appendix = ["## Medians by instance", ""]
    for workers in sorted({record["workers"] for record in records}):
        found = Found([record for record in records if record["workers"] == workers])
        title = f"{workers} worker{'s' if workers > 1 else ''}"
        lines += [f"## {title}", "", *PARTS[part](found, marks), ""]
        if output is not None and part != "failing":
            picture = output.with_name(f"{output.stem}-{workers}.png")
            _plot(found, part, marks[-1], title, picture)
            lines += [f"![regret, {title}]({picture.name})", ""]
        unit = None if part == "curves" else 1
        appendix += [f"### {title}, {marks[-1]} trainings", "", *table_head("instance", *found.methods)]
        medians = found.medians(marks[-1], unit)
        appendix += [table_row(name, *map(_number, medians[:, i])) for i, name in enumerate(found.instances)]
        appendix.append("")
    lines += [
        *appendix,
        "## Versions",
        "",
        *table_head("method", "code"),
        *(table_row(*item) for item in versions.items()),
        "",
    ]
    text = "\n".join(lines)
    if output is not None:
        output.write_text(text)
    return text


def _plot(found: Found, part: str, size: int, title: str, path: Path) -> None:
    """The geometric mean of the median regrets against trials, or against full trainings' worth of steps."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.add_subplot()
    at = np.unique(np.geomspace(1, size, 60).round().astype(int)) if part == "full" else np.geomspace(0.2, size, 60)
    means = np.array([_geometric_mean(found.medians(float(mark), 1 if part == "full" else None)) for mark in at])
    for index, method in enumerate(found.methods):
        shown = np.isfinite(means[:, index])
        style = "-" if index < 10 else "--"
        axes.plot(at[shown], means[shown, index], style, linewidth=1.4, label=method)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("trials" if part == "full" else "steps, in full trainings")
    axes.set_ylabel("regret")
    axes.set_title(title)
    axes.grid(alpha=0.3, which="both")
    axes.legend(fontsize=7)
    figure.savefig(path, dpi=80)
