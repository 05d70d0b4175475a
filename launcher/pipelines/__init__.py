"""Runs that need each other: stages, what waits for what."""
