"""The adaptation of one request: its options, its admission, and the stages it passes."""
