"""Capacity planning for `mayfly plan`, from costs measured on this machine."""
