"""Attacks, what they keep, and what a killed step goes on from."""
