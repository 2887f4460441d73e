"""What one node should have, decided by pure functions: sessions, announcements, egress state, the brake.

No I/O; it knows neither stores nor `cluster`.
"""
