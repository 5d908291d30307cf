"""What whoever names a checkpoint says of it as text: `fare.pt:base=openai/clip-vit-large-patch14,activation=gelu`."""

import math
from dataclasses import dataclass, fields

from hpt.errors import InputError, check_at_least, check_known
from hpt.models.conversion.parity import ACTIVATIONS
from hpt.references import STATED, Reference


BETWEEN_CHANNELS = "|"


@dataclass(frozen=True)
class ConversionOptions:
    """What is said of a checkpoint that is converted, where its files don't say it, or instead of what they say.

    Args:
        base (`str`, *optional*): Hub id or path of a CLIP that says all else, and whose text tower a vision tower
            gets that comes alone.
        activation (`str`, *optional*): `"gelu"` or `"quick_gelu"`.
        heads, text_heads (`int`, *optional*): Attention heads in each layer of the vision and the text tower.
        image_mean, image_std (`tuple[float, float, float]`, *optional*): Normalisation of [0, 1] pixels per channel.
        tokenizer (`str`, *optional*): Hub id or path of that of the text tower.

    Raises:
        InputError: for a value that can't be one.
    """

    base: str | None = None
    activation: str | None = None
    heads: int | None = None
    text_heads: int | None = None
    image_mean: tuple[float, ...] | None = None
    image_std: tuple[float, ...] | None = None
    tokenizer: str | None = None

    def __post_init__(self):
        if self.activation is not None:
            check_known("activation", self.activation, ACTIVATIONS)
        check_at_least(1, **{name: value for name, value in self.given.items() if name in ("heads", "text_heads")})
        for name in ("base", "tokenizer"):
            _check_place(name, getattr(self, name))
        for name, least in (("image_mean", -math.inf), ("image_std", 0)):
            values = getattr(self, name)
            if values is not None and (len(values) != 3 or not all(least < value < math.inf for value in values)):
                raise InputError(
                    f"{name} is {' '.join(f'{value:g}' for value in values)}, but must be three numbers"
                    f"{' above 0' * (least == 0)}, one for each channel of [0, 1] pixels."
                )

    @classmethod
    def parse(cls, settings: dict[str, str]) -> "ConversionOptions":
        """The options among what stands behind the colon of a model's name; numbers of channels have `|` between."""
        given = {name: settings[name] for name in STATED if name in settings}
        return cls(**{name: _READERS.get(name, _read_text)(name, text) for name, text in given.items()})

    @property
    def given(self) -> dict:
        """Those that are given, by name."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in values.items() if value is not None}

    @property
    def base_reference(self) -> Reference | None:
        """The base, with its revision."""
        return self.base and Reference.parse(self.base)


def _check_place(name: str, text: str | None) -> None:
    """Refuse what names no model or tokenizer as it stands."""
    if text is None:
        return
    if not text.strip():
        raise InputError(f"{name} is empty, but must be a Hub id or a path.")
    place = Reference.parse(text)
    if place.settings:
        raise InputError(
            f"{name} is {text!r}, but is loaded as it stands, without {next(iter(place.settings))}: give a Hub id "
            "or a path. What needs more said is converted by `hpt convert` first."
        )
    place.check_revision()


def _read_text(name: str, text: str) -> str:
    return text


def _read_number(name: str, text: str) -> int:
    if not text.isdecimal():
        raise InputError(f"{name} is {text!r}, but must be a whole number of at least 1.")
    return int(text)


def _read_channels(name: str, text: str) -> tuple[float, ...]:
    try:
        return tuple(map(float, text.split(BETWEEN_CHANNELS)))
    except ValueError:
        raise InputError(f"{name} is {text!r}, but must be three numbers, such as 0.48|0.46|0.41.") from None


_READERS = {
    "heads": _read_number,
    "text_heads": _read_number,
    "image_mean": _read_channels,
    "image_std": _read_channels,
}
