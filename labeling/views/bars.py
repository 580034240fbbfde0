"""How often each answer was given, as bars: numbers in, places on a canvas out; the template draws them.

Across, places are shares of the canvas: a narrow screen brings bars together and leaves words their size.
"""

from dataclasses import dataclass

from labeling.round_report import Question

SLOT = 54  # what a bar and its word take, on a screen with room
FILLED = 0.8  # of a slot, by its bar
HEIGHT, TOP = 144, 20  # bars stand on HEIGHT, the tallest one ends at TOP
SHORTEST = 2  # a bar of nothing is still seen


@dataclass(frozen=True)
class Bar:
    name: str
    word: str
    count: int
    side: str
    x: float  # this and the next two in percent of the width
    width: float
    middle: float
    y: float
    height: float


@dataclass(frozen=True)
class BarChart:
    title: str
    bars: list[Bar]
    width: int
    base: int = HEIGHT


def chart_of(question: Question) -> BarChart:
    """
    >>> from labeling.round_report import Answer
    >>> chart = chart_of(Question("Q", [Answer("yes", 3, "left"), Answer("no", 1, "right")]))
    >>> [(bar.word, bar.x, bar.width, bar.middle, bar.height) for bar in chart.bars]
    [('yes', 5.0, 40.0, 25.0, 124.0), ('no', 55.0, 40.0, 75.0, 41.33)]
    """
    most = max((answer.count for answer in question.answers), default=0) or 1
    slot = 100 / max(len(question.answers), 1)
    bars = []
    for place, answer in enumerate(question.answers):
        height = round(max(SHORTEST, (HEIGHT - TOP) * answer.count / most), 2)
        middle = (place + 0.5) * slot
        bars.append(
            Bar(
                name=answer.name,
                word=answer.word or answer.name,
                count=answer.count,
                side=answer.side,
                x=round(middle - FILLED * slot / 2, 3),
                width=round(FILLED * slot, 3),
                middle=round(middle, 3),
                y=round(HEIGHT - height, 2),
                height=height,
            )
        )
    return BarChart(title=question.name, bars=bars, width=SLOT * len(bars))
