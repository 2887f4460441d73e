"""Routes of ours, in kernel tables of their own: to other nodes' pods, and blackholes for what a node announces.

Values, a pure plan and the kernel. It knows no pod, no store and no BGP, and no other room.
"""
