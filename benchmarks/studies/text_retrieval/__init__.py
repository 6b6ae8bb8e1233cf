"""A pretrained sentence encoder learns to find functions by their docstrings: what does hardness weighting gain?"""
