"""From a file to rows, and from rows to examples that a lobe can be trained on. Knows no model."""
