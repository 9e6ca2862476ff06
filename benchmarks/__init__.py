"""Figures of the service: how fast it is under load, and what it costs over evaluating in process."""
