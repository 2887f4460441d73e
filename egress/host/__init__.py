"""What others have on the node: devices, connections, rules that use packets' marks, traces of CNIs. It is read and
judged here and never changed.
"""
