"""Diagnostics: functions of ArviZ objects."""

from banel_pyro.diagnostics.spread import active_units, spread

__all__ = ["active_units", "spread"]
