"""Lobes that travel: zips and folders of them, what is refused in them, and the peer's format."""
