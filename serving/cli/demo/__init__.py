"""The command `mayfly demo`: one passage, continued by the base model and by an adapter."""
