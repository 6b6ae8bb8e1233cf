"""The parts of the studies on glyph-caption pairs: arms, data, one run, tables."""
