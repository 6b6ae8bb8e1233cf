"""The parts of the glyph-caption example: options, data, model, training, report."""
