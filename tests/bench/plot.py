"""Latency distributions as SVG: the share of requests that took no longer, against the time, for each arm.

The share's axis stretches the tail (each step is one nine more), the time's is logarithmic. What failed counts as never
answered, so a line ends before the right edge by it. Colours follow the reader's light or dark setting.
"""

import math
from html import escape

from degraded import CLASSES_PER_DECADE

WIDTH, HEIGHT = 760, 420
LEFT, RIGHT, TOP, BOTTOM = 64, 36, 40, 44
LEGEND_LINE = 18
NINES = 4

LIGHT = ("#0060c0", "#c04a00", "#00805a", "#a03c90", "#7a6400", "#3a3a3a", "#c00030", "#008099")
DARK = ("#6ab4ff", "#ff9a55", "#3ad6a0", "#e59ad8", "#dcc040", "#d8d8d8", "#ff7a90", "#55d5ee")
DASHES = ("", "7 3", "2 3", "9 3 2 3")


def percentiles(title, series):
    """`series`: a name, the requests sent, how many lie in each class of the histogram."""
    series = [(name, list(points(sent, histogram))) for name, sent, histogram in series]
    times = [us for _, line in series for _, us in line]
    low, high = math.floor(math.log10(min(times))), math.ceil(math.log10(max(times)))
    bottom = HEIGHT - BOTTOM

    def x(nines):
        return LEFT + (WIDTH - LEFT - RIGHT) * min(nines, NINES) / NINES

    def y(us):
        return bottom - (bottom - TOP) * (math.log10(us) - low) / max(high - low, 1)

    parts = [f'<text x="{LEFT}" y="22" class="title">{escape(title)}</text>', *grid(x, y, low, high, bottom)]
    for number, (name, line) in enumerate(series):
        drawn = " ".join(f"{x(nines):.1f},{y(us):.1f}" for nines, us in line)
        dash = DASHES[number % len(DASHES)]
        style = f'class="s{number % len(LIGHT)}" stroke-dasharray="{dash or "none"}"'
        parts.append(f'<polyline points="{drawn}" {style}/>')
        column, row = number % 2, number // 2
        left, height = LEFT + column * (WIDTH - LEFT) // 2, HEIGHT + 8 + row * LEGEND_LINE
        parts.append(f'<polyline points="{left},{height} {left + 34},{height}" {style}/>'
                     f'<text x="{left + 42}" y="{height + 4}">{escape(name)}</text>')
    height = HEIGHT + 8 + LEGEND_LINE * math.ceil(len(series) / 2) + 4
    return (f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img" '
            f'aria-label="{escape(title)}">\n<style>{styles()}</style>\n'
            f'<rect width="{WIDTH}" height="{height}" class="paper"/>\n' + "\n".join(parts) + "\n</svg>\n")


def points(sent, histogram):
    """(nines, µs), stepwise: a class begins where the one before it ends."""
    counted = 0
    for number in sorted(map(int, histogram)):
        us = 10 ** (number / CLASSES_PER_DECADE)
        yield nines(counted, sent), us
        counted += histogram[str(number)]
        yield nines(counted - 0.5, sent), us


def nines(counted, sent):
    return -math.log10(1 - max(counted, 0) / sent)


def grid(x, y, low, high, bottom):
    for share in ("0", "90", "99", "99.9", "99.99"):
        at = x(-math.log10(1 - float(share) / 100)) if share != "0" else x(0)
        yield (f'<line x1="{at:.1f}" y1="{TOP}" x2="{at:.1f}" y2="{bottom}" class="grid"/>'
               f'<text x="{at:.1f}" y="{bottom + 18}" text-anchor="middle">{share} %</text>')
    for power in range(low, high + 1):
        at = y(10 ** power)
        yield (f'<line x1="{LEFT}" y1="{at:.1f}" x2="{WIDTH - RIGHT}" y2="{at:.1f}" class="grid"/>'
               f'<text x="{LEFT - 6}" y="{at + 4:.1f}" text-anchor="end">{shown(10 ** power)}</text>')


def shown(us):
    if us >= 1e6:
        return f"{us / 1e6:g} s"
    return f"{us / 1e3:g} ms" if us >= 1e3 else f"{us:g} µs"


def styles():
    def lines(colours):
        return " ".join(f".s{n}{{stroke:{colour}}}" for n, colour in enumerate(colours))
    return ("text{font:12px sans-serif;fill:#222} .title{font-size:15px;font-weight:bold} .paper{fill:#fff} "
            ".grid{stroke:#ddd} polyline{fill:none;stroke-width:2} " + lines(LIGHT)
            + " @media (prefers-color-scheme:dark){text{fill:#ddd} .paper{fill:#15181c} .grid{stroke:#3a3f45} "
            + lines(DARK) + "}")
