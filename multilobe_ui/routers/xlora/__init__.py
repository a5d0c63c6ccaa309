"""X-LoRA: a trained head weighs the lobes for every token and layer."""
