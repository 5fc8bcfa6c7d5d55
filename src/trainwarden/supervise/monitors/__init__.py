"""Those who look at the host while a command runs, one a file. To add one: a file here, a line in `all_monitors`."""

from __future__ import annotations

from trainwarden.supervise.monitors.clocks import Clocks
from trainwarden.supervise.monitors.crowds import Crowds
from trainwarden.supervise.monitors.interface import Host, Monitor, Monitors
from trainwarden.supervise.monitors.stalls import Stalls

__all__ = ["Host", "Monitor", "Monitors", "all_monitors"]


def all_monitors(host: Host) -> list[Monitor]:
    """A fresh instance of every monitor."""
    return [Stalls(host), Clocks(host), Crowds(host)]
