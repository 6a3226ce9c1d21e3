"""What the server promises, each checked against a real server."""
