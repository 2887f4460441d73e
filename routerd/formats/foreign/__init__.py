"""Kinds of other makers, read as they mean them. Pure.

What is meant is taken; what we cannot do is refused by name, as a value. Unknown fields are ignored, as the API server
prunes them.
"""
