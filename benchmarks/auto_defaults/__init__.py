"""What `auto` should answer with, and what it should show: ways to answer without a step."""
