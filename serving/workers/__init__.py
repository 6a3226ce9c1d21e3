"""The stages of a server as plain classes: `serving.ray_stages` makes deployments of them."""
