"""The section `quantization` of a scenario: how weights and activations become integers."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, PlainSerializer, WithJsonSchema

from fedsim.quant.granularities import GRANULARITIES, GROUPS, WeightFormat
from fedsim.quant.measures import MEASURES
from fedsim.quant.rounding import ROUNDINGS
from fedsim.scenario.corpus import CorpusSettings
from fedsim.scenario.settings import OneOf, Settings, Text, problem

Moments = Literal["public", "own", "blend"]
Losses = Literal["public", "own"]
ROUNDING = OneOf(ROUNDINGS)
_GROUP = "group"


def _granularity(value: Any) -> Any:
    """Return `{group: 64}` as the name of its registry entry, anything else as it is."""
    if not isinstance(value, dict):
        return value
    if value.keys() != {_GROUP} or value[_GROUP] not in GROUPS:
        sizes = ", ".join(map(str, GROUPS))
        raise problem(f"{value!r} is not a group size: write group: and one of {sizes}")
    return f"{_GROUP}_{value[_GROUP]}"


def _as_written(name: str) -> Any:
    size = GRANULARITIES[name].group
    return name if size not in GROUPS else {_GROUP: size}


_NAMES = OneOf(GRANULARITIES)
WeightGranularity = Annotated[
    Text,
    _NAMES,
    BeforeValidator(
        _granularity,
        json_schema_input_type=Annotated[
            Any,
            WithJsonSchema(
                {
                    "anyOf": [
                        {"type": "string", "minLength": 1},
                        {
                            "type": "object",
                            "properties": {_GROUP: {"enum": list(GROUPS)}},
                            "required": [_GROUP],
                            "additionalProperties": False,
                        },
                    ]
                }
            ),
        ],
    ),
    PlainSerializer(_as_written),
]


class QuantizationSettings(Settings):
    """How weights and activations are quantized, and how layers are ranked."""

    weights: WeightGranularity = Field(
        default="group_128",
        description="what shares a scale: per_tensor (the paper), per_channel, or {group: N} with"
        " 32, 64 or 128 inputs",
    )
    zero_points: bool = Field(
        default=True, description="whether weights have zero points beside their scales"
    )
    rounding: Annotated[Text, ROUNDING] = Field(
        default="compensated",
        description="how weights get their codes; nearest is the paper's; methods may differ",
    )
    moments: Moments = Field(
        default="blend",
        description="whose clips compensated rounding fits: public ones, the client's own (the"
        " device rounds), or a blend of both; methods may differ",
    )
    own_weight: float = Field(
        default=0.5, gt=0, lt=1, description="moments blend: weight of the client's own"
    )
    public_clips: CorpusSettings | None = Field(
        default=None,
        description="corpus whose tuning clips stand for the public; null is synthetic voices in"
        " all languages of the scenario, in noise, rooms and telephone bands",
    )
    public_count: int = Field(
        default=128, ge=8, le=100_000, description="maximum number of public clips"
    )
    losses: Losses = Field(
        default="public",
        description="whose clips show what each layer's bit depth costs, for knapsack: public ones,"
        " or the client's own",
    )
    activations: Literal["static", "dynamic", "float"] = Field(
        default="dynamic",
        description="inputs of layers in methods that name no calibration: static (one range per"
        " layer, calibrated), dynamic (a range per vector) or float (weights only)",
    )
    activation_bits: Annotated[int, Field(ge=4, le=16)] | Literal["auto"] = Field(
        default=8,
        description="bit depth of activations; auto is 8, and 16 for the inputs that lose most"
        " at 8 on public clips",
    )
    sensitivity: Annotated[Text, OneOf(MEASURES)] = Field(
        default="median", description="statistic that ranks the layers"
    )

    @property
    def weight_format(self) -> WeightFormat:
        """How codes of weights become numbers."""
        return WeightFormat(self.weights, self.zero_points)

    @property
    def default_calibration(self) -> str:
        """The calibration of methods that name none."""
        return "cosine" if self.activations == "static" else self.activations
