"""Models that studies are about, if not LAHR: functions from a configuration to a module."""
