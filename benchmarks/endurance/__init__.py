"""``python -m benchmarks.endurance``: clients of every kind for an hour while every process of the service is killed at random.

What is counted: requests that are lost after the shipped client's own retries, tasks that are lost or done twice, answers that
differ from their reference, bad structures that get anything but their 4xx, and resident memory of every process over time.
"""
