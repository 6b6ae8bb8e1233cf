"""The parts of the language-model example: options, training, and a small model."""
