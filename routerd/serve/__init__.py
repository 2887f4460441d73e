"""Sockets on which a daemon answers: the API of the command line, metrics and probes.

It knows nothing of what it serves: that comes as functions.
"""
