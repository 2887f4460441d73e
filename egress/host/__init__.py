"""What others have on the node: connections, rules that use packets' marks, traces of CNIs. It is read here and never
changed.
"""
