"""One lobe from its examples, as a generator of steps."""
