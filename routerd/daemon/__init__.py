"""Processes: what each is made of, signals, children, privileges, directories. It wires and decides nothing."""
