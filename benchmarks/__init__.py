"""Measurements of this program: speed of its parts, and scores of what it makes."""
