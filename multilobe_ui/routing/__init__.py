"""What all routers share: decisions, calibration, sentence vectors, fits, corrections."""
