"""LoRA adapters on the frozen base: on disk, in memory, and in a forward call under any weights."""
