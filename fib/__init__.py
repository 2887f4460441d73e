"""Routes of ours to other nodes' pods, in a kernel table of their own.

Values, a pure plan and the kernel. It knows no pod, no store and no BGP, and no other room.
"""
