"""Bridges to other packages; each imports what it bridges to when it is used."""
