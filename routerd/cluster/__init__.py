"""What nodes must agree on, decided by pure functions: requests, addresses, groups, gateways, the ledger's records.

No I/O; it knows neither stores nor `node`.
"""
