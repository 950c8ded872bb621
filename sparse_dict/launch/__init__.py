"""From a command line to checked jobs of a stage."""
