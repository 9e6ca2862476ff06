"""Calculations as tasks: queued, carried out by worker processes, and found again after a crash."""
