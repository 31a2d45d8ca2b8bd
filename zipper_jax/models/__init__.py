"""Towers, the zips between them, and the zipper that holds both."""
