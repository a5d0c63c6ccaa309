"""Keywords: the lobe whose distinctive words a prompt uses. No model runs, and a person can edit
the words."""
