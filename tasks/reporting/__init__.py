"""The report: sections with their templates, figures, and the page."""
