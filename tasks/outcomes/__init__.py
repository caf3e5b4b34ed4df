"""From records to outcomes: the tables of the attack steps as data frames, and the worst case of each image."""
