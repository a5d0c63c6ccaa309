"""The Manage tab."""
