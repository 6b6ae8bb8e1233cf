"""Benchmarks on an NVIDIA GPU: times as ratios to the matrix products alone, measured in one interleaved run."""
