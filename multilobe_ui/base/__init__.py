"""The frozen language model: its files, tokenizer, prompt format and device. Knows no lobe."""
