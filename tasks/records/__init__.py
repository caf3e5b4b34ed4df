"""The tidy records of attacks: their columns and names, and the files that the attack steps write."""
