"""One node's loop: reads the store, lets `node` decide, brings rooms to it, reads back, tells.

It may import everything but `operator`, `daemon` and `cli`; it decides nothing that another node must agree with.
"""
