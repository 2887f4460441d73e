"""What routerd itself publishes: allocations as text, their records as tables, and parts where they grow. Pure.

`whole` puts the document and its parts together; stores keep both.
"""
