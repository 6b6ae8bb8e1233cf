"""Glyph-caption pairs: which contrastive loss retrieves best, and do temperatures for each input help?"""
