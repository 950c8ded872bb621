"""Files of a study: written whole, hashed, locked."""
