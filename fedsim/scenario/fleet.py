"""The section `fleet` of a scenario: the clients' devices."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from fedsim.errors import FedsimError
from fedsim.fleet.distributions import QUANTITIES, correlation_root
from fedsim.fleet.sampling import FleetSettings, Share
from fedsim.scenario.distributions import (
    DISTRIBUTIONS,
    DepthQuantity,
    Quantity,
    depths_distribution,
    number_distribution,
)
from fedsim.scenario.settings import AsWritten, GivenKeys, Settings, Text, problem

QuantityName = Literal["budget_mb", "memory_mb", "speed", "link", "battery", "bit_depths"]
Probability = Annotated[float, Field(ge=0, le=1), AsWritten()]
Correlation = Annotated[float, Field(ge=-1, le=1), AsWritten()]
_TOLERANCE = 1e-6  # of a sum of shares


class DeviceSettings(GivenKeys):
    """One class of devices: its share of the clients, and what differs from the catalogue."""

    share: Probability = Field(description="probability of a client to have such a device")
    budget_mb: Quantity | None = Field(
        default=None, description=f"largest model file in MB: {DISTRIBUTIONS}"
    )
    memory_mb: Quantity | None = Field(
        default=None, description=f"memory of a model and its activations in MB: {DISTRIBUTIONS}"
    )
    speed: Quantity | None = Field(
        default=None, description=f"factor of the class's MACs per second: {DISTRIBUTIONS}"
    )
    link: Quantity | None = Field(
        default=None, description=f"factor of the class's Mbit per second: {DISTRIBUTIONS}"
    )
    battery: Quantity | None = Field(
        default=None, description=f"factor of the class's joules: {DISTRIBUTIONS}"
    )
    bit_depths: DepthQuantity | None = Field(
        default=None,
        description="bit depths that its runtime executes: a list such as [4, 8], or {choices:"
        " [[8], [4, 8]], weights: [1, 3]}",
    )

    def share_of(self, device: str) -> Share:
        """Return it as the share of a device class of this name."""
        given = {name: getattr(self, name) for name in QUANTITIES}
        return Share(
            device,
            float(self.share),
            {
                name: (depths_distribution if name == "bit_depths" else number_distribution)(value)
                for name, value in given.items()
                if value is not None
            },
        )


def _device_shape(value: Any) -> str:
    return "<settings>" if isinstance(value, Mapping | DeviceSettings) else "<share>"


Device = Annotated[
    Annotated[Probability, Tag("<share>")] | Annotated[DeviceSettings, Tag("<settings>")],
    Discriminator(_device_shape),
]


class FleetChoice(Settings):
    """The clients' devices: drawn from shares of classes, or listed in a table."""

    catalogue: Text | None = Field(
        default=None, description="YAML file of device classes, over the built-in ones"
    )
    devices: dict[str, Device] = Field(
        default={},
        description="device class -> its share of the clients, or {share: ..., budget_mb: ..., ...}"
        " where quantities differ from the catalogue",
    )
    correlation: dict[QuantityName, dict[QuantityName, Correlation]] = Field(
        default={}, description="quantity -> quantity -> correlation from -1 to 1"
    )
    trace: Text | None = Field(
        default=None, description="CSV or Parquet file with one row per device, in place of devices"
    )
    sensing: Literal["streamed", "proxy"] = Field(
        default="streamed",
        description="what a device does that cannot hold the full-precision model: read it layer"
        " by layer, or sense on an 8-bit proxy",
    )

    clip_s: float = Field(
        default=10,
        gt=0,
        le=60,
        description="seconds of audio that a device computes on at one time: their activations must"
        " fit into its memory beside the weights",
    )

    @model_validator(mode="after")
    def _check(self) -> FleetChoice:
        if bool(self.devices) == (self.trace is not None):
            which = "both" if self.devices else "neither"
            raise problem(f"it has {which} of devices and trace: give one of them")
        if self.trace is not None:
            if self.correlation:
                raise problem("a trace has its own correlations: leave this out", "correlation")
            return self
        settings = self._shares()
        total = sum(share.share for share in settings)
        if abs(total - 1) > _TOLERANCE:
            raise problem(f"shares add up to {total:g}; make them add up to 1", "devices")
        self._check_correlation({name for share in settings for name in share.distributions})
        return self

    def settings(self) -> FleetSettings:
        """Return what the devices are drawn from."""
        if self.trace is not None:
            return FleetSettings(self.catalogue, trace=self.trace)
        pairs: dict[tuple[str, str], float] = {
            (a, b): value for a, row in self.correlation.items() for b, value in row.items()
        }
        return FleetSettings(self.catalogue, self._shares(), correlation_root(pairs))

    def _shares(self) -> tuple[Share, ...]:
        return tuple(
            entry.share_of(name) if isinstance(entry, DeviceSettings) else Share(name, float(entry))
            for name, entry in self.devices.items()
        )

    def _check_correlation(self, varying: set[str]) -> None:
        """Check the correlations; `varying` are the quantities that differ from the catalogue."""
        for first, row in self.correlation.items():
            for second, value in row.items():
                place = ("correlation", first, second)
                if first == second:
                    raise problem("a quantity has no correlation with itself: leave it out", *place)
                for name in (first, second):
                    if name not in varying:
                        text = f"no class of fleet.devices has a {name} of its own: give one to a"
                        raise problem(f"{text} class, or leave this correlation out", *place)
                other = self.correlation.get(second, {}).get(first, value)
                if other != value:
                    text = f"it is {value:g} here and {other:g} in {second}.{first}: give it once"
                    raise problem(text, *place)
        try:
            self.settings()
        except FedsimError as error:
            raise problem(str(error), "correlation") from None
