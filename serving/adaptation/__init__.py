"""One request's adaptation: what it asks for, whether it is admitted, and the stages it passes."""
