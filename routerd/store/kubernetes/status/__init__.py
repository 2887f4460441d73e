"""What the operator shows in the status of objects, from published allocations: values in, merge patches out. Pure, but
for `shown`, which writes objects that are nothing but a status.
"""
