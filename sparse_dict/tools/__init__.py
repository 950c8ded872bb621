"""Commands that look at a study, and the notebook view; none changes a result."""
