"""HTTP: the gateway, request bodies, responses, and what is refused at the edge."""
