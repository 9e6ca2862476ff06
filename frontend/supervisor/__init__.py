"""Owns the processes of the service: starts tritonserver and gateway, loads models, brings back what dies, stops all of it."""
