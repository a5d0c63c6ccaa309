"""Complexity: how hard a prompt is decides which of three experts answers."""
