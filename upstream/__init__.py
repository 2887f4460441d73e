"""What is upstream of a gateway: targets that it asks whether they answer, and what is made of their answers.

targets.py   the targets, and how often one must fail or answer to be believed. Pure
ask.py       one question to one target: ICMP echo, a TCP connection, an HTTP request
watch.py     all targets again and again, while this node is a gateway

It knows neither routerd, nor the datapath, nor the other rooms.
"""
