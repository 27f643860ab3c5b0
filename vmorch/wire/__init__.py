"""Subjects and envelopes, shared by both ends of the bus."""
