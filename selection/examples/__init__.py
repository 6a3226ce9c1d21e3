"""Examples: conversations that end with the answer they should get, and their tokens."""
