"""How often each answer was given, as bars: numbers in, places on a canvas out; the template draws them."""

from dataclasses import dataclass

from labeling.round_report import Question

BAR, GAP = 34, 8
HEIGHT, TOP, BOTTOM = 150, 20, 6  # the tallest bar ends at TOP, all stand on HEIGHT - BOTTOM
SHORTEST = 2  # a bar of nothing is still seen


@dataclass(frozen=True)
class Bar:
    name: str
    count: int
    share: float
    side: str
    x: int
    y: float
    height: float
    middle: float


@dataclass(frozen=True)
class BarChart:
    title: str
    bars: list[Bar]
    width: int
    height: int
    base: int


def chart_of(question: Question) -> BarChart:
    """
    >>> from labeling.round_report import Answer
    >>> chart = chart_of(Question("Q", [Answer("yes", 3, "left"), Answer("no", 1, "right")]))
    >>> [(bar.name, bar.share, bar.height) for bar in chart.bars]
    [('yes', 0.75, 124.0), ('no', 0.25, 41.33)]
    """
    most = max((answer.count for answer in question.answers), default=0) or 1
    total = sum(answer.count for answer in question.answers) or 1
    base = HEIGHT - BOTTOM
    bars = []
    for place, answer in enumerate(question.answers):
        height = round(max(SHORTEST, (base - TOP) * answer.count / most), 2)
        x = place * (BAR + GAP)
        bars.append(
            Bar(
                name=answer.name,
                count=answer.count,
                share=answer.count / total,
                side=answer.side,
                x=x,
                y=round(base - height, 2),
                height=height,
                middle=x + BAR / 2,
            )
        )
    width = len(bars) * (BAR + GAP) - GAP
    return BarChart(title=question.name, bars=bars, width=max(width, BAR), height=HEIGHT, base=base)
