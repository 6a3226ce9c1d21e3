"""Where corpora are stored, and what a store of one corpus does, whatever keeps it."""
