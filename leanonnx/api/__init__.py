"""The Python interface: functions, their arguments and results."""
