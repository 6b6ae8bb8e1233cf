"""Glyphs of one name in several fonts are no negatives of each other: what is it worth to say so?"""
