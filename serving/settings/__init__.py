"""Settings: their list, where they come from, and what is checked before a start."""
