"""A cloud's interfaces and addresses for instances: what there is, what is needed, which call comes next.

Values, pure decisions and backends. It knows no node, no pod and no store, and no other room.
"""
