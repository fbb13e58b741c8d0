"""The results as a table of ratios, as JSON and as a chart."""

import statistics
from dataclasses import dataclass
from xml.sax.saxutils import escape

from rows import Metric, Row, Target

REFERENCE = "nginx"


@dataclass(frozen=True)
class Spread:
    """Median, least and most of the rounds."""

    median: float
    least: float
    most: float

    @classmethod
    def of(cls, values: list[float]) -> "Spread | None":
        return cls(statistics.median(values), min(values), max(values)) if values else None

    def __str__(self):
        if self.least == self.most:
            return number(self.median)
        return f"{number(self.median)} ({number(self.least)} to {number(self.most)})"


def number(value: float) -> str:
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}" if abs(value) < 10 else f"{value:.1f}".removesuffix(".0")


class Results:
    """Values by row, metric, server and round; a round that failed has none."""

    def __init__(self):
        self.values: dict[tuple[str, str, str], dict[int, float]] = {}
        self.notes: list[str] = []

    def add(self, row: str, server: str, round_number: int, measured: dict[str, float]):
        for key, value in measured.items():
            self.values.setdefault((row, key, server), {})[round_number] = value

    def absolute(self, row: str, key: str, server: str) -> Spread | None:
        return Spread.of(list(self.values.get((row, key, server), {}).values()))

    def ratio(self, row: str, key: str, server: str, of: str) -> Spread | None:
        """Of the values of the same rounds, so that both met the same machine."""
        own = self.values.get((row, key, server), {})
        theirs = self.values.get((row, key, of), {})
        return Spread.of([own[one] / theirs[one] for one in own if theirs.get(one)])

    def judged(self, row: Row, metric: Metric, target: Target) -> bool | None:
        """Whether a target is met by the median; None where it was not measured."""
        spread = (self.ratio(row.name, metric.key, target.server, target.of) if target.of
                  else self.absolute(row.name, metric.key, target.server))
        return target.met(spread.median) if spread else None

    def verdict(self, row: Row, metric: Metric) -> str:
        parts = []
        for target in metric.targets:
            met = self.judged(row, metric, target)
            if met is not None:
                parts.append(f"{target}: {'met' if met else '**missed**'}")
        return ", ".join(parts)

    def json(self, rows: list[Row], servers: list[str]) -> list[dict]:
        out = []
        for row in rows:
            for metric in (*row.metrics, Metric("others' CPUs", ""), Metric("load", "")):
                for server in servers:
                    rounds = self.values.get((row.name, metric.key, server))
                    if rounds:
                        absolute = self.absolute(row.name, metric.key, server)
                        ratio = self.ratio(row.name, metric.key, server, REFERENCE)
                        out.append({"row": row.name, "metric": metric.key, "unit": metric.unit,
                                    "server": server, "rounds": list(rounds.values()),
                                    "median": absolute.median,
                                    "ratio": vars(ratio) if ratio else None})
        return out


def table(results: Results, rows: list[Row], servers: list[str]) -> str:
    """Markdown: ratios to nginx in the same round, or values where a ratio says nothing."""
    head = ["row", "metric", *servers, "ours must reach"]
    lines = [head, ["---"] * len(head)]
    for row in rows:
        for metric in row.metrics:
            cells, any_cell = [], False
            for server in servers:
                absolute = results.absolute(row.name, metric.key, server)
                spread = absolute
                if metric.relative and server != REFERENCE and absolute:
                    spread = results.ratio(row.name, metric.key, server, REFERENCE)
                any_cell |= spread is not None
                shown = str(spread) if spread else "–"
                if spread and metric.relative:
                    shown = f"= {shown}" if server == REFERENCE else f"{shown} ×"
                cells.append(shown)
            if any_cell:
                lines.append([row.about, f"{metric.key}, {metric.unit}".rstrip(", "), *cells,
                              results.verdict(row, metric)])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


COLOURS = ["#1b6ca8", "#7fb2d9", "#888888", "#c97b2d", "#9a5fb0", "#5a9c5a", "#b04a4a", "#0f3d5e",
           "#3f8fc4", "#444444"]
BAR, GAP, LEFT, WIDTH, LONGEST = 11, 26, 230, 900, 3.0


def svg(results: Results, rows: list[Row], servers: list[str]) -> str:
    """Bars of the first relative metric of each row; the line is nginx."""
    scale = (WIDTH - LEFT - 90) / LONGEST
    shown, y = [], 62
    for index, server in enumerate(servers):
        x = 12 + (index % 5) * 175
        shown.append(f'<rect x="{x}" y="{12 + index // 5 * 18}" width="11" height="11" '
                     f'fill="{COLOURS[index % len(COLOURS)]}"/><text x="{x + 16}" '
                     f'y="{22 + index // 5 * 18}">{escape(server)}</text>')
    top = y
    for row in rows:
        for metric in [one for one in row.metrics if one.relative and one.key != "p99"][:2]:
            bars = [(server, results.ratio(row.name, metric.key, server, REFERENCE))
                    for server in servers]
            bars = [(server, ratio) for server, ratio in bars if ratio]
            if len(bars) < 2:
                continue
            better = "more is better" if metric.more_is_better else "less is better"
            shown.append(f'<text x="8" y="{y + 10}">{escape(row.about)}</text><text x="8" '
                         f'y="{y + 23}" class="small">{escape(metric.key)}, {better}</text>')
            for server, ratio in bars:
                colour = COLOURS[servers.index(server) % len(COLOURS)]
                length = min(ratio.median, LONGEST) * scale
                shown.append(f'<rect x="{LEFT}" y="{y}" width="{length:.1f}" height="{BAR - 2}" '
                             f'fill="{colour}"/><text x="{LEFT + length + 5:.1f}" y="{y + 8}" '
                             f'class="small">{ratio.median:.2f}</text>')
                y += BAR
            y += GAP - min(BAR, max(0, 3 - len(bars)) * BAR)
    line = LEFT + scale
    return (f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{y}" '
            f'viewBox="0 0 {WIDTH} {y}" font-family="sans-serif" font-size="12">'
            '<style>.small{font-size:9px;fill:#555}</style>'
            f'<rect width="{WIDTH}" height="{y}" fill="#fff"/>'
            f'<line x1="{line:.1f}" y1="{top - 8}" x2="{line:.1f}" y2="{y - 10}" stroke="#888" '
            f'stroke-dasharray="3 3"/><text x="{line + 3:.1f}" y="{top - 3}" class="small">'
            "nginx = 1</text>" + "".join(shown) + "</svg>\n")
