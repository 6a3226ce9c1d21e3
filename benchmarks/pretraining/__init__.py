"""Pretraining of the bundled base model, `deploy/nano`."""
