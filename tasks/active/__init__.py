"""Active learning: what is asked next, who answers, and what is learned from it."""
