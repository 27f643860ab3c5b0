"""Decisions and facts. No clock, no randomness, no input or output: everything comes in as a value."""
