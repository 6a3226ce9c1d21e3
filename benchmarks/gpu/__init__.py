"""The trainer and the selection on a GPU, on a machine that has little more than torch."""
