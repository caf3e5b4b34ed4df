"""The tidy records of attacks: their columns, how they are written and read, and the worst case of each image."""
