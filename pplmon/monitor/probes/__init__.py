"""Measurements that run the model by themselves, one file each."""

from pplmon.monitor.probes.base import Probe, Ranks, check_probes
from pplmon.monitor.probes.free_running import FreeRunningProbe
from pplmon.monitor.probes.rename_gap import RenameGap, rename_gap

__all__ = ["FreeRunningProbe", "Probe", "Ranks", "RenameGap", "check_probes", "rename_gap"]
