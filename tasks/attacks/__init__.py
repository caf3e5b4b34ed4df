"""Attacks, what they keep, and what a killed sweep goes on from."""
