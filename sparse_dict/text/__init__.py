"""From documents to memory-mapped token ids."""
