"""The service in containers: what `forcegate deploy` runs, and what it looks at first."""
