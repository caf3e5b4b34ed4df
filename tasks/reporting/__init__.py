"""What the report is made of: findings in words, figures, and the page that holds both."""
