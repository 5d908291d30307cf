"""What was measured: values of each variant in each round, ratios to one of them, as a table and as JSON."""

import statistics
from dataclasses import asdict, dataclass, field

from hpt.evaluation.report import markdown_table


@dataclass
class Measurement:
    """Values of variants that were measured in turn.

    Args:
        name (`str`): What `--measure` calls it, with what tells it from others of that name: `growth: classes`.
        title (`str`): What was measured, at which size.
        unit (`str`): Of the values: `s`, `GiB` or `images/s`.
        values (`dict[str, list[float]]`): Of each variant, one for each round.
        reference (`str`): The variant that ratios are to.
        speeds (`bool`, *optional*, defaults to `False`): Whether ratios say how many times as fast a variant is,
            `reference / variant`. Otherwise they say how much it takes, `variant / reference`.
        further (`dict[str, list[float]]`, *optional*): Other numbers, each in each round, or once.
        axis (`str`, *optional*): What the variants' names are numbers of, such as classes.
        faults (`list[str]`, *optional*): Which variants failed their equality gate, and so weren't timed.
    """

    name: str
    title: str
    unit: str
    values: dict[str, list[float]]
    reference: str
    speeds: bool = False
    further: dict[str, list[float]] = field(default_factory=dict)
    axis: str | None = None
    faults: list[str] = field(default_factory=list)

    def ratios(self, variant: str) -> list[float]:
        """In each round, of values that were measured beside each other."""
        pairs = zip(self.values[self.reference], self.values[variant], strict=True)
        return [first / own if self.speeds else own / first for first, own in pairs]

    @property
    def ratio_title(self) -> str:
        return f"times as fast as {self.reference}" if self.speeds else f"of {self.reference}"

    def add_speeds(self, images: int) -> None:
        """Add images a second of each variant, of seconds that so many images take."""
        for name, seconds in self.values.items():
            self.further[f"{name}: images/s"] = [images / took for took in seconds]

    def as_json(self) -> dict:
        """All fields, all ratios, and of each list of numbers its median, minimum and maximum."""
        ratios = {variant: self.ratios(variant) for variant in self.values}
        lists = {"values": self.values, "ratios": ratios, "further": self.further}
        summaries = {f"{name}_summary": {key: summary(own) for key, own in of.items()} for name, of in lists.items()}
        return asdict(self) | {"ratios": ratios} | summaries

    def __str__(self) -> str:
        """The title, a table of the variants, and a line for each further number and each fault."""
        header = [self.axis or "variant", self.unit, self.ratio_title]
        lines = [[name, spread(own), spread(self.ratios(name))] for name, own in self.values.items()]
        table = [markdown_table([header, *lines])] if lines else []
        further = [f"- {name}: {spread(own)}" for name, own in self.further.items()]
        return "\n".join([f"{self.name}: {self.title}", *table, *further, *(f"- NOT EQUAL: {x}" for x in self.faults)])


def without(title: str, names: list[str]) -> str:
    """A title that names the variants, if any, for which a GPU's memory didn't suffice."""
    return f"{title}; the GPU's memory doesn't hold {', '.join(names)}" if names else title


def summary(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def spread(values: list[float]) -> str:
    """`4.51 [4.30-5.30]`: median, least and most; of equal ones `4.51` alone."""
    low, median, high = map(_number, (min(values), statistics.median(values), max(values)))
    return median if low == high else f"{median} [{low}-{high}]"


def _number(value: float) -> str:
    """Three digits, or all of those before the point."""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"
