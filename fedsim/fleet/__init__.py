"""Fleets: which devices the clients have, and how long a round takes on them by a virtual clock.

The clock itself is `fedsim.fleet.clock`, which imports simpy.
"""

from fedsim.fleet.devices import DeviceClass, DeviceProfile, load_catalogue
from fedsim.fleet.sampling import FleetSettings, Share, open_fleet
from fedsim.fleet.timeline import ClassTimes, ServerTotals, Timeline, summarize
from fedsim.fleet.work import Attempt, ClientWork, ServerClock, StageWork

__all__ = [
    "Attempt",
    "ClassTimes",
    "ClientWork",
    "DeviceClass",
    "DeviceProfile",
    "FleetSettings",
    "ServerClock",
    "ServerTotals",
    "Share",
    "StageWork",
    "Timeline",
    "load_catalogue",
    "open_fleet",
    "summarize",
]
