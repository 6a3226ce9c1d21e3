"""Proof: what each way to use a corpus gains on text that is younger than the model."""
