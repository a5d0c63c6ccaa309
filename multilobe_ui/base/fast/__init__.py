"""The same functions as transformers and PEFT have, in less time. Each is left alone where it would not be exact."""
