"""`mayfly plan`: what a machine can serve, from costs that are measured on it."""
