"""What people and scrapers are told: status, health, tables, text, reasons, metrics. Values in, values out.

No I/O; it asks neither the kernel nor the speaker, and decides nothing.
"""
