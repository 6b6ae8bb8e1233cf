"""The parts of the language-model study: methods, runs, tables."""
