"""The commands `mayfly corpus ...`."""
