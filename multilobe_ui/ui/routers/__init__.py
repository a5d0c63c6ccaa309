"""The Routers tab."""
