"""PURE  Figures of the story, the run and the policy as charts: numbers in, places on a canvas out.

`templates/training/charts/chart.html` draws a Chart as SVG, with autoescape, classes for colours and a
table of the same figures for those who read rather than see. Nothing here builds markup.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

WIDTH, HEIGHT = 440, 250
LEFT, RIGHT, TOP, BOTTOM = 48, 424, 26, 204  # the plot's frame
CHARACTER = 6.2  # a generous guess of a letter's width, to keep labels from running into each other
LINE = 13
BELOW = 7  # room between the frame and the names of its ticks
CAP = 6  # half of the cap of a whisker


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A share with its uncertainty: the win rate of a policy in a round."""

    label: str
    value: float
    low: float
    high: float
    n: int
    good: bool = False  # drawn as reached


@dataclass(frozen=True, kw_only=True)
class Spot:
    """A named place in the plane: a policy by KL and reward."""

    label: str
    x: float
    y: float
    good: bool = False


@dataclass(frozen=True, kw_only=True)
class Bin:
    """Comparisons that the reward model was about equally sure of."""

    predicted: float
    observed: float
    n: int


@dataclass(frozen=True)
class Tick:
    at: float
    label: str


@dataclass(frozen=True)
class Text:
    x: float
    y: float
    text: str
    anchor: str = "middle"


@dataclass(frozen=True)
class Line:
    x1: float
    y1: float
    x2: float
    y2: float
    kind: str = "reference"  # reference, whisker, trend


@dataclass(frozen=True)
class Dot:
    x: float
    y: float
    kind: str
    radius: float = 4.5


@dataclass(frozen=True)
class Bar:
    x: float
    y: float
    width: float
    height: float
    kind: str


@dataclass(frozen=True)
class Key:
    name: str
    kind: str


@dataclass(frozen=True, kw_only=True)
class Chart:
    """All that the template draws, in the coordinates of its view box."""

    key: str  # unique on its page: ties the picture to its title and description
    title: str
    description: str  # what the picture says, in a sentence
    x_label: str
    y_label: str
    x_ticks: list[Tick] = field(default_factory=list)
    y_ticks: list[Tick] = field(default_factory=list)
    bars: list[Bar] = field(default_factory=list)
    lines: list[Line] = field(default_factory=list)
    dots: list[Dot] = field(default_factory=list)
    texts: list[Text] = field(default_factory=list)
    legend: list[Key] = field(default_factory=list)
    columns: list[str] = field(default_factory=list)
    rows: list[list[str]] = field(default_factory=list)
    note: str = ""  # what its words mean, below the picture
    width: int = WIDTH
    height: int = HEIGHT
    left: int = LEFT
    right: int = RIGHT
    top: int = TOP
    bottom: int = BOTTOM


def percent(share: float) -> str:
    """Write a share for people.

    >>> percent(0.5), percent(0.876)
    ('50 %', '88 %')
    """
    return f"{share * 100:.0f} %"


def number(value: float) -> str:
    """Write a number with as many digits as say something.

    >>> number(0.0), number(12.0), number(0.25), number(-1234.5)
    ('0', '12', '0.25', '-1234')
    """
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def nice_ticks(low: float, high: float, wanted: int = 5) -> list[float]:
    """Round values that span `low` to `high` in steps of 1, 2 or 5 times a power of ten.

    >>> nice_ticks(0, 1)
    [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    >>> nice_ticks(3, 3)
    [2.0, 3.0, 4.0]
    """
    if high - low <= max(1e-9 * max(abs(low), abs(high)), 1e-300):
        low, high = low - 1, low + 1
        wanted = 2
    rough = (high - low) / wanted
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * times for times in (1, 2, 5, 10) if power * times >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [float(f"{i * step:.12g}") for i in range(first, last + 1)]  # 0.6, not 0.6000000000000001


def _x(value: float, low: float, high: float) -> float:
    return round(LEFT + (RIGHT - LEFT) * (value - low) / (high - low), 2)


def _y(value: float, low: float, high: float) -> float:
    return round(BOTTOM - (BOTTOM - TOP) * (value - low) / (high - low), 2)


def _share_ticks() -> list[Tick]:
    return [Tick(_y(share / 4, 0, 1), percent(share / 4)) for share in range(5)]


def _columns(count: int) -> list[float]:
    """Middles of `count` equal columns across the plot."""
    width = (RIGHT - LEFT) / max(count, 1)
    return [round(LEFT + width * (i + 0.5), 2) for i in range(count)]


def shortened(label: str, room: float) -> str:
    """The label, or its beginning when the room (in units of the view box) is less than it needs."""
    letters = max(int(room / CHARACTER), 3)
    return label if len(label) <= letters else label[: letters - 1] + "…"


def interval_chart(
    *,
    key: str,
    title: str,
    x_label: str,
    y_label: str,
    points: Sequence[Interval],
    note: str = "",
    counted: str = "labels",
) -> Chart:
    """Shares with their intervals, side by side, against the line at one half.

    `counted`: what each share is one of.
    """
    middles = _columns(len(points))
    room = (RIGHT - LEFT) / max(len(points), 1) - 4
    last = points[-1] if points else None
    return Chart(
        key=key,
        title=title,
        description=(
            f"{last.label}: {percent(last.value)}, interval {percent(last.low)} to {percent(last.high)}."
            if last
            else "Nothing measured yet."
        ),
        x_label=x_label,
        y_label=y_label,
        x_ticks=[Tick(x, shortened(p.label, room)) for x, p in zip(middles, points, strict=True)],
        y_ticks=_share_ticks(),
        lines=[Line(LEFT, _y(0.5, 0, 1), RIGHT, _y(0.5, 0, 1))]
        + [line for x, p in zip(middles, points, strict=True) for line in _whisker(x, p)],
        dots=[
            Dot(x, _y(p.value, 0, 1), "good" if p.good else "plain")
            for x, p in zip(middles, points, strict=True)
        ],
        texts=[
            Text(x + CAP + 5, _y(p.value, 0, 1) + 4, percent(p.value), "start")
            for x, p in zip(middles, points, strict=True)
        ]
        if room > 60
        else [],
        columns=[x_label, y_label, "from", "to", counted],
        rows=[[p.label, percent(p.value), percent(p.low), percent(p.high), str(p.n)] for p in points],
        note=note,
    )


def _whisker(x: float, point: Interval) -> list[Line]:
    """The interval as one line with a cap at each end."""
    low, high = _y(point.low, 0, 1), _y(point.high, 0, 1)
    caps = [Line(x - CAP, y, x + CAP, y, "whisker") for y in (low, high)]
    return [Line(x, low, x, high, "whisker"), *caps]


def scatter_chart(
    *, key: str, title: str, x_label: str, y_label: str, spots: Sequence[Spot], note: str = ""
) -> Chart:
    """Named points in a plane that begins at the origin: what was gained for how much."""
    x_ticks = nice_ticks(min([0.0, *(s.x for s in spots)]), max([0.0, *(s.x for s in spots)]))
    y_ticks = nice_ticks(min([0.0, *(s.y for s in spots)]), max([0.0, *(s.y for s in spots)]))
    places = [(_x(s.x, x_ticks[0], x_ticks[-1]), _y(s.y, y_ticks[0], y_ticks[-1])) for s in spots]
    return Chart(
        key=key,
        title=title,
        description="; ".join(f"{s.label}: {y_label} {number(s.y)} at {x_label} {number(s.x)}" for s in spots)
        or "Nothing measured yet.",
        x_label=x_label,
        y_label=y_label,
        x_ticks=[Tick(_x(v, x_ticks[0], x_ticks[-1]), number(v)) for v in x_ticks],
        y_ticks=[Tick(_y(v, y_ticks[0], y_ticks[-1]), number(v)) for v in y_ticks],
        dots=[Dot(*place, "good" if s.good else "plain") for place, s in zip(places, spots, strict=True)],
        texts=_beside(places, [s.label for s in spots]),
        columns=["", x_label, y_label],
        rows=[[s.label, number(s.x), number(s.y)] for s in spots],
        note=note,
    )


def _beside(places: Sequence[tuple[float, float]], labels: Sequence[str]) -> list[Text]:
    """Put each label right of, left of, above or below its point: the first place that is free.

    One that finds none is left out: two names in one place cannot be read, and the table has them all.
    """
    taken = [(x - 5, y - 5, x + 5, y + 5) for x, y in places]
    texts = []
    for (x, y), label in zip(places, labels, strict=True):
        label = shortened(label, 150)
        width = len(label) * CHARACTER
        candidates = [
            (Text(x + 9, y + 4, label, "start"), (x + 8, y - 8, x + 9 + width, y + 5)),
            (Text(x - 9, y + 4, label, "end"), (x - 9 - width, y - 8, x - 8, y + 5)),
            (Text(x, y - 10, label), (x - width / 2, y - 10 - LINE, x + width / 2, y - 6)),
            (Text(x, y + 19, label), (x - width / 2, y + 7, x + width / 2, y + 7 + LINE)),
        ]
        for text, box in candidates:
            if _inside(box) and not any(_overlap(box, other) for other in taken):
                taken.append(box)
                texts.append(text)
                break
    return texts


def _inside(box: tuple[float, float, float, float]) -> bool:
    return box[0] >= LEFT and box[2] <= WIDTH and box[1] >= 0 and box[3] <= BOTTOM + BELOW


def _overlap(a: tuple[float, float, float, float], b: tuple[float, float, float, float]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def grouped_bars(
    *,
    key: str,
    title: str,
    x_label: str,
    y_label: str,
    groups: Sequence[str],
    series: Sequence[tuple[str, Sequence[float | None]]],
    intervals: Sequence[tuple[float, float] | None] = (),
    note: str = "",
) -> Chart:
    """Shares side by side in groups: at most three series; None leaves a gap.

    `intervals`: of the first series, drawn as whiskers on its bars.
    """
    middles = _columns(len(groups))
    room = (RIGHT - LEFT) / max(len(groups), 1)
    width = min(34.0, room * 0.72 / max(len(series), 1))
    bars, texts, whiskers = [], [], []
    for place, (_, values) in enumerate(series):
        for group, (middle, value) in enumerate(zip(middles, values, strict=True)):
            if value is not None:
                interval = intervals[group] if intervals and place == 0 else None
                x = round(middle + width * (place - len(series) / 2), 2)
                y = _y(value, 0, 1)
                bars.append(Bar(x + 1, y, round(width - 2, 2), round(BOTTOM - y, 2), f"series-{place + 1}"))
                if interval is not None:
                    low, high = (_y(end, 0, 1) for end in interval)
                    middle_of_bar = round(x + width / 2, 2)
                    ends = [(low, low), (high, high), (low, high)]
                    caps = (min(CAP, width / 3), min(CAP, width / 3), 0)
                    whiskers += [
                        Line(middle_of_bar - cap, one, middle_of_bar + cap, other, "interval")
                        for (one, other), cap in zip(ends, caps, strict=True)
                    ]
                    y = min(y, high)
                texts.append(Text(round(x + width / 2, 2), y - 4, f"{value * 100:.0f}"))
    return Chart(
        key=key,
        title=title,
        description="; ".join(
            f"{group}: " + ", ".join(f"{name} {_share(values[i])}" for name, values in series)
            for i, group in enumerate(groups)
        ),
        x_label=x_label,
        y_label=y_label,
        x_ticks=[Tick(x, shortened(g, room - 4)) for x, g in zip(middles, groups, strict=True)],
        y_ticks=_share_ticks(),
        bars=bars,
        lines=[Line(LEFT, _y(0.5, 0, 1), RIGHT, _y(0.5, 0, 1)), *whiskers],
        texts=texts if width >= 18 else [],
        legend=[Key(name, f"series-{place + 1}") for place, (name, _) in enumerate(series)],
        columns=[x_label, *(name for name, _ in series), *(["from", "to"] if intervals else [])],
        rows=[
            [group, *(_share(values[i]) for _, values in series), *_ends(intervals, i)]
            for i, group in enumerate(groups)
        ],
        note=note,
    )


def _ends(intervals: Sequence[tuple[float, float] | None], place: int) -> list[str]:
    """The interval of a group as two cells of a table; none where there are no intervals at all."""
    if not intervals:
        return []
    return [_share(end) for end in intervals[place] or (None, None)]


def _share(value: float | None) -> str:
    return "–" if value is None else percent(value)


def calibration_chart(*, key: str, title: str, bins: Sequence[Bin]) -> Chart:
    """How sure the reward model was against how often people agreed; on the diagonal it is honest."""
    most = max((b.n for b in bins), default=1)
    places = [(_x(b.predicted, 0, 1), _y(b.observed, 0, 1)) for b in bins]
    return Chart(
        key=key,
        title=title,
        description="On the dashed line the model is as sure as it is right. "
        + "; ".join(f"said {percent(b.predicted)}, was {percent(b.observed)}" for b in bins),
        x_label="said by the reward model",
        y_label="said by people",
        x_ticks=[Tick(_x(i / 4, 0, 1), percent(i / 4)) for i in range(5)],
        y_ticks=_share_ticks(),
        lines=[Line(LEFT, BOTTOM, RIGHT, TOP)] + [Line(*a, *b, "trend") for a, b in pairwise(places)],
        dots=[
            Dot(*place, "plain", round(3 + 4 * math.sqrt(b.n / most), 2))
            for place, b in zip(places, bins, strict=True)
        ],
        columns=["said by the reward model", "said by people", "comparisons"],
        rows=[[percent(b.predicted), percent(b.observed), str(b.n)] for b in bins],
    )
