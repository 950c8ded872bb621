"""What the analyses share for the report: its page, the style of figures, the overview."""
