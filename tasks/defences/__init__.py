"""Defences: what stands in front of the classifier; a defended model is one network."""
